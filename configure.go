package wireguard

import (
	"bytes"
	"encoding/binary"
	"iter"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A peerTable finds peers by their public key. The zero value is ready.
type peerTable struct {
	mu sync.RWMutex // guards m; taken after the configuration lock, and held while nothing else is taken
	m  map[PublicKey]*peer
}

func (t *peerTable) find(key PublicKey) *peer {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.m[key]
}

func (t *peerTable) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.m)
}

// all is the peers of this moment, by public key.
func (t *peerTable) all() []*peer {
	t.mu.RLock()
	ps := make([]*peer, 0, len(t.m))
	for _, p := range t.m {
		ps = append(ps, p)
	}
	t.mu.RUnlock()
	slices.SortFunc(ps, func(a, b *peer) int { return bytes.Compare(a.key[:], b.key[:]) })
	return ps
}

func (t *peerTable) put(p *peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = make(map[PublicKey]*peer)
	}
	t.m[p.key] = p
}

func (t *peerTable) remove(p *peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.m, p.key)
}

// Configure carries out a change as a whole: if anything in it is wrong, the error tells all of that, and nothing is
// changed. A new port is opened before the old one is closed. Packets flow on meanwhile.
func (d *Device) Configure(c Change) error {
	var id *identity
	if c.PrivateKey != nil {
		id = newIdentity(*c.PrivateKey) // an X25519: nobody is to wait for it
	}
	d.mu.Lock()
	old, due, err := d.configure(&c, id)
	d.mu.Unlock()
	d.flushAll(due)
	if old != nil {
		old.receivers.Wait()
	}
	return err
}

// A dueFlush is a peer that something is to be sent to once the configuration lock is released.
type dueFlush struct {
	p         *peer
	keepalive bool
}

func (d *Device) flushAll(due []dueFlush) {
	for _, f := range due {
		d.flush(f.p, f.keepalive)
	}
}

// configure is Configure but for what is due after it. id is that of the change's private key, if it has one. It returns
// the socket that was replaced, closed. mu is held.
func (d *Device) configure(c *Change, id *identity) (old *openSocket, due []dueFlush, err error) {
	if d.closing.Load() {
		return nil, nil, errClosed
	}
	if c.PrivateKey == nil {
		id = d.identity.Load()
	}
	if err := checkPeers(c.Peers, id.publicKey()); err != nil {
		return nil, nil, err
	}
	if old, err = d.changeSocket(c); err != nil {
		return nil, nil, err
	}
	if c.PrivateKey != nil && id.publicKey() != d.identity.Load().publicKey() {
		d.changeIdentity(id)
	}
	return old, d.changePeers(c.Peers, c.ReplacePeers), nil
}

// changeSocket sets port and mark. This is the part that can fail.
func (d *Device) changeSocket(c *Change) (old *openSocket, err error) {
	port, mark := d.port, d.mark
	if c.ListenPort != nil {
		port = *c.ListenPort
	}
	if c.FirewallMark != nil {
		mark = *c.FirewallMark
	}
	r := d.running.Load()
	switch {
	case r == nil:
	case c.ListenPort != nil && d.isOtherPort(port, r.socket.Load()):
		s, err := d.open(port, mark)
		if err != nil {
			return nil, err
		}
		old = r.socket.Swap(s)
		d.startReceivers(r, s)
		old.close()
	case mark != d.mark:
		if err := setMark(r.socket.Load().Socket, mark); err != nil {
			return nil, err
		}
	}
	if old != nil || mark != d.mark {
		for _, p := range d.peers.all() {
			p.mu.Lock()
			p.endpoint.forgetSource()
			p.mu.Unlock()
		}
	}
	d.port, d.mark = port, mark
	return old, nil
}

// isOtherPort reports whether a socket is to be opened for port. One that Wake could not open again is no socket.
func (d *Device) isOtherPort(port uint16, s *openSocket) bool {
	return s.isClosed() || port == 0 && d.port != 0 || port != 0 && port != s.port
}

// changeIdentity gives the device another private key, or none.
func (d *Device) changeIdentity(id *identity) {
	d.identity.Store(id)
	now := d.now()
	var self []PeerChange
	for _, p := range d.peers.all() {
		if id != nil && p.key == id.public {
			self = append(self, PeerChange{PublicKey: p.key, Remove: true})
			continue
		}
		var out outbox
		p.mu.Lock()
		p.retire(id, &out)
		if id == nil {
			p.endWaits(ErrNoPrivateKey)
		}
		if p.staged.n > 0 && !p.current.sendable(now, 1) { // else who made the session is about to send it
			p.initiate(now, false, &out)
		}
		d.release(p, &out)
	}
	d.changePeers(self, false)
}

// changePeers carries out changes to peers that were checked. All prefixes change at one moment. mu is held.
func (d *Device) changePeers(changes []PeerChange, replace bool) (due []dueFlush) {
	edit := d.allowed.edit(d.editSize(changes, replace))
	if replace {
		named := make(map[PublicKey]bool, len(changes))
		for i := range changes {
			named[changes[i].PublicKey] = true
		}
		for _, p := range d.peers.all() {
			if !named[p.key] {
				d.removePeer(p, &edit)
			}
		}
	}
	for i := range changes {
		if p, keepalive := d.changePeer(&changes[i], &edit); p != nil {
			due = append(due, dueFlush{p, keepalive})
		}
	}
	edit.publish()
	return due
}

// editSize is about how many prefixes change.
func (d *Device) editSize(changes []PeerChange, replace bool) (n int) {
	if replace {
		return math.MaxInt
	}
	for i := range changes {
		c := &changes[i]
		n += len(c.AllowedIPs) + len(c.RemoveAllowedIPs)
		if c.Remove || c.ReplaceAllowedIPs {
			if p := d.peers.find(c.PublicKey); p != nil {
				n += len(p.allowed)
			}
		}
	}
	return n
}

// changePeer carries out one change. It returns the peer if something is to be sent to it.
func (d *Device) changePeer(c *PeerChange, edit *routesEdit[*peer]) (due *peer, keepalive bool) {
	p := d.peers.find(c.PublicKey)
	if c.Remove {
		if p != nil {
			d.removePeer(p, edit)
		}
		return nil, false
	}
	if p == nil {
		if c.UpdateOnly {
			return nil, false
		}
		p = d.addPeer(c.PublicKey)
	}
	if c.ReplaceAllowedIPs {
		edit.removeAll(p)
	}
	p.allowed = slices.Grow(p.allowed, len(c.AllowedIPs))
	for _, prefix := range c.AllowedIPs {
		edit.insert(prefix, p)
	}
	for _, prefix := range c.RemoveAllowedIPs {
		edit.remove(prefix, p)
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lookedUp && !c.UpdateOnly {
		p.lookedUp = false // it is configured now, and stays
		d.lookups.gone()
	}
	if c.PresharedKey != nil {
		p.psk = *c.PresharedKey
	}
	wasSilent := p.persistent == 0 || !p.endpoint.IsValid()
	if c.Endpoint != nil {
		p.sendErr = nil
		e := *c.Endpoint
		e.Addr = EndpointOf(e.Addr).Addr
		p.setEndpoint(e)
		if !p.endpoint.IsValid() {
			p.endWaits(ErrNoEndpoint)
		}
	}
	if c.Timestamp != nil && c.Timestamp.After(p.lastTimestamp) {
		p.lastTimestamp = *c.Timestamp
	}
	if c.SentTimestamp != nil && c.SentTimestamp.After(p.ownTimestamp) {
		p.ownTimestamp = *c.SentTimestamp
	}
	if c.MTU != nil {
		p.mtu.Store(int32(*c.MTU))
	}
	if c.PersistentKeepalive != nil {
		p.persistent = uint16(*c.PersistentKeepalive / time.Second)
	}
	keepalive = wasSilent && p.persistent != 0 && p.endpoint.IsValid()
	if keepalive || p.staged.n != 0 {
		return p, keepalive
	}
	return nil, false
}

// addPeer makes a peer of which nothing is known but its key.
func (d *Device) addPeer(key PublicKey) *peer {
	var seed [4]byte
	d.random(seed[:])
	p := newPeer(key)
	p.timers.seed = binary.LittleEndian.Uint32(seed[:])
	d.peers.put(p)
	return p
}

// removePeer ends a peer. Who has a pointer to it finds it removed.
func (d *Device) removePeer(p *peer, edit *routesEdit[*peer]) {
	edit.removeAll(p)
	d.peers.remove(p)
	var out outbox
	p.mu.Lock()
	p.removed = true
	p.stop(&out)
	p.endWaits(ErrNoPeer)
	d.dropQueue(p, DropNoSession)
	p.forgetSecrets()
	d.forgetDeadline(p)
	lookedUp := p.lookedUp
	d.release(p, &out)
	if lookedUp {
		d.lookups.gone()
	}
}

// SetPeer gives a peer the configuration c, and adds the peer if it does not exist. The peer's session stays. SetPeer is
// Configure for one peer.
func (d *Device) SetPeer(c PeerConfig) error {
	return d.Configure(Change{Peers: []PeerChange{c.Change()}})
}

// RemovePeer removes a peer with its session. Removing a peer that does not exist does nothing.
func (d *Device) RemovePeer(key PublicKey) error {
	return d.Configure(Change{Peers: []PeerChange{{PublicKey: key, Remove: true}}})
}

// PeerOf returns the peer that a, the RemoteAddr of a connection through the tunnel, belongs to: Route of its IP address.
// A connection may outlive a change of the peer's AllowedIPs, so call PeerOf when the connection begins.
func (d *Device) PeerOf(a net.Addr) (key PublicKey, ok bool) {
	var at netip.AddrPort
	if has, ok := a.(interface{ AddrPort() netip.AddrPort }); ok { // *net.TCPAddr, *net.UDPAddr
		at = has.AddrPort()
	} else if a != nil {
		at, _ = netip.ParseAddrPort(a.String())
		if ip, err := netip.ParseAddr(a.String()); err == nil { // *net.IPAddr
			at = netip.AddrPortFrom(ip, 0)
		}
	}
	return d.Route(at.Addr())
}

// Route is the peer that packets to an address inside the tunnel go to, and may come from.
func (d *Device) Route(a netip.Addr) (key PublicKey, ok bool) {
	if p := d.allowed.routes().peer(a.Unmap().WithZone("")); p != nil {
		return p.key, true
	}
	return PublicKey{}, false
}

// PrivateKey returns the device's private key, clamped as the curve uses it, or the zero key if it has none. Status does not
// hold it.
func (d *Device) PrivateKey() PrivateKey {
	if id := d.identity.Load(); id != nil {
		return id.private
	}
	return PrivateKey{}
}

// PresharedKey returns the preshared key of a peer, zero meaning none, and whether the peer exists. PeerStatus does not
// hold it.
func (d *Device) PresharedKey(peer PublicKey) (psk PresharedKey, ok bool) {
	p := d.peers.find(peer)
	if p == nil {
		return psk, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.psk, !p.removed
}

// Status is what the device is at this moment.
func (d *Device) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := Status{
		ListenPort: d.port, FirewallMark: d.mark, Peers: d.peers.len(),
		Drops: d.drops.load(), ECNMismatches: d.ecnMismatches.Load(), CookieReplies: d.cookieReplies.Load(),
		UnderLoad: d.slow.loaded(d.now()),
	}
	if id := d.identity.Load(); id != nil {
		s.PublicKey = id.public
	}
	if r := d.running.Load(); r != nil {
		s.Up, s.ListenPort = true, r.socket.Load().port
	}
	return s
}

// Peers goes through the peers of this moment, in the order of their public keys. The device may be changed meanwhile.
func (d *Device) Peers() iter.Seq[PeerStatus] {
	return func(yield func(PeerStatus) bool) {
		for _, p := range d.peers.all() {
			if s, ok := d.peerStatus(p); ok && !yield(s) {
				return
			}
		}
	}
}

// Peer is what a peer is at this moment.
func (d *Device) Peer(key PublicKey) (s PeerStatus, ok bool) {
	if p := d.peers.find(key); p != nil {
		return d.peerStatus(p)
	}
	return s, false
}

func (d *Device) peerStatus(p *peer) (s PeerStatus, ok bool) {
	d.mu.Lock()
	allowed := slices.Clone(p.allowed)
	d.mu.Unlock()
	now, wall := d.now(), d.clock.Wall()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.removed {
		return s, false
	}
	s = PeerStatus{
		PublicKey: p.key, Endpoint: p.endpoint, AllowedIPs: allowed,
		PersistentKeepalive: time.Duration(p.persistent) * time.Second, MTU: int(p.mtu.Load()), LookedUp: p.lookedUp,
		Timestamp: p.lastTimestamp, SentTimestamp: p.ownTimestamp, Received: p.received, Sent: p.sent, Staged: p.staged.n,
		Initiating: p.handshake != nil && p.handshake.initiator, Attempts: int(p.timers.unanswered),
		Session: p.current.sendable(now, 1),
	}
	if p.lastHandshake != 0 {
		s.LastHandshake = time.Unix(0, p.handshakeWall)
	}
	if p.lastReceived != 0 {
		s.LastReceived = wall.Add(time.Duration(p.lastReceived - now))
	}
	if p.drops != nil {
		s.Drops = *p.drops
	}
	if s.Session {
		s.SessionAge = time.Duration(p.current.age(now))
	}
	if which, at := p.timers.next(); at != 0 {
		s.NextDeadline, s.NextReason = time.Duration(max(at-now, 0)), timerNames[which]
	}
	return s, true
}
