package wireguard

import "github.com/seed-86b749af/wireguard/internal/admission"

// lookUp asks the program for the peer that sent the initiation. A worker calls lookUp.
func (d *Device) lookUp(in *initiation) {
	key, r := in.key, in.r // once Put has the initiation, other goroutines may change it
	outcome := d.lookups.Put(key, in, func(waiting *initiation) bool {
		newer := in.timestamp.After(waiting.timestamp) // otherwise the initiation that has just arrived is a replay
		if newer {
			waiting.wipe()
		}
		return newer
	})
	switch outcome {
	case admission.Asks:
		d.wg.Go(func() { d.askFor(key, r) })
	case admission.Full:
		in.wipe()
		d.drops.add(DropLookupFull, 1)
	case admission.Stale:
		in.wipe()
		d.drops.add(DropOldTimestamp, 1)
	}
}

// askFor calls Config.Lookup and adds the peer that it returns. The call may take as long as the program likes.
func (d *Device) askFor(key PublicKey, r *running) {
	c, err := d.lookup(r.ctx, key)
	if err == nil && c.PublicKey != key {
		err = refusal(DropUnknownPeer)
	}
	if err == nil && !d.lookups.Waiting(key).timestamp.After(c.Timestamp) {
		err = refusal(DropOldTimestamp) // a recorded initiation must not add the peer again
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
	d.lookups.End(key).wipe()
}

// addLookedUp adds a peer that Lookup supplied, unless the program configured this peer meanwhile. A worker then answers the peer's
// initiation, which stays in d.lookups until then.
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
	p := d.peers.Find(c.PublicKey)
	added := p == nil
	if added {
		d.changePeers(change, false)
		d.lookups.Admit(1)
		p = d.peers.Find(c.PublicKey)
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
	stays := p.current != nil || p.next != nil || p.handshake != nil // a new exchange began meanwhile
	if !gone && stays && !p.timers.pending(timerWipe) {
		p.timers.set(timerWipe, d.now()+rejectAfterTime)
	}
	d.release(p, &out)
	if gone || stays {
		return
	}
	d.changePeers([]PeerChange{{PublicKey: p.key, Remove: true}}, false)
	p.mu.Lock()
	defer p.mu.Unlock()
	d.announce(Event{Kind: EventPeerForgotten, Time: d.clock.Wall(), Peer: p.key,
		Timestamp: p.lastTimestamp, SentTimestamp: p.ownTimestamp}) // no newer timestamps follow, because the peer is removed
}
