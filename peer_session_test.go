package wireguard

import (
	"net/netip"
	"testing"
	"time"
)

// These tests check how the core of a peer treats its sessions (rekey, wake, retire and stop), and when the peer's endpoint
// changes.

// TestRekeyOnSend checks that sending a data message or a keepalive causes a rekey in two cases: the session is 120 s old and the
// device is its initiator, or 2^60 messages have been sent, in either role.
func TestRekeyOnSend(t *testing.T) {
	for _, c := range []struct {
		name      string
		initiator bool
		age       int64
		counter   uint64
		retired   bool
		want      bool
	}{
		{"initiator, young", true, 120*second - 1, 1, false, false},
		{"initiator, 120 s", true, 120 * second, 1, false, true},
		{"responder, 120 s", false, 120 * second, 1, false, false},
		{"responder, 180 s less a nanosecond", false, 180*second - 1, 1, false, false},
		{"initiator, 2^60 messages less one", true, 0, 1<<60 - 1, false, false},
		{"initiator, 2^60 messages", true, 0, 1 << 60, false, true},
		{"responder, 2^60 messages less one", false, 0, 1<<60 - 1, false, false},
		{"responder, 2^60 messages", false, 0, 1 << 60, false, true},
		{"retired", true, 120 * second, 1 << 60, true, false},
	} {
		for _, data := range []bool{true, false} {
			p := newCore(t)
			if c.initiator {
				p.initiator()
			} else {
				p.responder()
			}
			p.after(c.age)
			p.lastSent = 0 // so that the limit of one initiation per 5 s does not apply
			p.current.counter, p.current.retired = c.counter, c.retired
			p.sentOn(data, p.heard, p.now, p.step())
			p.wantInitiation(c.want, c.name)
		}
	}
	c := newCore(t)
	c.sentOn(true, c.heard, c.now, c.step())
	c.wantInitiation(false, "the session was removed while its messages were encrypted")
}

// TestRekeyOnReceive checks that receiving a message causes a rekey if the session is at least 165 s old and the device is its
// initiator. That happens at most once per session.
func TestRekeyOnReceive(t *testing.T) {
	for _, data := range []bool{true, false} {
		c := newCore(t)
		k := c.initiator()
		c.after(165*second-1).receives(k, data)
		c.wantInitiation(false, "the session is younger than 165 s")
		c.after(1).receives(k, data)
		c.wantInitiation(true, "the limit of 165 s is inclusive")
		c.initiates()
		c.after(6*second).receives(k, data)
		c.wantInitiation(false, "a session causes at most one rekey on receive")
		k = c.initiator()
		c.after(165*second).receives(k, data)
		c.wantInitiation(true, "the new session has not caused a rekey yet")
	}
	c := newCore(t)
	k := c.responder()
	c.after(179*second).receives(k, true)
	c.wantInitiation(false, "the responder waits for the initiator")

	c = newCore(t)
	old := c.initiator()
	c.after(120 * second).initiator()
	c.after(50*second).receives(old, true)
	c.wantInitiation(false, "the previous session is old, the current one is young")
}

func TestSendingLimits(t *testing.T) {
	for _, c := range []struct {
		name    string
		age     int64
		counter uint64
		n       int
		want    bool
	}{
		{"young", 0, 0, 128, true},
		{"180 s less a nanosecond", 180*second - 1, 0, 1, true},
		{"180 s", 180 * second, 0, 1, false},
		{"last messages", 0, rejectAfterMessages - 3, 3, true},
		{"one too many", 0, rejectAfterMessages - 3, 4, false},
	} {
		p := newCore(t)
		p.initiator()
		p.after(c.age)
		p.current.counter = c.counter
		if got := p.sending(c.n, p.now, p.step()); got != c.want {
			t.Errorf("%s: may send %d: %v, want %v", c.name, c.n, got, c.want)
		}
		p.wantInitiation(!c.want, c.name+": a send without a usable session asks for a handshake")
		p.flushOrInitiate(p.now, p.step())
		if flush := c.age < 180*second; p.out.flush != flush || p.out.initiate && c.want {
			t.Errorf("%s: flush %v, want %v", c.name, p.out.flush, flush)
		}
	}
	p := newCore(t)
	if p.sending(1, p.now, p.step()) {
		t.Error("the core sends without a session")
	}
	p.wantInitiation(true, "there is no session")
}

func TestReceiveOnPreviousAndNext(t *testing.T) {
	c := newCore(t)
	previous := c.initiator() // its index is 1
	current := c.after(second).initiator()
	for _, k := range []*keypair{previous, current} {
		c.receives(k, true)
		if c.current != current || c.previous != previous || len(c.out.events) != 0 {
			t.Fatal("a message in the previous or current session changed the sessions or published an event")
		}
	}
	next := c.after(second).responded() // its index is 3
	c.wantFreed("the next session removes the previous one", 1)
	c.receives(current, true)
	if c.next != next {
		t.Fatal("a message in the current session confirmed the next session")
	}
	c.receives(next, true)
	c.wantFreed("there was no previous session")
	if c.current != next || c.previous != current || c.next != nil {
		t.Fatal("a message in the next session did not confirm it")
	}
	c.wantIn(timerExpiry, rejectAfterTime, 0, "the expiry of the new session")
}

// TestConfirmLater checks that the age of a session counts from the time when the session was made, not from the time when it was
// confirmed.
func TestConfirmLater(t *testing.T) {
	c := newCore(t)
	k := c.responded()
	c.after(100*second).receives(k, false)
	c.wantIn(timerExpiry, rejectAfterTime-100*second, 0, "the time counts from when the session was made")
	c.wantIn(timerWipe, wipeAfterTime-100*second, 0, "the time counts from when the session was made")
	if c.lastHandshake != c.now {
		t.Error("lastHandshake is not the time of the confirmation")
	}
}

func TestEndpointMoves(t *testing.T) {
	elsewhere := EndpointOf(netip.MustParseAddrPort("[2001:db8::7]:7"))
	sticky := coreEndpoint
	sticky.Source, sticky.Interface = netip.MustParseAddr("192.0.2.99"), 3
	otherPort := EndpointOf(netip.AddrPortFrom(coreEndpoint.Addr.Addr(), 1))
	for _, c := range []struct {
		name string
		from Endpoint
		want []EventKind
	}{
		{"same place", coreEndpoint, nil},
		{"same place, reached at another of our addresses", sticky, nil},
		{"another port", otherPort, []EventKind{EventEndpointMoved}},
		{"another family", elsewhere, []EventKind{EventEndpointMoved}},
		{"a Link", Endpoint{Link: testLink{"relay", 1}}, []EventKind{EventEndpointMoved}},
	} {
		p := newCore(t)
		k := p.initiator()
		p.receive(k, &c.from, true, p.now, p.step())
		p.wantEvents(c.name, c.want...)
		if p.endpoint != c.from {
			t.Errorf("%s: the endpoint is %v with the source address %v, want that of the message", c.name, p.endpoint, p.endpoint.Source)
		}
	}
}

func TestWakePeer(t *testing.T) {
	for _, c := range []struct {
		name       string
		set        func(*core)
		keepalive  bool
		initiation bool
	}{
		{"no session", func(*core) {}, false, false},
		{"no session, persistent keepalive", func(c *core) { c.persistent = 25 }, true, false},
		{"no session, packets staged", func(c *core) { c.staged.Push(nil, 1<<20) }, true, false},
		{"young session of the initiator", func(c *core) { c.initiator(); c.after(120*second - 1) }, true, false},
		{"session of the initiator that is due for a rekey", func(c *core) { c.initiator(); c.after(120 * second) }, true, true},
		{"old session of the responder", func(c *core) { c.responder(); c.after(180*second - 1) }, true, false},
		{"dead session", func(c *core) { c.initiator(); c.after(180 * second) }, false, false},
		{"dead session, persistent keepalive", func(c *core) { c.persistent = 25; c.initiator(); c.after(3600 * second) }, true, false},
	} {
		p := newCore(t)
		p.endpoint.Source = netip.MustParseAddr("192.0.2.99")
		c.set(p)
		p.wake(p.now, p.step())
		p.wantKeepalive(c.keepalive, c.name)
		p.wantInitiation(c.initiation, c.name)
		if p.endpoint.Source.IsValid() {
			t.Errorf("%s: wake kept the source address of the previous network", c.name)
		}
	}
}

// TestRetire checks what the core does when the device gets a new private key. It stops sending with the keypairs current and
// next, but still receives with them until they are 180 s old. It clears the handshake under way and the precomputed static
// secret. The next initiation does not have to wait for 5 s.
func TestRetire(t *testing.T) {
	c := newCore(t)
	current := c.initiator()
	next := c.responded() // previous is still empty
	c.after(second)
	c.handshake = &handshake{initiator: true, local: 55}
	c.static, c.staticOf = secret{1}, new(identity)
	c.retire(new(identity), c.step())
	c.wantFreed("the handshake under way belongs to the old identity", 55)
	if c.handshake != nil || c.static != (secret{}) || c.staticOf != nil {
		t.Error("the handshake or the static secret of the old identity is left")
	}
	if c.sending(1, c.now, c.step()) {
		t.Error("the core sends in a session of the old identity")
	}
	c.wantInitiation(true, "the core asks for a handshake at once, although a response was sent a second ago")
	c.initiates()
	c.receives(current, true)
	if !c.holds(current) || !c.holds(next) {
		t.Fatal("the core removed a session of the old identity, in which it must still receive")
	}
	before := c.lastHandshake
	c.receives(next, true) // this message confirms the keypair next
	c.wantEvents("the confirmation of a session of the old identity publishes no event")
	if c.out.flush || c.lastHandshake != before || !c.timers.pending(timerRetransmit) {
		t.Error("the core took a session of the old identity for the result of the handshake under way")
	}
	if c.current != next || c.sending(1, c.now, c.step()) {
		t.Error("the core does not use, or sends in, the confirmed session of the old identity")
	}
	c.initiator()
	if !c.sending(1, c.now, c.step()) {
		t.Error("the core does not send in a session of the new identity")
	}
}

// TestRetireSparesTheNew checks a change of the private key while workers run. A worker can make a session, a handshake or a
// static secret with the new key before the device calls retire for the peer. retire must keep these.
func TestRetireSparesTheNew(t *testing.T) {
	was, is := new(identity), &identity{public: PublicKey{2}}
	c := newCore(t)
	previous, old := c.initiator(), c.initiator()
	previous.id, old.id = was, was
	c.static, c.staticOf = secret{1}, is
	next := &keypair{created: c.now, id: is}
	c.next = next
	c.handshake = &handshake{initiator: true, local: 55, id: is}
	sent := c.lastSent
	c.retire(is, c.step())
	c.wantFreed("the handshake belongs to the new identity")
	if c.handshake == nil || next.retired || !old.retired || c.static != (secret{1}) || c.staticOf != is || c.lastSent != sent {
		t.Error("retire changed state of the new identity, or left state of the old one")
	}
	if old.id != nil || previous.id != nil {
		t.Error("a retired session keeps the old private key")
	}
	c.handshake = nil
	c.receives(next, true)
	c.wantEvents("the session of the new identity is confirmed", EventHandshake)
	if !c.sending(1, c.now, c.step()) {
		t.Error("the core does not send in a session of the new identity")
	}

	c.retire(nil, c.step())
	if !next.retired || c.lastSent != 0 || c.staticOf != nil {
		t.Error("without an identity, the core still sends in a session, or kept the 5 s limit or the static secret")
	}
}

// TestSessionMadeAmidKeyChange tests the rule of TestRetireSparesTheNew with a whole device, as initiator and as responder: the
// device keeps a session that it made with the new private key before it called retire for the peer.
func TestSessionMadeAmidKeyChange(t *testing.T) {
	for _, role := range []string{"initiator", "responder"} {
		id := newIdentity(testKey(2))
		r := newRemote(1, id.public)
		e := up(t, testKey(1), r.config())
		e.identity.Store(id)
		if role == "initiator" {
			e.send(t, r.numbered(0))
			e.line.receive(r.train(r.response(t, e.line.next(t, "an initiation").b)))
			e.line.next(t, "the staged packet")
		} else {
			e.connect(t, r)
		}
		e.settle(t)
		e.mu.Lock()
		e.changeIdentity(id)
		e.mu.Unlock()
		if s, _ := e.Peer(r.id.public); !s.Session {
			t.Errorf("%s: the session of the new identity was removed", role)
		}
		e.mu.Lock()
		e.changeIdentity(newIdentity(testKey(3)))
		e.mu.Unlock()
		if s, _ := e.Peer(r.id.public); s.Session {
			t.Errorf("%s: the device still sends in a session of another identity", role)
		}
	}
}

// TestStop checks that stop drops the staged packets, stops the timers and clears the keys, and that the next initiation does not
// have to wait for 5 s.
func TestStop(t *testing.T) {
	c := newCore(t)
	c.persistent = 25
	c.initiator() // its index is 1
	c.responded() // its index is 2
	c.sends(true)
	c.after(second)
	c.handshake = &handshake{initiator: true, local: 55}
	for range 3 {
		c.staged.Push(nil, 1<<20)
	}
	c.lastTimestamp, c.ownTimestamp = Timestamp{1}, Timestamp{2}
	c.timers.again, c.timers.needAnother, c.timers.lastMinute, c.timers.attempts = true, true, true, 5
	c.static, c.staticOf = secret{1}, new(identity)
	seed := c.timers.seed
	c.stop(c.step())
	c.wantFreed("all session indices of the peer", 55, 1, 2)
	if c.keypairs != (keypairs{}) || c.handshake != nil {
		t.Error("keypairs or a handshake are left")
	}
	if c.timers != (timers{seed: seed}) {
		t.Errorf("timers are left: %+v", c.timers)
	}
	if c.staged.N != 0 || c.out.dropped.N != 3 {
		t.Error("stop did not move the staged packets to the list of dropped packets, which the device counts")
	}
	if c.drops != nil {
		t.Error("a peer that is down has its own drop counters, which take memory")
	}
	if c.lastSent != 0 {
		t.Error("the 5 s limit still applies")
	}
	if c.lastTimestamp != (Timestamp{1}) || c.ownTimestamp != (Timestamp{2}) {
		t.Error("stop removed the timestamps that protect against replays")
	}
	if c.persistent != 25 || c.endpoint != coreEndpoint {
		t.Error("stop removed configuration")
	}
}

func TestDropStagedNone(t *testing.T) {
	c := newCore(t)
	c.dropStaged(c.step())
	if c.drops != nil || c.out.dropped.N != 0 {
		t.Error("nothing was staged, but dropStaged dropped packets or allocated drop counters")
	}
}

func TestOutboxFreesWhatIsThere(t *testing.T) {
	var out outbox
	out.freeKeypairs(nil, &keypair{local: 3}, nil, &keypair{local: 0})
	if len(out.freed) != 2 || out.freed[0] != 3 || out.freed[1] != 0 {
		t.Errorf("the freed indices are %v, want [3 0]: 0 is a valid index", out.freed)
	}
}

func TestRetransmissionAfterSessionByPeer(t *testing.T) {
	// The core has sent an initiation. Before the peer answers, the peer makes a session with an initiation of its own, and
	// confirms the session. That must end the core's series of initiations.
	c := newCore(t)
	c.initiate(c.now, false, c.step())
	c.initiates()
	if _, ok := c.after(second / 10).accepts(1); !ok {
		t.Fatal("the core refused the peer's initiation")
	}
	k := c.responded()
	c.wantIn(timerRetransmit, rekeyTimeout-second/10, maxJitter, "the session is not confirmed yet")
	c.after(time.Millisecond.Nanoseconds()).receives(k, false)
	c.wantNone(timerRetransmit, "a session is established")
}
