package wireguard

import "github.com/seed-86b749af/wireguard/internal/staged"

// A peerState is the protocol's state for one peer. It is small while the peer is idle, because its larger parts are behind
// pointers. A pointer is nil while its part is not used, and becomes nil again when the sessions are wiped.
//
// The methods of this file and of timers.go make the protocol's decisions. They take no lock, read no clock and send nothing. The
// caller holds the peer's mutex, passes the time, and carries out the requests that the methods leave in the outbox.
type peerState struct {
	key PublicKey // never changes

	psk        PresharedKey
	persistent uint16 // seconds between persistent keepalives; 0 means off
	lookedUp   bool   // whether Config.Lookup supplied the peer
	removed    bool   // the peer is no longer in the device: a goroutine that still has the pointer drops the peer's packets
	initiating bool   // whether an initiation was asked for and is not made yet
	renewing   bool   // whether the method renew asked for the initiation that is not made yet
	making     bool   // an initiation is being made: true from beginInitiation until commitInitiation, or until an error
	unopened   bool   // the last initiation got an answer that was not authentic

	endpoint Endpoint
	timers   timers
	staged   staged.Queue

	keypairs
	handshake *handshake // the exchange under way; nil if there is none

	static         secret    // the X25519 of the static keys of this device and the peer; not computed yet if staticOf is nil
	staticOf       *identity // the identity for which static was computed
	cookie         cookieJar
	lastTimestamp  Timestamp       // the timestamp of the newest initiation that was accepted from the peer
	ownTimestamp   Timestamp       // the timestamp of the newest initiation that was sent to the peer
	lastInitiation int64           // when the last initiation from the peer was accepted
	lastSent       int64           // when the last initiation or response was sent
	lastHandshake  int64           // when the last session was confirmed
	lastReceived   int64           // when the last authentic message was received
	recent         *sentInitiation // the last initiation sent, in a list with those before it; nil if none was sent lately
	sessions       uint32          // the number of sessions that were confirmed; wraps to 0
	heard          uint32          // how often authentic messages were received, where a run of messages counts once; wraps to 0

	drops *Drops // nil until something is dropped
}

// An outbox collects what the methods of a peerState ask their caller to do. Device.release carries out these requests.
type outbox struct {
	initiate  bool         // make an initiation and send it
	flush     bool         // send the staged packets
	keepalive bool         // send the staged packets, or an empty one if there are none
	forget    bool         // remove the peer
	revived   bool         // a message arrived on the current session, which until then did not count as live; see live
	freed     []uint32     // session indices that are free again
	dropped   staged.Queue // staged packets that are dropped
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

// dropStaged drops the staged packets.
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

// initiate asks for an initiation, unless one was asked for already. It is called if no session can send a packet, if the session
// is old, if data went unanswered, or to repeat an attempt. If retry is true, the initiation continues a series of attempts. If
// retry is false, the count of attempts restarts at zero, even during a series.
//
// After an initiation or a response was sent, no initiation is sent for 5 s (REKEY_TIMEOUT). If initiate is called in that time, it
// postpones the initiation until the time is over; see putOff. It does not drop the request, because the reason for the initiation
// still exists.
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
		return // timerRetransmit asks again; without the wait, initiations of two peers that both have packets would keep crossing
	}
	p.initiating, out.initiate = true, true
}

// putOff schedules an initiation for 5 s after the last initiation or response was sent, unless one is scheduled already.
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
	renewing := p.mayRenew(now) && p.renewing // mayRenew is called first, because it also deletes old entries of p.recent
	p.initiating, p.renewing = false, false
	if p.removed || !p.endpoint.IsValid() {
		return ts, false
	}
	if p.sentLately(now) && !renewing { // a response was sent after the initiation was asked for
		p.putOff(now)
		return ts, false
	}
	p.lastSent, p.making = now, true
	p.recent = &sentInitiation{p.endpoint, now, p.recent}
	if ts = wall; !ts.After(p.ownTimestamp) {
		ts = p.ownTimestamp.next()
	}
	p.ownTimestamp = ts
	return ts, true
}

// commitInitiation makes h the exchange under way, and puts the MACs into its message m.
func (p *peerState) commitInitiation(h *handshake, m []byte, now int64, out *outbox) {
	p.endHandshake(out)
	p.handshake = h
	p.unopened, p.making = false, false
	if p.recent != nil {
		p.recent.to = p.endpoint // the endpoint may have changed since beginInitiation
	}
	p.cookie.sign(m, p.key, now)
	p.authenticSent(now)
	p.initiated(now)
}

// acceptInitiation makes h the exchange under way. h is the state after an authentic initiation with the timestamp ts. If
// acceptInitiation refuses the initiation, it returns the reason and false.
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
		// The initiations of the two peers cross. Each peer drops the exchange that it began, so neither will accept the response
		// of the other. The peer with the greater public key retries later, so that the other one retries first. If this device
		// no longer tries to get a session, its initiation does not count.
		p.timers.set(timerRetransmit, now+rekeyTimeout+maxJitter+p.timers.jitter(now))
	}
	p.endHandshake(out)
	p.handshake = h
	p.moveTo(from, out)
	p.lastSent = now // the response is about to be made
	return 0, true
}

// commitResponse ends the exchange under way when this device, the responder, has made the response m. It adds the new keypair k,
// and puts the MACs into m.
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

// commitSession ends the exchange under way when the response has arrived at this device, the initiator. It asks for the staged
// packets to be sent on the new session at once, or for an empty packet if no packets are staged. The first of these packets
// confirms the session to the responder.
func (p *peerState) commitSession(k *keypair, from Endpoint, now int64, out *outbox) {
	p.handshake.wipe()
	p.handshake = nil // its session index now belongs to the keypair
	out.freeKeypairs(p.addInitiated(k))
	p.moveTo(from, out)
	p.sessionDerived(now)
	p.sessionConfirmed(now, out)
	p.authenticReceived(now)
	out.keepalive = true
}

// endHandshake drops the exchange under way, if there is one.
func (p *peerState) endHandshake(out *outbox) {
	if h := p.handshake; h != nil {
		if h.initiator {
			out.free(h.local)
		}
		h.wipe() // a worker that computes on this handshake has a copy
		p.handshake = nil
	}
}

// moveTo sets the peer's endpoint to that of an authentic packet that is not a replay: "the peer's endpoint is that of the last
// authentic packet" (whitepaper, section 2.1).
func (p *peerState) moveTo(from Endpoint, out *outbox) {
	if !p.endpoint.SamePlace(from) {
		out.event(EventEndpointMoved, from)
	}
	p.endpoint = from
}

// receive is called after packets were authenticated with k, and before they are delivered. The caller does not count replayed
// packets as authentic. data is true if at least one packet is not a keepalive.
func (p *peerState) receive(k *keypair, from *Endpoint, data bool, now int64, out *outbox) {
	if p.endpoint != *from {
		p.moveTo(*from, out)
	}
	if dropped, confirmed := p.confirm(k); confirmed {
		out.freeKeypairs(dropped)
		if !k.retired { // a retired keypair cannot send, so calls that wait for a session continue to wait
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

// sending is called before n messages get their counters, and reports whether the current session can carry them. If the session
// cannot, sending asks for an initiation.
func (p *peerState) sending(n int, now int64, out *outbox) bool {
	if !p.current.sendable(now, n) {
		p.initiate(now, false, out)
		return false
	}
	p.authenticSent(now)
	return true
}

// flushOrInitiate is called after a packet was staged behind others. It asks for the staged packets to be sent or, if no session
// can send, for an initiation.
func (p *peerState) flushOrInitiate(now int64, out *outbox) {
	if p.current.sendable(now, 1) {
		out.flush = true
	} else {
		p.initiate(now, false, out)
	}
}

// sentOn is called after messages were sent. data is true if at least one message other than a keepalive was sent without an
// error. heard is the value of p.heard before the send. If p.heard has changed since then, an answer has already arrived.
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

// wake is called after the machine slept or its network changed. If the current session can still send, wake asks for a packet that
// shows the peer this device's new address, and for a new session if the current one is due to be renewed. If no session can send,
// wake asks for a new one, but only if packets are staged or a persistent keepalive is set.
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

// wipe forgets the keys of all sessions, and drops the exchange under way. It is called when the device or the peer stops, and when
// timerWipe fires, usually after 540 s without a new session.
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
	p.dropStaged(out) // first, because wipe clears the peer's drop counts; the caller counts out.dropped for the device
	p.wipe(out)
	p.timers = timers{seed: p.timers.seed}
	p.lastSent = 0
}

// forgetSecrets clears the secrets of a peer that was removed. The other fields stay in memory for as long as a goroutine has a
// pointer to the peer.
func (p *peerState) forgetSecrets() {
	p.psk = PresharedKey{}
	p.static, p.staticOf = secret{}, nil
	p.cookie = cookieJar{}
}

// retire is called after the device got a new identity, id, or lost its identity, in which case id is nil. A session of the old
// identity still receives until it expires, but it no longer sends. Sessions and exchanges that were made since the device got id
// may already belong to id. retire does not change these. If there are any, the limit of one initiation in 5 s still applies.
// Otherwise the next initiation may be sent at once.
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
