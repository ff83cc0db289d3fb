package wireguard

import "github.com/seed-86b749af/wireguard/internal/staged"

// A peerState is what the protocol keeps about one peer. It is small while the peer is idle: the larger parts are behind
// pointers, which are nil while unused and are dropped when the session is wiped.
//
// The methods of this file and of timers.go make the protocol's decisions. They take no lock, read no clock and send
// nothing: the caller holds the peer's mutex, passes the time, and carries out what they leave in the outbox.
type peerState struct {
	key PublicKey // never changes

	psk        PresharedKey
	persistent uint16 // seconds between persistent keepalives; 0 means off
	lookedUp   bool   // came from Config.Lookup
	removed    bool   // no longer in the device: a goroutine that still has the pointer drops the peer's packets
	initiating bool   // an initiation was asked for and is not made yet
	renewing   bool   // renew asked for that initiation
	making     bool   // an initiation is being made: between beginInitiation and commitInitiation, or an error
	unopened   bool   // the last initiation got an answer that was not authentic

	endpoint Endpoint
	timers   timers
	staged   staged.Queue

	keypairs
	handshake *handshake // the exchange under way; nil if there is none

	static         secret    // the shared secret of the two static keys, once it was computed for staticOf
	staticOf       *identity // the identity for which static was computed
	cookie         cookieJar
	lastTimestamp  Timestamp        // newest initiation accepted
	ownTimestamp   Timestamp        // newest initiation sent
	lastInitiation int64            // when an initiation was accepted
	lastSent       int64            // when an initiation or a response was sent
	lastHandshake  int64            // when a session was confirmed
	lastReceived   int64            // when an authentic message was received
	recent         []sentInitiation // sent in the last 5 s, oldest first; it may still hold older ones
	sessions       uint32           // how many sessions were confirmed; wraps
	heard          uint32           // how many authentic packets were received; wraps

	drops *Drops // nil until something is dropped
}

// An outbox collects what is to be done once the peer's mutex is released.
type outbox struct {
	initiate  bool         // make an initiation and send it
	flush     bool         // send the staged packets
	keepalive bool         // send the staged packets, or an empty one if there are none
	forget    bool         // remove the peer
	revived   bool         // a message arrived on the current session, which seemed dead
	freed     []uint32     // session indices that are free again
	dropped   staged.Queue // staged packets that were given up
	events    []outEvent
}

type outEvent struct {
	kind     EventKind
	endpoint Endpoint
}

func (out *outbox) event(k EventKind, e Endpoint) { out.events = append(out.events, outEvent{k, e}) }

func (out *outbox) free(index uint32) { out.freed = append(out.freed, index) }

func (out *outbox) freeKeypairs(dropped ...*keypair) {
	for _, k := range dropped {
		if k != nil {
			out.free(k.local)
		}
	}
}

// dropStaged gives up the staged packets.
func (p *peerState) dropStaged(out *outbox) {
	if p.staged.N > 0 {
		p.drop(DropNoSession, int(p.staged.N))
		out.dropped, p.staged = p.staged, staged.Queue{}
	}
}

func (p *peerState) drop(r DropReason, n int) {
	if p.drops == nil {
		p.drops = new(Drops)
	}
	p.drops[r] += uint64(n)
}

// initiate asks for an initiation unless one is being made. It is called if a packet has no usable key, the key is
// old, data went unanswered, or an attempt is repeated. retry says that the initiation continues a series of attempts.
// Otherwise the count of attempts restarts at zero, even during a series.
//
// No initiation is sent "within 5 s of the last one", or within 5 s of a response that was sent. initiate postpones such an
// initiation until the 5 s are over, and does not forget it, because the reason for it still exists; see putOff.
func (p *peerState) initiate(now int64, retry bool, out *outbox) {
	if !retry {
		p.timers.attempts = 0
	}
	if !p.endpoint.IsValid() || p.initiating {
		return
	}
	if p.sentLately(now) {
		p.putOff(now)
		return
	}
	if !retry && p.lastSent != 0 && p.timers.at[timerRetransmit] > now {
		return // the timer asks again; if sent now, the initiations of two ends that both have packets would keep crossing
	}
	p.initiating, out.initiate = true, true
}

// putOff schedules an initiation for 5 s after the last initiation or response that was sent.
func (p *peerState) putOff(now int64) {
	if !p.timers.pending(timerRetransmit) {
		p.timers.set(timerRetransmit, p.lastSent+rekeyTimeout+p.timers.jitter(now))
	}
}

func (p *peerState) sentLately(now int64) bool {
	return p.lastSent != 0 && now-p.lastSent < rekeyTimeout
}

// beginInitiation is called when an initiation that was asked for is about to be made. It returns the timestamp to
// send, or false if the initiation is no longer wanted.
func (p *peerState) beginInitiation(now int64, wall Timestamp) (ts Timestamp, ok bool) {
	renewing := p.mayRenew(now) && p.renewing // in this order, since mayRenew also keeps p.recent short
	p.initiating, p.renewing = false, false
	if p.removed || !p.endpoint.IsValid() {
		return ts, false
	}
	if p.sentLately(now) && !renewing { // a response was sent after the initiation was asked for
		p.putOff(now)
		return ts, false
	}
	p.lastSent, p.making = now, true
	p.recent = append(p.recent, sentInitiation{p.endpoint, now})
	if ts = wall; !ts.After(p.ownTimestamp) {
		ts = p.ownTimestamp.next()
	}
	p.ownTimestamp = ts
	return ts, true
}

// commitInitiation makes h the exchange under way and signs its message m.
func (p *peerState) commitInitiation(h *handshake, m []byte, now int64, out *outbox) {
	p.endHandshake(out)
	p.handshake = h
	p.unopened, p.making = false, false
	if n := len(p.recent); n > 0 {
		p.recent[n-1].to = p.endpoint // which may have changed since beginInitiation
	}
	p.cookie.sign(m, p.key, now)
	p.authenticSent(now)
	p.initiated(now)
}

// acceptInitiation makes h, the state after an authentic initiation with timestamp ts, the exchange under way. If it
// refuses, it returns the reason.
func (p *peerState) acceptInitiation(h *handshake, ts Timestamp, from Endpoint, now int64, out *outbox) (r DropReason, ok bool) {
	if !ts.After(p.lastTimestamp) {
		return DropOldTimestamp, false
	}
	if p.lastInitiation != 0 && now-p.lastInitiation < initiationInterval {
		return DropTooSoon, false
	}
	p.lastTimestamp, p.lastInitiation = ts, now
	tries := p.timers.pending(timerRetransmit) || p.initiating
	if own := p.handshake; tries && own != nil && own.initiator && own.id.publicKey().after(p.key) {
		// The two initiations cross. Each end drops its own exchange, so neither response will be accepted. The end
		// with the greater key lets the other one retry first. An initiation that was given up does not count.
		p.timers.set(timerRetransmit, now+rekeyTimeout+maxJitter+p.timers.jitter(now))
	}
	p.endHandshake(out)
	p.handshake = h
	p.moveTo(from, out)
	p.lastSent = now // the response is being made
	return 0, true
}

// commitResponse ends the exchange under way, as responder, and signs the response m.
func (p *peerState) commitResponse(k *keypair, m []byte, now int64, out *outbox) {
	p.handshake.wipe()
	p.handshake = nil
	out.freeKeypairs(p.addResponded(k))
	p.sessionDerived(now)
	p.cookie.sign(m, p.key, now)
	p.authenticSent(now)
	p.lastSent = now
	p.authenticReceived(now)
}

// commitSession ends the exchange under way, as initiator, when its response arrives. The staged packets are sent on the
// new session at once, or an empty packet if there are none. Either confirms the session to the responder.
func (p *peerState) commitSession(k *keypair, from Endpoint, now int64, out *outbox) {
	p.handshake.wipe()
	p.handshake = nil // its index becomes the keypair's
	out.freeKeypairs(p.addInitiated(k))
	p.moveTo(from, out)
	p.sessionDerived(now)
	p.sessionConfirmed(now, out)
	p.authenticReceived(now)
	out.keepalive = true
}

// endHandshake forgets the exchange under way.
func (p *peerState) endHandshake(out *outbox) {
	if h := p.handshake; h != nil {
		if h.initiator {
			out.free(h.local)
		}
		h.wipe() // a worker that computes on it has a copy
		p.handshake = nil
	}
}

// moveTo is called with the endpoint of an authentic packet that is not a replay: "the peer's endpoint is that of the last
// authentic packet" (whitepaper, section 2.1).
func (p *peerState) moveTo(from Endpoint, out *outbox) {
	if !p.endpoint.SamePlace(from) {
		out.event(EventEndpointMoved, from)
	}
	p.endpoint = from
}

// receive is called when packets were authenticated with k, and before they are delivered. The caller leaves out
// replays, which are not authentic. data says that at least one packet is more than a keepalive.
func (p *peerState) receive(k *keypair, from *Endpoint, data bool, now int64, out *outbox) {
	if p.endpoint != *from {
		p.moveTo(*from, out)
	}
	if dropped, confirmed := p.confirm(k); confirmed {
		out.freeKeypairs(dropped)
		if !k.retired { // nothing is sent on a retired keypair, and callers that wait for a session go on waiting
			p.sessionConfirmed(now, out)
			out.flush = true
		}
	}
	p.heardOn(k, now, out)
	if c := p.current; !p.timers.lastMinute && c != nil && c.initiator && !c.retired && c.age(now) >= rekeyOnReceive {
		p.timers.lastMinute = true
		p.initiate(now, false, out)
	}
	p.authenticReceived(now)
	if data {
		p.dataReceived(now)
	}
}

// sending is called before n messages are numbered, and reports whether the current session can carry them. If it cannot,
// sending asks for a new one.
func (p *peerState) sending(n int, now int64, out *outbox) bool {
	if !p.current.sendable(now, n) {
		p.initiate(now, false, out)
		return false
	}
	p.authenticSent(now)
	return true
}

// flushOrInitiate is called when a packet was staged behind others.
func (p *peerState) flushOrInitiate(now int64, out *outbox) {
	if p.current.sendable(now, 1) {
		out.flush = true
	} else {
		p.initiate(now, false, out)
	}
}

// sentOn is called after messages were sent. data says that at least one was more than a keepalive and was sent without an
// error. heard is p.heard from before the send, because an answer may arrive before sentOn is called.
func (p *peerState) sentOn(data bool, heard uint32, now int64, out *outbox) {
	c := p.current
	if data && p.heard == heard {
		p.dataSent(now)
		if c != nil && c.asked == 0 {
			c.asked = now
		}
	}
	if c != nil && !c.retired && (c.counter >= rekeyAfterMessages || c.initiator && c.age(now) >= rekeyAfterTime) {
		p.initiate(now, false, out)
	}
}

// wake is called when the machine slept or its network changed. If a session can still be used, a packet on it shows
// the peer where this device is now, and the session is renewed if that is due. If there is no such session, a new one
// is made if packets wait or a persistent keepalive is set.
func (p *peerState) wake(now int64, out *outbox) {
	p.endpoint.forgetSource()
	switch c := p.current; {
	case c.sendable(now, 1):
		out.keepalive = true
		if c.initiator && c.age(now) >= rekeyAfterTime {
			p.initiate(now, false, out)
		}
	case p.persistent != 0 || p.staged.N != 0:
		out.keepalive = true
	}
}

// wipe forgets all keys: "after 540 s without a new one, ephemeral keys are zeroed".
func (p *peerState) wipe(out *outbox) {
	p.endHandshake(out)
	out.freeKeypairs(p.current, p.previous, p.next)
	p.keypairs = keypairs{}
	p.drops, p.recent = nil, nil
	p.timers.cancel(timerWipe)
	p.timers.cancel(timerExpiry)
}

// stop is called when the device goes down and when the peer is removed. It drops the staged packets, the sessions and the
// timers.
func (p *peerState) stop(out *outbox) {
	p.dropStaged(out) // first, since wipe drops the peer's counts; the caller counts out.dropped for the device
	p.wipe(out)
	p.timers = timers{seed: p.timers.seed}
	p.lastSent = 0
}

// forgetSecrets is called once the peer is removed. The rest of the peer may stay in memory for as long as a goroutine has a
// pointer to it.
func (p *peerState) forgetSecrets() {
	p.psk = PresharedKey{}
	p.static, p.staticOf = secret{}, nil
	p.cookie = cookieJar{}
}

// retire is called when the device gets another identity, or loses it. Sessions of the old identity still receive until
// they expire, but no longer send, and the next handshake need not wait. The device has its new identity before all
// peers are told, so a session or an exchange may already belong to the new identity. These stay, and then the limit of
// one initiation in 5 s stays too.
func (p *peerState) retire(id *identity, out *outbox) {
	isNew := func(of *identity) bool { return of == id && id != nil }
	made := false
	if h := p.handshake; h != nil && isNew(h.id) {
		made = true
	} else {
		p.endHandshake(out)
	}
	for _, k := range [...]*keypair{p.current, p.previous, p.next} {
		switch {
		case k == nil:
		case isNew(k.id):
			made = true
		default:
			k.retired, k.id = true, nil
		}
	}
	if !made {
		p.lastSent, p.recent = 0, nil
	}
	if !isNew(p.staticOf) {
		p.static, p.staticOf = secret{}, nil
	}
}
