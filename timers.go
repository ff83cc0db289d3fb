package wireguard

// The protocol code counts time in nanoseconds from an arbitrary start, as an int64. The time that the machine sleeps counts too.
// A time of 0 means "never" or "none". Limits are inclusive: a key is too old when its age equals the limit.
const second int64 = 1e9

// Constants of the protocol (whitepaper, section 6.1; Linux, messages.h).
const (
	rekeyAfterMessages  = 1 << 60
	rejectAfterMessages = 1<<64 - 1<<13 - 1
	rekeyAfterTime      = 120 * second
	rejectAfterTime     = 180 * second
	rekeyTimeout        = 5 * second
	maxJitter           = second / 3 // the most that is added to rekeyTimeout, so that peers do not stay in step
	keepaliveTimeout    = 10 * second
	rekeyOnReceive      = rejectAfterTime - keepaliveTimeout - rekeyTimeout
	unansweredTimeout   = keepaliveTimeout + rekeyTimeout
	silenceTimeout      = keepaliveTimeout + second // a peer answers data within 10 s, and the answer needs time to arrive
	wipeAfterTime       = 3 * rejectAfterTime
	maxAttempts         = 20 // initiations in one series; Linux sends as many in its REKEY_ATTEMPT_TIME of 90 s
	initiationInterval  = second / 50
	cookieSecretLife    = 120 * second
)

// A timer is one of a peer's deadlines.
type timer uint8

const (
	timerRetransmit timer = iota // an initiation was not answered: send another, or give up
	timerKeepalive               // data was received and nothing was sent since: send an empty packet
	timerUnanswered              // data was sent and nothing was received since: make a new session
	timerPersistent              // nothing was sent or received for the persistent keepalive's interval: send an empty packet
	timerExpiry                  // the current session reaches the end of its life
	timerWipe                    // no new session for 540 s, or at first 180 s for a peer that Lookup supplied: forget all keys
	timerCount
	timerSilence = timerCount // next returns this value for the deadline of the method silence, which is not in timers.at
)

var timerNames = [timerCount + 1]string{
	"retransmit the initiation", "send a keepalive", "make a new session: data went unanswered",
	"send a persistent keepalive", "the session expires", "wipe the session", "publish that data went unanswered",
}

// timers are the deadlines of a peer. The zero value has no deadlines.
type timers struct {
	at          [timerCount]int64
	seed        uint32 // the number from which the method jitter computes
	attempts    uint8  // the number of initiations sent in this series of attempts; a new packet begins a new series
	unanswered  uint8  // the number of initiations sent since the peer's last authentic message
	tell        bool   // whether to publish that data went unanswered, before timerUnanswered fires
	tries       uint32 // the number of initiations sent since a session was last confirmed
	awaiting    bool   // whether the last initiation may still be answered
	needAnother bool   // data was received while timerKeepalive was pending, so one more keepalive follows
	again       bool   // needAnother was set when timerKeepalive fired, so the timer is set again when the keepalive is sent
	lastMinute  bool   // a packet that arrived when the session was nearly too old has already asked for a new session
}

func (t *timers) pending(i timer) bool      { return t.at[i] != 0 }
func (t *timers) set(i timer, at int64)     { t.at[i] = at }
func (t *timers) cancel(i timer)            { t.at[i] = 0 }
func (t *timers) due(i timer, n int64) bool { return t.at[i] != 0 && t.at[i] <= n }

// next returns the earliest deadline. at is 0 if there is none.
func (t *timers) next() (which timer, at int64) {
	for i, a := range t.at {
		if a != 0 && (at == 0 || a < at) {
			which, at = timer(i), a
		}
	}
	if s := t.silence(); s != 0 && s < at {
		which, at = timerSilence, s
	}
	return which, at
}

// silence returns when to publish that data went unanswered, or 0 if this need not be published. The time is computed from that
// of timerUnanswered, so it has the same jitter.
func (t *timers) silence() int64 {
	if at := t.at[timerUnanswered]; at != 0 && t.tell {
		return at - (unansweredTimeout - silenceTimeout)
	}
	return 0
}

// jitter returns up to a third of a second, computed from the seed and the time, because the protocol code has no source of
// randomness. The two peers of a tunnel have different seeds.
func (t *timers) jitter(now int64) int64 {
	x := uint64(now) ^ uint64(t.seed)<<32 ^ uint64(t.seed)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return int64((x ^ x>>31) % uint64(maxJitter+1))
}

// The methods from here to sessionConfirmed update the timers. The comment of each method says when it is called.

// dataSent is called after a data packet, not a keepalive, was sent, unless something authentic has arrived since the
// send began.
func (p *peerState) dataSent(now int64) {
	if !p.timers.pending(timerUnanswered) {
		p.timers.set(timerUnanswered, now+unansweredTimeout+p.timers.jitter(now))
		p.timers.tell = true
	}
}

// dataReceived is called after an authentic data packet, not a keepalive, was received.
func (p *peerState) dataReceived(now int64) {
	if !p.timers.pending(timerKeepalive) {
		p.timers.set(timerKeepalive, now+keepaliveTimeout)
	} else {
		p.timers.needAnother = true
	}
}

// authenticSent is called before any packet that authenticates this device is sent: data, keepalive or handshake.
func (p *peerState) authenticSent(now int64) {
	p.timers.cancel(timerKeepalive)
	if p.timers.again {
		p.timers.again = false
		p.timers.set(timerKeepalive, now+keepaliveTimeout)
	}
	p.traversed(now)
}

// authenticReceived is called after any authentic packet was received: data, keepalive or handshake.
func (p *peerState) authenticReceived(now int64) {
	p.heard++
	p.lastReceived = now
	p.timers.cancel(timerUnanswered)
	p.timers.unanswered = 0
	p.traversed(now)
}

// traversed is called when any authentic packet is sent or received.
func (p *peerState) traversed(now int64) {
	if p.persistent != 0 {
		p.timers.set(timerPersistent, now+int64(p.persistent)*second)
	}
}

// initiated is called before an initiation is sent.
func (p *peerState) initiated(now int64) {
	p.lastSent = now
	p.timers.attempts++
	p.timers.unanswered++
	p.timers.tries++
	p.timers.awaiting = true
	p.timers.set(timerRetransmit, now+rekeyTimeout+p.timers.jitter(now))
}

// sessionDerived is called when a new keypair is made, in either role.
func (p *peerState) sessionDerived(now int64) {
	p.unopened = false
	p.timers.set(timerWipe, now+wipeAfterTime)
	if p.lookedUp && p.current == nil {
		// A replayed initiation makes a keypair, too, so the peer is kept only for 180 s at first. Only an initiator that has the
		// private key can confirm the session.
		p.timers.set(timerWipe, now+rejectAfterTime)
	}
}

// sessionConfirmed is called when a new keypair becomes the current one.
func (p *peerState) sessionConfirmed(now int64, out *outbox) {
	p.timers.cancel(timerRetransmit)
	p.timers.attempts, p.timers.tries, p.timers.awaiting = 0, 0, false
	p.timers.lastMinute = false
	p.timers.set(timerExpiry, p.current.created+rejectAfterTime)
	p.timers.set(timerWipe, max(p.timers.at[timerWipe], p.current.created+wipeAfterTime))
	p.lastHandshake = now
	p.sessions++
	out.event(EventHandshake, p.endpoint)
}

// expire handles the timers that are due at the time now.
func (p *peerState) expire(now int64, out *outbox) {
	t := &p.timers
	if t.due(timerExpiry, now) {
		t.cancel(timerExpiry)
		if p.current != nil && p.current.age(now) >= rejectAfterTime {
			out.event(EventSessionExpired, Endpoint{})
		}
	}
	if t.due(timerRetransmit, now) {
		t.cancel(timerRetransmit)
		p.retransmit(now, out)
	}
	if t.due(timerKeepalive, now) {
		t.cancel(timerKeepalive)
		t.again, t.needAnother = t.needAnother, false
		out.keepalive = true
	}
	if at := t.silence(); at != 0 && at <= now {
		t.tell = false
		out.event(EventUnanswered, p.endpoint)
	}
	if t.due(timerUnanswered, now) {
		t.cancel(timerUnanswered)
		p.endpoint.forgetSource()
		p.initiate(now, false, out)
	}
	if t.due(timerPersistent, now) {
		t.cancel(timerPersistent)
		out.keepalive = out.keepalive || p.persistent != 0 // sending the keepalive, or an initiation for it, sets the timer again
	}
	if t.due(timerWipe, now) {
		p.wipe(out)
		out.forget = p.lookedUp
	}
}

// retransmit is called when timerRetransmit fires, usually 5 s (REKEY_TIMEOUT) plus jitter after the last initiation. It asks for
// another initiation. After 20 initiations in a series it gives up instead, and drops the staged packets.
func (p *peerState) retransmit(now int64, out *outbox) {
	p.endpoint.forgetSource()
	if p.timers.awaiting { // otherwise the timer postponed an initiation that was not sent yet
		p.timers.awaiting = false
		out.event(EventAttemptFailed, p.endpoint)
	}
	if p.timers.unanswered >= maxAttempts || p.timers.attempts >= maxAttempts {
		// While packets are sent, the attempts continue, because each packet restarts the series. The event is published
		// nevertheless.
		p.timers.unanswered = 0
		out.event(EventHandshakeFailed, p.endpoint)
	}
	if p.timers.attempts < maxAttempts {
		p.initiate(now, true, out)
		return
	}
	p.timers.cancel(timerKeepalive)
	p.dropStaged(out)
	if !p.timers.pending(timerWipe) {
		p.timers.set(timerWipe, now+wipeAfterTime)
	}
}
