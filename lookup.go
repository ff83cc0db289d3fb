package wireguard

import "sync"

// lookups are the calls of Config.Lookup under way, and the number of peers that came from it.
type lookups struct {
	max, maxPeers int // of pending, and of peers with those

	mu      sync.Mutex // guards all below; nothing is taken while it is held
	pending map[PublicKey]*pendingLookup
	peers   int
}

// A pendingLookup is a lookup under way, and the newest initiation that waits for it.
type pendingLookup struct {
	timestamp Timestamp
	message   handshakeMessage
}

// begin notes that m, from a stranger, waits for a lookup, and reports whether to start one. If a lookup is under way, m
// replaces the message that waits for it, unless that message is newer: then m is a recording.
func (l *lookups) begin(key PublicKey, m *handshakeMessage, ts Timestamp) (start, full bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	waiting, ok := l.pending[key]
	switch {
	case ok && !ts.After(waiting.timestamp):
		return false, false
	case !ok && (len(l.pending) >= l.max || l.peers+len(l.pending) >= l.maxPeers):
		return false, true
	case !ok:
		if l.pending == nil {
			l.pending = make(map[PublicKey]*pendingLookup)
		}
		waiting = new(pendingLookup)
		l.pending[key] = waiting
	}
	waiting.timestamp, waiting.message = ts, *m
	waiting.message.verified = true
	return !ok, false
}

// waiting is the timestamp of the initiation that waits for a lookup.
func (l *lookups) waiting(key PublicKey) Timestamp {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pending[key].timestamp
}

// end ends a lookup and returns the message that waited for it.
func (l *lookups) end(key PublicKey, added bool) *handshakeMessage {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.pending[key]
	delete(l.pending, key)
	if added {
		l.peers++
	}
	return &p.message
}

// gone notes that a peer that came from a lookup was removed.
func (l *lookups) gone() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.peers--
}

// looksUp reports whether a stranger with this key may be looked up, and so is worth a second X25519.
func (d *Device) looksUp(key PublicKey, id *identity) bool {
	return d.lookup != nil && key != id.public
}

// lookUp asks the program for the peer that sent m, an authentic initiation with timestamp ts. A worker calls it.
func (d *Device) lookUp(key PublicKey, m *handshakeMessage, ts Timestamp, r *running) {
	start, full := d.lookups.begin(key, m, ts)
	if full {
		d.drops.add(DropLookupFull, 1)
	}
	if start {
		d.wg.Add(1)
		go d.askFor(key, r)
	}
}

// askFor calls Lookup, which may take as long as the program likes.
func (d *Device) askFor(key PublicKey, r *running) {
	defer d.wg.Done()
	c, err := d.lookup(r.ctx, key)
	added := false
	if err == nil && c.PublicKey == key && !d.lookups.waiting(key).After(c.Timestamp) {
		// A recording must not add the peer again.
		d.lookups.end(key, false)
		d.drops.add(DropOldTimestamp, 1)
		return
	}
	if err == nil && c.PublicKey == key {
		added, err = d.addLookedUp(&c, r)
	}
	m := d.lookups.end(key, added)
	if err != nil || d.running.Load() != r || d.peers.find(key) == nil {
		d.drops.add(DropUnknownPeer, 1)
		d.debug("lookup found no peer", "peer", key, "err", err)
		return
	}
	d.slow.enqueue(d, m)
}

// addLookedUp adds a peer that Lookup supplied, unless it was configured meanwhile.
func (d *Device) addLookedUp(c *PeerConfig, r *running) (added bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change := []PeerChange{c.Change()}
	if err := checkPeers(change, d.identity.Load().publicKey()); err != nil {
		return false, err
	}
	if d.running.Load() != r || d.peers.find(c.PublicKey) != nil {
		return false, nil
	}
	d.changePeers(change, false)
	p := d.peers.find(c.PublicKey)
	var out outbox
	p.mu.Lock()
	p.lookedUp = true
	p.timers.set(timerWipe, d.now()+rejectAfterTime)
	d.release(p, &out)
	return true, nil
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
	d.subscriptions.publish(Event{Kind: EventPeerForgotten, Time: d.clock.Wall(), Peer: p.key,
		Timestamp: p.lastTimestamp, SentTimestamp: p.ownTimestamp}) // the last ones: the peer is removed
}
