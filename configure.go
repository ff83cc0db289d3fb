package wireguard

import (
	"encoding/binary"
	"iter"
	"net"
	"net/netip"
	"time"

	"github.com/seed-86b749af/wireguard/internal/keyed"
)

// Configure carries out the whole change or nothing. If anything in the change is wrong, Configure changes nothing, and the error
// names everything that is wrong. If the port changes, Configure opens a socket on the new port before it closes the old socket.
// The device sends and receives packets throughout.
func (d *Device) Configure(c Change) error {
	var id *identity
	if c.PrivateKey != nil {
		id = newIdentity(*c.PrivateKey) // this costs an X25519, so the lock is not held
	}
	d.mu.Lock()
	r := d.running.Load()
	old, due, err := d.configure(&c, id)
	d.mu.Unlock()
	d.flushAll(due)
	if old != nil {
		d.finishSocket(r, old)
	}
	return err
}

// configure does the part of Configure that needs the configuration lock. The caller holds this lock. If the change has a private
// key, id is the identity with this key. configure returns the socket that was replaced, which the caller passes to finishSocket,
// and the peers to which the caller has to send something.
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

// changeSocket applies the ListenPort and the FirewallMark of c. Once checkPeers has accepted a change, only changeSocket can still
// fail.
func (d *Device) changeSocket(c *Change) (old *openSocket, err error) {
	port, mark := uint16(d.port.Load()), d.mark.Load()
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
		s, err := d.listen(r, port, mark)
		if err != nil {
			return nil, err
		}
		old = r.socket.Load()
		d.replace(r, s)
	case mark != d.mark.Load():
		if err := setMark(r.socket.Load().Socket, mark); err != nil {
			return nil, err
		}
	}
	if old != nil || mark != d.mark.Load() {
		for p := range d.allPeers() {
			p.mu.Lock()
			p.endpoint.forgetSource()
			p.mu.Unlock()
		}
	}
	d.port.Store(uint32(port))
	d.mark.Store(mark)
	return old, nil
}

// isOtherPort reports whether the device needs a new socket to use port. s is the present socket. If s is closed, because Wake
// could not open another socket, a new one is always needed.
func (d *Device) isOtherPort(port uint16, s *openSocket) bool {
	return s.isClosed() || port == 0 && d.port.Load() != 0 || port != 0 && port != s.port
}

// changeIdentity gives the device another identity, or none if id is nil.
func (d *Device) changeIdentity(id *identity) {
	d.identity.Store(id)
	now := d.now()
	var self []PeerChange
	for p := range d.allPeers() {
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
		if p.staged.N > 0 && !p.current.sendable(now, 1) { // otherwise the goroutine that made the session sends the staged packets
			p.initiate(now, false, &out)
		}
		d.release(p, &out)
	}
	d.changePeers(self, false)
}

// An edit is a change to the tables of peers and of allowed IPs.
type edit struct {
	peers  keyed.Edit[*peer]
	routes routesEdit[*peer]
}

// changePeers carries out changes that checkPeers has accepted. For other goroutines, all peers are added and removed at the same
// moment. All prefixes are added and removed together, too, but at a later moment. The caller holds mu.
func (d *Device) changePeers(changes []PeerChange, replace bool) (due []dueFlush) {
	e := &edit{d.peers.Edit(), d.allowed.edit()}
	if replace {
		named := make(map[PublicKey]bool, len(changes))
		for i := range changes {
			named[changes[i].PublicKey] = true
		}
		for p := range d.allPeers() {
			if !named[p.key] {
				d.removePeer(p, e)
			}
		}
	}
	for i := range changes {
		if p, keepalive := d.changePeer(&changes[i], e); p != nil {
			due = append(due, dueFlush{p, keepalive})
		}
	}
	d.peers.Publish(&e.peers)
	e.routes.publish()
	return due
}

// changePeer carries out one change. It returns the peer if the caller has to send staged packets or a keepalive to the peer, and
// nil otherwise. keepalive says whether a keepalive is due.
func (d *Device) changePeer(c *PeerChange, e *edit) (due *peer, keepalive bool) {
	p := e.peers.Find(c.PublicKey)
	if c.Remove {
		if p != nil {
			d.removePeer(p, e)
		}
		return nil, false
	}
	if p == nil {
		if c.UpdateOnly {
			return nil, false
		}
		p = d.addPeer(c.PublicKey, e)
	}
	e.routes.change(c.AllowedIPs, c.RemoveAllowedIPs, c.ReplaceAllowedIPs, p)

	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lookedUp && !c.UpdateOnly {
		p.lookedUp = false // the peer is configured now, so the device no longer forgets it
		d.lookups.Admit(-1)
	}
	if c.PresharedKey != nil {
		p.psk = *c.PresharedKey
	}
	wasSilent := p.persistent == 0 || !p.endpoint.IsValid()
	if c.Endpoint != nil {
		p.sendErr = nil
		to := *c.Endpoint
		to.Addr = EndpointOf(to.Addr).Addr
		p.setEndpoint(to)
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
	if keepalive || p.staged.N != 0 {
		return p, keepalive
	}
	return nil, false
}

// addPeer adds a peer of which only the public key is known.
func (d *Device) addPeer(key PublicKey, e *edit) *peer {
	var seed [4]byte
	d.random(seed[:])
	p := newPeer(key)
	p.timers.seed = binary.LittleEndian.Uint32(seed[:])
	d.serial++
	p.serial = d.serial
	e.peers.Put(p)
	return p
}

// removePeer removes a peer. A goroutine that still has a pointer to the peer finds that p.removed is true.
func (d *Device) removePeer(p *peer, e *edit) {
	e.routes.removeAll(p)
	e.peers.Delete(p)
	var out outbox
	p.mu.Lock()
	p.removed = true
	p.stop(&out)
	p.endWaits(ErrNoPeer)
	d.dropQueue(p, DropNoSession)
	p.forgetSecrets()
	d.forgetDeadline(p)
	if p.lookedUp {
		d.lookups.Admit(-1)
	}
	d.release(p, &out)
}

// SetPeer gives a peer the configuration c, and adds the peer if it does not exist. A peer that exists keeps its session. SetPeer
// calls Configure with a change of one peer.
func (d *Device) SetPeer(c PeerConfig) error {
	return d.Configure(Change{Peers: []PeerChange{c.Change()}})
}

// RemovePeer removes a peer and its session. Removing a peer that does not exist does nothing.
func (d *Device) RemovePeer(key PublicKey) error {
	return d.Configure(Change{Peers: []PeerChange{{PublicKey: key, Remove: true}}})
}

// PeerOf returns the peer at the other end of a connection through the tunnel. a is the RemoteAddr of the connection. PeerOf
// returns what Route returns for the IP address in a. Call PeerOf when the connection begins, because the address may belong to
// another peer after a change of AllowedIPs.
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

// Route returns the peer that has the address a inside the tunnel: packets to a are sent to this peer, and only this
// peer may send packets from a.
func (d *Device) Route(a netip.Addr) (key PublicKey, ok bool) {
	if p := d.allowed.routes().peer(a.Unmap().WithZone("")); p != nil {
		return p.key, true
	}
	return PublicKey{}, false
}

// PrivateKey returns the device's private key, clamped as the curve uses it, or the zero key if the device has none. Status
// does not contain the private key.
func (d *Device) PrivateKey() PrivateKey {
	if id := d.identity.Load(); id != nil {
		return id.private
	}
	return PrivateKey{}
}

// PresharedKey returns the preshared key of a peer, and whether the peer exists. The key is zero if the peer has none. PeerStatus
// does not contain the key.
func (d *Device) PresharedKey(peer PublicKey) (psk PresharedKey, ok bool) {
	p := d.peers.Find(peer)
	if p == nil {
		return psk, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.psk, !p.removed
}

// Status describes the device at this moment. It never waits for Configure. While Configure runs, each field shows the
// device either before or after the change.
func (d *Device) Status() Status {
	s := Status{
		ListenPort: uint16(d.port.Load()), FirewallMark: d.mark.Load(), Peers: d.peers.Len(),
		Drops: d.drops.load(), ECNMismatches: d.ecnMismatches.Load(), CookieReplies: d.drops[DropCookieRequired].Load(),
		UnderLoad: d.slow.loaded(d, d.now()),
	}
	if id := d.identity.Load(); id != nil {
		s.PublicKey = id.public
	}
	if r := d.running.Load(); r != nil {
		s.Up, s.ListenPort = true, r.socket.Load().port
	}
	return s
}

// Peers returns the peers that exist when the loop begins and still exist when the loop reaches them, in the order of their public
// keys. The device may be changed during the loop, by the body of the loop as well as by other goroutines. Each step costs the
// same, however many peers there are.
func (d *Device) Peers() iter.Seq[PeerStatus] { return d.PeersAfter(PublicKey{}) }

// PeersAfter returns the peers whose public keys are greater than key, as Peers does. A program that shows one page of peers at a
// time passes the last key of the previous page. A peer that exists all the time is then on exactly one page, even if other peers
// are added or removed meanwhile. The order of the keys is that of bytes.Compare.
func (d *Device) PeersAfter(key PublicKey) iter.Seq[PeerStatus] {
	return func(yield func(PeerStatus) bool) {
		for p := range d.peers.After(key) {
			if s, ok := d.peerStatus(p); ok && !yield(s) {
				return
			}
		}
	}
}

// Peer describes a peer at this moment, and reports whether the peer exists.
func (d *Device) Peer(key PublicKey) (s PeerStatus, ok bool) {
	if p := d.peers.Find(key); p != nil {
		return d.peerStatus(p)
	}
	return s, false
}

// AllowedIPs returns the prefixes that belong to a peer when the loop begins, in the order of netip.Prefix.Compare. A peer that
// does not exist has no prefixes. Each step costs the same, however many prefixes there are.
func (d *Device) AllowedIPs(peer PublicKey) iter.Seq[netip.Prefix] {
	return d.AllowedIPsAfter(peer, netip.Prefix{})
}

// AllowedIPsAfter returns the prefixes of a peer that are greater than prefix, as AllowedIPs does. A program that shows one page
// of prefixes at a time passes the last prefix of the previous page.
func (d *Device) AllowedIPsAfter(peer PublicKey, prefix netip.Prefix) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		if p := d.peers.Find(peer); p != nil {
			d.allowed.of(p, prefix)(yield)
		}
	}
}

func (d *Device) peerStatus(p *peer) (s PeerStatus, ok bool) {
	now, wall := d.now(), d.clock.Wall()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.removed {
		return s, false
	}
	s = PeerStatus{
		PublicKey: p.key, Endpoint: p.endpoint, AllowedIPs: int(p.prefixes.Load()),
		PersistentKeepalive: time.Duration(p.persistent) * time.Second, MTU: int(p.mtu.Load()), LookedUp: p.lookedUp,
		Timestamp: p.lastTimestamp, SentTimestamp: p.ownTimestamp, Received: p.received, Sent: p.sent, Staged: int(p.staged.N),
		Initiating: p.handshake != nil && p.handshake.initiator, Attempts: int(p.timers.unanswered),
		Session: p.current.sendable(now, 1), Unopened: p.unopened, Unsent: p.sendErr != nil, CookieAsked: p.cookie.valid(now),
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
