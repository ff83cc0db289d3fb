package wireguard

import (
	"bytes"
	"net/netip"
	"testing"
	"time"
)

// The next tests check when the core of a peer asks for an initiation, makes one, and gives up.

func TestInitiateConditions(t *testing.T) {
	c := newCore(t)
	c.endpoint = Endpoint{}
	c.initiate(c.now, false, c.step())
	c.wantInitiation(false, "a peer without an endpoint gets no initiation")
	c.wantNone(timerRetransmit, "a peer without an endpoint has no retransmission timer")

	c = newCore(t)
	c.initiate(c.now, false, c.step())
	c.wantInitiation(true, "nothing prevents an initiation")
	asked := c.out
	c.initiate(c.now, false, c.step())
	c.wantInitiation(false, "the core has already asked for an initiation")
	c.out = asked
	c.initiates()
	c.wantIn(timerRetransmit, rekeyTimeout, maxJitter, "REKEY_TIMEOUT and jitter")
	retransmit := c.timers.at[timerRetransmit]

	c.after(rekeyTimeout-1).initiate(c.now, false, c.step())
	c.wantInitiation(false, "the last initiation was sent less than 5 s ago")
	if c.timers.at[timerRetransmit] != retransmit {
		t.Error("a second request changed the time of the retransmission")
	}
	c.after(1)
	c.initiate(c.now, false, c.step())
	c.wantInitiation(false, "the retransmission is due after the jitter, and a packet must not make it earlier")
	c.after(retransmit - c.now)
	c.initiate(c.now, false, c.step())
	c.wantInitiation(true, "5 s and the jitter have passed since the last initiation")
}

func TestInitiateAfterResponse(t *testing.T) {
	c := newCore(t)
	c.accepts(1)
	c.responded()
	c.after(second)
	c.initiate(c.now, false, c.step())
	c.wantInitiation(false, "a response was sent less than 5 s ago; this limit ends crossing handshakes")
	c.wantIn(timerRetransmit, rekeyTimeout-second, maxJitter, "a packet waits for a session, so the initiation is delayed")
}

func TestInitiationSeries(t *testing.T) {
	c := newCore(t)
	c.staged.Push([]byte{1}, 1<<20)
	c.timers.set(timerKeepalive, c.now+1000*second)
	c.endpoint.Source = netip.MustParseAddr("192.0.2.99")
	c.initiate(c.now, false, c.step())
	start, tries := c.now, 0
	for {
		c.timers.set(timerKeepalive, c.now+1000*second) // as if data had been received in the meantime
		c.initiates()
		tries++
		if h := c.handshake; !h.initiator || h.local != c.index {
			t.Fatal("the handshake under way is not that of the last initiation")
		}
		c.timers.set(timerKeepalive, c.now+1000*second)
		sent := c.now
		if c.expires() != timerRetransmit {
			t.Fatal("another timer fired first")
		}
		if gap := c.now - sent; gap < rekeyTimeout || gap > rekeyTimeout+maxJitter {
			t.Fatalf("attempt %d came %v after the previous one, want 5 to 5.33 s", tries+1, time.Duration(gap))
		}
		if c.endpoint.Source.IsValid() {
			t.Fatal("the source address is kept, although it may be the cause of the failure")
		}
		if !c.out.initiate {
			break
		}
		if c.out.dropped.N != 0 {
			t.Fatal("the staged packets were dropped before the last attempt")
		}
		c.wantEvents("an attempt failed that was not the last one", EventAttemptFailed)
	}
	if tries != 20 {
		t.Errorf("the core sent %d initiations, want 20", tries)
	}
	if took := time.Duration(c.now - start); took < 100*time.Second || took > 107*time.Second {
		t.Errorf("the series took %v, want about 100 s", took)
	}
	c.wantEvents("the last attempt failed", EventAttemptFailed, EventHandshakeFailed)
	c.wantNone(timerKeepalive, "giving up cancels the passive keepalive")
	c.wantNone(timerRetransmit, "the series is over")
	c.wantIn(timerWipe, wipeAfterTime, 0, "giving up sets the timer of the wipe")
	if c.out.dropped.N != 1 || c.staged.N != 0 || c.drops == nil || c.drops[DropNoSession] != 1 {
		t.Error("the staged packet was not dropped and counted")
	}
}

func TestGiveUpLeavesPendingWipe(t *testing.T) {
	c := newCore(t)
	c.initiator()
	wipe := c.timers.at[timerWipe]
	c.after(200 * second)
	c.timers.attempts = maxAttempts
	c.timers.set(timerRetransmit, c.now)
	c.elapse()
	c.wantEvents("the session expired long ago, and the series ends", EventSessionExpired, EventHandshakeFailed)
	if c.timers.at[timerWipe] != wipe {
		t.Error("giving up changed a timer of the wipe that was already set")
	}
}

// TestPacketsKeepSeriesGoing checks that every packet for which there is no session sets the count of attempts to zero, even
// during a series of retries.
func TestPacketsKeepSeriesGoing(t *testing.T) {
	c := newCore(t)
	c.initiate(c.now, false, c.step())
	for range 100 {
		c.initiates()
		if c.timers.attempts != 1 {
			t.Fatalf("after a packet, the count of attempts is %d, want 1", c.timers.attempts)
		}
		if c.after(second).sending(1, c.now, c.step()) {
			t.Fatal("the core sends although there is no session")
		}
		for !c.out.initiate {
			if c.expires() != timerRetransmit {
				t.Fatal("another timer fired first")
			}
			c.out.events = nil // one event is published after each attempt, and another one after every 20 attempts
		}
	}
}

func TestPersistentKeepaliveBeginsNewSeries(t *testing.T) {
	c := newCore(t)
	c.persistent = 25
	c.timers.attempts = maxAttempts - 1
	c.initiate(c.now, true, c.step())
	c.initiates()
	last := c.now
	c.expires()
	c.wantEvents("the last attempt failed", EventAttemptFailed, EventHandshakeFailed)
	if c.expires() != timerPersistent || c.now != last+25*second {
		t.Errorf("the keepalive is due %v after the last attempt, want 25 s", time.Duration(c.now-last))
	}
	c.wantKeepalive(true, "a new series starts one interval after the last attempt")
}

func TestBeginInitiation(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(*core)
		want bool
	}{
		{"nothing prevents it", func(*core) {}, true},
		{"peer was removed", func(c *core) { c.removed = true }, false},
		{"endpoint was taken away", func(c *core) { c.endpoint = Endpoint{} }, false},
		{"a response was sent meanwhile", func(c *core) { c.lastSent = c.now - rekeyTimeout + 1 }, false},
		{"a response was sent long ago", func(c *core) { c.lastSent = c.now - rekeyTimeout }, true},
	} {
		p := newCore(t)
		p.initiating = true
		c.set(p)
		ts, ok := p.beginInitiation(p.now, TimestampOf(epoch))
		if ok != c.want || ok && ts != TimestampOf(epoch) {
			t.Errorf("%s: beginInitiation allows an initiation: %v, with the timestamp %x; want %v", c.name, ok, ts, c.want)
		}
		if p.initiating {
			t.Errorf("%s: initiating is still set, so there would never be another initiation", c.name)
		}
		if c.want && p.lastSent != p.now {
			t.Errorf("%s: the 5 s limit does not apply while the initiation is made", c.name)
		}
	}
}

// TestOwnTimestampsGrow checks that each timestamp that a device sends is larger than the one before, even if the wall clock is
// set back: it is max(now, last + 1).
func TestOwnTimestampsGrow(t *testing.T) {
	c := newCore(t)
	var last Timestamp
	for _, step := range []time.Duration{0, time.Second, 0, -time.Hour, 0, -48 * time.Hour, 72 * time.Hour} {
		c.after(rekeyTimeout + maxJitter)
		c.wall = c.wall.Add(step)
		c.initiating = false
		c.initiate(c.now, false, c.step())
		ts := c.initiates()
		if !ts.After(last) {
			t.Fatalf("after a step of the wall clock of %v: %x does not come after %x", step, ts, last)
		}
		if wall := TimestampOf(c.wall.Add(time.Duration(c.now))); wall.After(last) && ts != wall {
			t.Errorf("after a step of the wall clock of %v: %x, want the wall clock's %x", step, ts, wall)
		}
		last = ts
	}
}

func TestCommitInitiationReplacesHandshake(t *testing.T) {
	c := newCore(t)
	c.initiate(c.now, false, c.step())
	c.initiates()
	h, index := c.handshake, c.index
	c.after(rekeyTimeout)
	c.initiate(c.now, true, c.step())
	c.initiates()
	c.wantFreed("the index of the first initiation is not used any more", index)
	if *h != (handshake{}) {
		t.Error("the secrets of the first handshake were not cleared")
	}
	if c.timers.attempts != 2 {
		t.Errorf("the count of attempts is %d, want 2", c.timers.attempts)
	}
}

func TestCommitSignsMessages(t *testing.T) {
	x := newExchange(t, PresharedKey{})
	p := &peerState{key: x.responder.public, endpoint: coreEndpoint}
	m := make([]byte, initiationSize)
	p.commitInitiation(&handshake{initiator: true}, m, coreT0, new(outbox))
	if !(&cookieChecker{}).validMAC1(m, x.responder) {
		t.Error("the initiation has no valid mac1")
	}
	p.handshake = &handshake{}
	m = make([]byte, responseSize)
	p.commitResponse(&keypair{created: coreT0}, m, coreT0, new(outbox))
	if !(&cookieChecker{}).validMAC1(m, x.responder) {
		t.Error("the response has no valid mac1")
	}
	if !bytes.Equal(p.cookie.mac1[:], m[len(m)-2*macSize:len(m)-macSize]) || !p.cookie.wantsReply() {
		t.Error("the peer does not remember the mac1 of its last message")
	}
}

// The next tests are about initiations that the peer sends.

func TestAcceptInitiation(t *testing.T) {
	from := EndpointOf(netip.MustParseAddrPort("198.51.100.7:7"))
	at := func(sec byte) Timestamp { return Timestamp{8: sec} }
	for _, c := range []struct {
		name   string
		last   Timestamp
		ts     Timestamp
		before int64 // nanoseconds from the arrival of the previous initiation to this one
		reason DropReason
		ok     bool
	}{
		{"first", Timestamp{}, at(1), 0, 0, true},
		{"first, with a zero timestamp", Timestamp{}, Timestamp{}, 0, DropOldTimestamp, false},
		{"newer", at(5), at(6), second, 0, true},
		{"replayed", at(5), at(5), second, DropOldTimestamp, false},
		{"older", at(5), at(4), second, DropOldTimestamp, false},
		{"newer by the last bit", at(5), Timestamp{8: 5, 11: 1}, second, 0, true},
		{"just too soon", at(5), at(6), initiationInterval - 1, DropTooSoon, false},
		{"20 ms later", at(5), at(6), initiationInterval, 0, true},
	} {
		p := newCore(t)
		p.lastTimestamp = c.last
		if c.before != 0 {
			p.lastInitiation = p.now - c.before
		}
		old := &handshake{initiator: true, local: 99}
		p.handshake = old
		h := &handshake{}
		endpoint, accepted := p.endpoint, p.lastInitiation
		reason, ok := p.acceptInitiation(h, c.ts, from, p.now, p.step())
		if reason != c.reason || ok != c.ok {
			t.Errorf("%s: accepted %v (%v), want %v (%v)", c.name, ok, reason, c.ok, c.reason)
		}
		if !c.ok {
			if p.lastTimestamp != c.last || p.lastInitiation != accepted || p.handshake != old ||
				p.endpoint != endpoint || p.lastSent != 0 || len(p.out.events) != 0 {
				t.Errorf("%s: the refused initiation changed the peer", c.name)
			}
			continue
		}
		if p.lastTimestamp != c.ts || p.lastInitiation != p.now || p.handshake != h {
			t.Errorf("%s: the peer did not store the timestamp, the time or the handshake of the accepted initiation", c.name)
		}
		p.wantFreed("the device gives up its own initiation", 99)
		p.wantEvents("the initiation proves the peer's address", EventEndpointMoved)
		if p.endpoint != from || p.lastSent != p.now {
			t.Errorf("%s: the accepted initiation did not set the endpoint or the start of the 5 s limit", c.name)
		}
	}
}

func TestCommitResponse(t *testing.T) {
	c := newCore(t)
	c.accepts(1)
	h := c.handshake
	k := c.responded()
	if c.next != k || c.current != nil || c.handshake != nil || *h != (handshake{}) {
		t.Error("the session is not in the place next alone, or the secrets of the handshake were not cleared")
	}
	c.wantEvents("the session is not confirmed yet")
	if c.sending(1, c.now, c.step()) {
		t.Error("the responder sends before it has received a message with the new keypair")
	}
	if c.lastHandshake != 0 {
		t.Error("an unconfirmed handshake set lastHandshake")
	}
	c.receives(k, false)
	c.wantEvents("the first message confirms the session", EventHandshake)
	if !c.out.flush || c.out.keepalive || c.current != k || c.lastHandshake != c.now {
		t.Error("on confirmation, want the new current session, lastHandshake, a flush of the staged packets, and no keepalive")
	}
	c.receives(k, true)
	c.wantEvents("the session was already confirmed")
	if c.out.flush {
		t.Error("the second message causes another flush")
	}
}

func TestCommitSession(t *testing.T) {
	c := newCore(t)
	c.timers.lastMinute = true
	c.initiate(c.now, false, c.step())
	c.initiates()
	h, from := c.handshake, EndpointOf(netip.MustParseAddrPort("198.51.100.7:7"))
	k := &keypair{local: c.index, initiator: true, created: c.now}
	c.commitSession(k, from, c.now, c.step())
	if c.current != k || c.handshake != nil || *h != (handshake{}) {
		t.Error("the session is not current, or the secrets of the handshake were not cleared")
	}
	c.wantFreed("the session keeps the index of the handshake")
	c.wantKeepalive(true, "the initiator at once sends its staged packets or, if there are none, a keepalive")
	c.wantEvents("the response came from another endpoint", EventEndpointMoved, EventHandshake)
	if c.endpoint != from || c.out.events[1].endpoint != from {
		t.Error("the endpoint is not the source of the response")
	}
	c.wantNone(timerRetransmit, "the initiation was answered")
	if c.timers.attempts != 0 || c.timers.lastMinute || c.lastHandshake != c.now {
		t.Error("the session did not end the series or the state of the rekey on receive, or did not set lastHandshake")
	}
}

// TestCrossingInitiations checks that if the initiations of two peers cross, each peer has an unconfirmed keypair and no current
// one. The next retry makes a session after 5 to 5.33 s.
func TestCrossingInitiations(t *testing.T) {
	a, b := newCore(t), newCore(t)
	a.timers.seed, b.timers.seed = 1, 2
	for _, c := range []*core{a, b} {
		c.initiate(c.now, false, c.step())
		c.initiates()
	}
	for _, c := range []*core{a, b} { // each peer receives the other's initiation before a response
		c.after(second / 20)
		if r, ok := c.accepts(1); !ok {
			t.Fatal(r)
		}
		c.wantFreed("the device gives up its own initiation", c.index)
		c.responded()
		if c.handshake != nil || c.current != nil || c.next == nil {
			t.Fatal("want an unconfirmed session, no current session and no handshake under way")
		}
		c.wantIn(timerRetransmit, rekeyTimeout-second/20, maxJitter, "the retransmission is still due")
	}
	first, second := a, b
	if b.timers.at[timerRetransmit] < a.timers.at[timerRetransmit] {
		first, second = b, a
	}
	if first.timers.at[timerRetransmit] == second.timers.at[timerRetransmit] {
		t.Fatal("both devices retransmit at the same time")
	}
	if first.expires() != timerRetransmit {
		t.Fatal("another timer fired first")
	}
	if took := first.now - coreT0; took < rekeyTimeout || took > rekeyTimeout+maxJitter {
		t.Errorf("the first retransmission comes after %v, want 5 to 5.33 s", time.Duration(took))
	}
	first.initiates()
	second.now = first.now
	if r, ok := second.accepts(2); !ok {
		t.Fatal(r)
	}
	k := second.responded()
	first.commitSession(&keypair{local: first.index, initiator: true, created: first.now}, first.endpoint, first.now, first.step())
	first.wantKeepalive(true, "the keepalive confirms the session to the responder")
	second.receives(k, false)
	if !first.current.sendable(first.now, 1) || !second.current.sendable(second.now, 1) {
		t.Error("a device has no session in which it can send")
	}
	second.wantNone(timerRetransmit, "the series of the other device is over")
}

// TestGivenUpInitiationCrossesNothing is about this rule: if the initiations of two devices cross, one of the two devices lets
// the other one retry first. The test checks that the core follows this rule only while its own series of initiations is running.
// After the core has given up, an initiation from the peer does not begin a new series.
func TestGivenUpInitiationCrossesNothing(t *testing.T) {
	c := newCore(t)
	c.initiate(c.now, false, c.step())
	for c.timers.attempts < maxAttempts {
		c.initiates()
		c.handshake.id = &identity{public: PublicKey{9}} // with this public key, c lets the peer retry first
		c.expires()
	}
	if c.handshake == nil || c.timers.pending(timerRetransmit) {
		t.Fatal("the series is not given up, or its handshake is gone, so the test proves nothing")
	}
	c.after(second)
	if r, ok := c.accepts(1); !ok {
		t.Fatal(r)
	}
	c.responded()
	c.wantNone(timerRetransmit, "no packet waits for a session, and the peer is making one")

	for asked := range 2 { // 0: the initiation is unanswered; 1: the core has also asked to repeat it
		c = newCore(t)
		c.initiate(c.now, false, c.step())
		c.initiates()
		c.handshake.id = &identity{public: PublicKey{9}}
		if asked == 1 {
			c.expires()
		}
		c.accepts(1)
		c.wantIn(timerRetransmit, rekeyTimeout+maxJitter, maxJitter, "the other device retries first")
	}
}

// TestRemovedPeerKeepsNoSecrets checks that a removed peer has no keys, because a goroutine may still have a pointer to the peer.
func TestRemovedPeerKeepsNoSecrets(t *testing.T) {
	peerKey := testKey(2).Public()
	e := newEnd(t, testKey(1), PeerConfig{PublicKey: peerKey, PresharedKey: PresharedKey{7}})
	p := e.peers.Find(peerKey)
	p.mu.Lock()
	p.static, p.staticOf, p.cookie = secret{8}, e.identity.Load(), cookieJar{received: 9}
	p.mu.Unlock()
	if err := e.RemovePeer(peerKey); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.removed || p.psk != (PresharedKey{}) || p.static != (secret{}) || p.staticOf != nil || p.cookie != (cookieJar{}) {
		t.Error("the removed peer still has secrets")
	}
}
