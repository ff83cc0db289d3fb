package wireguard

import "sync"

// lookups are the calls of Config.Lookup under way, and the number of peers that came from it.
type lookups struct {
	max, maxPeers int // of pending, and of peers with those

	mu      sync.Mutex                // guards all below; nothing is taken while it is held
	pending map[PublicKey]*initiation // the newest initiation that waits for each lookup, until it is answered
	peers   int
}

// takes reports whether an initiation of the stranger with this key may wait for a lookup, and so is worth a second X25519.
func (l *lookups) takes(key PublicKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pending[key] != nil || l.hasRoom()
}

// hasRoom reports whether another lookup may begin. mu is held.
func (l *lookups) hasRoom() bool {
	return len(l.pending) < l.max && l.peers+len(l.pending) < l.maxPeers
}

// crowded reports whether so many lookups are under way that the device is under load: an eighth of what it allows.
func (l *lookups) crowded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending) > 0 && len(l.pending) >= l.max/8
}

// begin notes that in waits for a lookup, and reports whether to start one. If a lookup is under way, in replaces the
// initiation that waits for it, unless that initiation is newer: then in is a recording.
func (l *lookups) begin(in *initiation) (start bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	waiting := l.pending[in.key]
	switch {
	case waiting == nil && !l.hasRoom():
		return false, refusal(DropLookupFull)
	case waiting == nil:
		if l.pending == nil {
			l.pending = make(map[PublicKey]*initiation)
		}
	case !in.timestamp.After(waiting.timestamp):
		return false, refusal(DropOldTimestamp)
	default:
		waiting.wipe()
	}
	l.pending[in.key] = in
	return waiting == nil, nil
}

// waiting is the timestamp of the initiation that waits for a lookup.
func (l *lookups) waiting(key PublicKey) Timestamp {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pending[key].timestamp
}

// end ends a lookup and returns the initiation that waited for it.
func (l *lookups) end(key PublicKey) *initiation {
	l.mu.Lock()
	defer l.mu.Unlock()
	in := l.pending[key]
	delete(l.pending, key)
	return in
}

// count notes that n peers came from lookups, or, if n is negative, that so many of these are gone.
func (l *lookups) count(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.peers += n
}

// lookUp asks the program for the peer that sent in. A worker calls it.
func (d *Device) lookUp(in *initiation) {
	key, r := in.key, in.r // begin shares in
	start, err := d.lookups.begin(in)
	if err != nil {
		in.wipe()
		d.drops.add(reasonOf(err), 1)
	}
	if start {
		d.wg.Go(func() { d.askFor(key, r) })
	}
}

// askFor calls Lookup, which may take as long as the program likes.
func (d *Device) askFor(key PublicKey, r *running) {
	c, err := d.lookup(r.ctx, key)
	if err == nil && c.PublicKey != key {
		err = refusal(DropUnknownPeer)
	}
	if err == nil && !d.lookups.waiting(key).After(c.Timestamp) {
		err = refusal(DropOldTimestamp) // a recording must not add the peer again
	}
	if err == nil {
		err = d.addLookedUp(&c, r)
	}
	switch {
	case err == nil:
		return
	case err == refusal(DropOldTimestamp):
		d.drops.add(DropOldTimestamp, 1)
	default:
		d.drops.add(DropUnknownPeer, 1)
		d.debug("lookup found no peer", "peer", key, "err", err)
	}
	d.lookups.end(key).wipe()
}

// addLookedUp adds a peer that Lookup supplied, unless it was configured meanwhile. A worker answers its initiation, which
// takes a place among the lookups until then.
func (d *Device) addLookedUp(c *PeerConfig, r *running) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	change := []PeerChange{c.Change()}
	if err := checkPeers(change, d.identity.Load().publicKey()); err != nil {
		return err
	}
	if d.running.Load() != r {
		return ErrDown
	}
	p := d.peers.find(c.PublicKey)
	added := p == nil
	if added {
		d.changePeers(change, false)
		d.lookups.count(1)
		p = d.peers.find(c.PublicKey)
	}
	var out outbox
	p.mu.Lock()
	if p.found = true; added {
		p.lookedUp = true
		p.timers.set(timerWipe, d.now()+rejectAfterTime)
	}
	d.release(p, &out)
	return nil
}

// forget removes a peer that Lookup supplied and that no longer has a session.
func (d *Device) forget(p *peer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out outbox
	p.mu.Lock()
	gone := p.removed || !p.lookedUp
	stays := p.current != nil || p.next != nil || p.handshake != nil // a new exchange came meanwhile
	if !gone && stays && !p.timers.pending(timerWipe) {
		p.timers.set(timerWipe, d.now()+rejectAfterTime)
	}
	d.release(p, &out)
	if gone || stays {
		return
	}
	e := d.edit()
	d.removePeer(p, e)
	e.publish(d)
	p.mu.Lock()
	defer p.mu.Unlock()
	d.announce(Event{Kind: EventPeerForgotten, Time: d.clock.Wall(), Peer: p.key,
		Timestamp: p.lastTimestamp, SentTimestamp: p.ownTimestamp}) // the last ones: the peer is removed
}
