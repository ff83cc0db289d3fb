package wireguard

import (
	"math"
	"math/big"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/backlog"
	"github.com/seed-86b749af/wireguard/internal/layout"
	"github.com/seed-86b749af/wireguard/internal/ratelimit"
	"github.com/seed-86b749af/wireguard/internal/staged"
)

// TestConstants compares each constant with its definition in the whitepaper or in Linux.
func TestConstants(t *testing.T) {
	pow := func(e uint) *big.Int { return new(big.Int).Lsh(big.NewInt(1), e) }
	reject := new(big.Int).Sub(pow(64), pow(13))
	for _, c := range []struct {
		name string
		got  uint64
		want *big.Int
	}{
		{"REKEY_AFTER_MESSAGES = 2^60", rekeyAfterMessages, pow(60)},
		{"REJECT_AFTER_MESSAGES = 2^64 - 2^13 - 1", rejectAfterMessages, reject.Sub(reject, big.NewInt(1))},
	} {
		if new(big.Int).SetUint64(c.got).Cmp(c.want) != 0 {
			t.Errorf("%s: got %d", c.name, c.got)
		}
	}
	for _, c := range []struct {
		name string
		got  int64
		want time.Duration
	}{
		{"REKEY_AFTER_TIME", rekeyAfterTime, 120 * time.Second},
		{"REJECT_AFTER_TIME", rejectAfterTime, 180 * time.Second},
		{"REKEY_TIMEOUT", rekeyTimeout, 5 * time.Second},
		{"KEEPALIVE_TIMEOUT", keepaliveTimeout, 10 * time.Second},
		{"REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT", rekeyOnReceive, 165 * time.Second},
		{"KEEPALIVE_TIMEOUT + REKEY_TIMEOUT", unansweredTimeout, 15 * time.Second},
		{"REJECT_AFTER_TIME * 3", wipeAfterTime, 540 * time.Second},
		{"jitter: HZ / 3", maxJitter, 333333333},
		{"INITIATIONS_PER_SECOND = 50", initiationInterval, 20 * time.Millisecond},
		{"COOKIE_SECRET_MAX_AGE", cookieSecretLife, 120 * time.Second},
		{"COOKIE_SECRET_MAX_AGE - COOKIE_SECRET_LATENCY", cookieMaxUse, 115 * time.Second},
		{"under load is held", backlog.Hold, time.Second},
		{"PACKETS_PER_SECOND = 20", ratelimit.Cost, time.Second / 20},
		{"PACKETS_BURSTABLE = 5", ratelimit.Burst, 5 * time.Second / 20},
		{"rate limits are collected after", ratelimit.Idle, time.Second},
	} {
		if time.Duration(c.got) != c.want {
			t.Errorf("%s: got %v, want %v", c.name, time.Duration(c.got), c.want)
		}
	}
	for _, c := range []struct {
		name      string
		got, want int
	}{
		// REKEY_ATTEMPT_TIME / REKEY_TIMEOUT is 18. Linux gives up when it has sent more than 18 retries after the first
		// initiation.
		{"initiations of a series", maxAttempts, 20},
		{"MAX_QUEUED_INCOMING_HANDSHAKES / 8, from which on the device is under load", backlog.Long, 4096 / 8},
		{"MAX_STAGED_PACKETS", staged.Max, 128},
		{"COUNTER_BITS_TOTAL", windowBits, 8192},
		{"COUNTER_WINDOW_SIZE", windowSize, 8128},
		{"MESSAGE_PADDING_MULTIPLE - 1", layout.MaxPadding, 15},
		{"initiation", initiationSize, 4 + 4 + 32 + (32 + 16) + (12 + 16) + 16 + 16},
		{"response", responseSize, 4 + 4 + 4 + 32 + 16 + 16 + 16},
		{"cookie reply", cookieSize, 4 + 4 + 24 + 16 + 16},
		{"data message", messageOverhead, 4 + 4 + 8 + 16},
		{"HANDSHAKE_DSCP", handshakeTOS, 0x88},
		{"room in front of a packet", layout.Header, messageHeader},
		{"room around a packet", layout.Overhead, messageOverhead},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, c.got, c.want)
		}
	}
}

func TestTimersNext(t *testing.T) {
	var ts timers
	if _, at := ts.next(); at != 0 {
		t.Error("the zero value has a deadline")
	}
	for i := range timerCount {
		ts.set(i, int64(100-i))
		if which, at := ts.next(); which != i || at != int64(100-i) {
			t.Errorf("next is %v at %d, want %v", timerNames[which], at, timerNames[i])
		}
		if ts.due(i, int64(99-i)) || !ts.due(i, int64(100-i)) || !ts.due(i, math.MaxInt64) {
			t.Errorf("%s: due does not become true exactly at the deadline", timerNames[i])
		}
		if timerNames[i] == "" {
			t.Errorf("timer %d has no name", i)
		}
	}
	for i := range timerCount {
		if !ts.pending(i) {
			t.Errorf("%s: the timer was set, but is not pending", timerNames[i])
		}
		if ts.cancel(i); ts.pending(i) || ts.due(i, math.MaxInt64) {
			t.Errorf("%s: the timer is pending or due after cancel", timerNames[i])
		}
	}
	if ts != (timers{}) {
		t.Error("the timers are not the zero value after all were cancelled")
	}
}

// TestJitter checks that the jitter is between 0 and 333 ms, and that two devices that set the same timer at the same time wait
// for different times.
func TestJitter(t *testing.T) {
	least, most := int64(math.MaxInt64), int64(0)
	same := 0
	for i := range int64(10000) {
		a, b := timers{seed: uint32(i)}, timers{seed: uint32(i + 1)}
		now := 3600*second + i*second/7
		j := a.jitter(now)
		if j < 0 || j > maxJitter {
			t.Fatalf("the jitter is %d ns, want 0 to 333 ms", j)
		}
		if j != a.jitter(now) {
			t.Fatal("two calls of jitter with the same time return different values")
		}
		least, most = min(least, j), max(most, j)
		if d := j - b.jitter(now); d > -second/1000 && d < second/1000 {
			same++
		}
	}
	if least > maxJitter/100 || most < maxJitter*99/100 {
		t.Errorf("the jitter is from %d to %d ns, want it to fill the range from 0 to 333 ms", least, most)
	}
	if same > 200 { // 60 of 10,000 are expected
		t.Errorf("%d of 10000 pairs of devices have jitters within 1 ms of each other, want at most 200", same)
	}
}

func TestUnansweredCountsFromFirstDataPacket(t *testing.T) {
	c := newCore(t)
	c.initiator()
	c.sends(false)
	c.wantNone(timerUnanswered, "keepalives do not start the timer")
	c.sends(true)
	c.wantIn(timerUnanswered, unansweredTimeout, maxJitter, "data was sent")
	first := c.timers.at[timerUnanswered]
	c.after(14 * second).sends(true)
	if c.timers.at[timerUnanswered] != first {
		t.Error("later data changed the timer, which must count from the first unanswered packet")
	}
	for c.expires() != timerUnanswered {
	}
	c.wantInitiation(true, "data went unanswered")
	c.wantNone(timerUnanswered, "the timer has fired")
}

// If data goes unanswered, one event says so, 11 s plus the jitter after the data was sent. That is before the device begins a
// new handshake.
func TestUnansweredIsPublished(t *testing.T) {
	c := newCore(t)
	c.initiator()
	c.sends(true)
	sent := c.now
	c.after(5 * second).sends(true)
	for c.expires() != timerSilence {
	}
	if age := c.now - sent; age < silenceTimeout || age > silenceTimeout+maxJitter {
		t.Errorf("the event was published %d ns after the first data was sent, want 11 s plus the jitter", age)
	}
	if len(c.out.events) != 1 || c.out.events[0] != (outEvent{EventUnanswered, c.endpoint}) {
		t.Errorf("the events are %+v, want one EventUnanswered", c.out.events)
	}
	c.sends(true)
	for which := c.expires(); which != timerUnanswered; which = c.expires() {
		if which == timerSilence {
			t.Error("the event was published twice")
		}
	}
	c.wantInitiation(true, "data went unanswered")
	if len(c.out.events) != 0 {
		t.Errorf("the events are %+v, want none", c.out.events)
	}
	c.sends(true)
	c.receives(c.current, false)
	c.step()
	if c.expire(c.now+silenceTimeout+maxJitter, &c.out); len(c.out.events) != 0 {
		t.Errorf("the events are %+v, want none: an answer arrived", c.out.events)
	}
}

func TestUnansweredIsCancelledByAnythingAuthentic(t *testing.T) {
	for name, receive := range map[string]func(*core){
		"keepalive":  func(c *core) { c.receives(c.current, false) },
		"data":       func(c *core) { c.receives(c.current, true) },
		"initiation": func(c *core) { c.responded() },
		"response":   func(c *core) { c.initiator() },
	} {
		c := newCore(t)
		c.initiator()
		c.sends(true)
		receive(c)
		c.wantNone(timerUnanswered, name+" was received")
	}
}

func TestUnansweredOnlyWhenSent(t *testing.T) {
	c := newCore(t)
	c.initiator()
	if !c.sending(1, c.now, c.step()) {
		t.Fatal("the core cannot send in its session")
	}
	c.sentOn(false, c.heard, c.now, c.step()) // the socket failed, and no data was sent
	c.wantNone(timerUnanswered, "the timer starts only if the send succeeded")
}

// An answer may arrive before the goroutine that sent the data calls sentOn. In that case sentOn does not start the timer that
// waits for an answer.
func TestUnansweredNotArmedOnceAnswered(t *testing.T) {
	c := newCore(t)
	c.initiator()
	if !c.sending(1, c.now, c.step()) {
		t.Fatal("the core cannot send in its session")
	}
	began := c.heard
	c.receives(c.current, true)
	c.sentOn(true, began, c.now, c.step())
	c.wantNone(timerUnanswered, "an answer arrived after the send began")
	c.sends(true)
	c.wantIn(timerUnanswered, unansweredTimeout, maxJitter, "the next packet is unanswered")
}

func TestUnansweredForgetsSource(t *testing.T) {
	c := newCore(t)
	c.initiator()
	c.endpoint.Source = netip.MustParseAddr("192.0.2.99")
	c.sends(true)
	for c.expires() != timerUnanswered {
	}
	if c.endpoint.Source.IsValid() {
		t.Error("the source address is kept, although it may be the cause of the failure")
	}
}

func TestKeepaliveArmedByFirstDataReceived(t *testing.T) {
	c := newCore(t)
	k := c.initiator()
	c.receives(k, false)
	c.wantNone(timerKeepalive, "keepalives must not answer keepalives")
	c.receives(k, true)
	c.wantIn(timerKeepalive, keepaliveTimeout, 0, "data was received")
	at := c.timers.at[timerKeepalive]
	c.after(4*second).receives(k, true)
	if c.timers.at[timerKeepalive] != at {
		t.Error("more data changed the timer, which must count from the first packet")
	}
}

func TestKeepaliveNeedAnother(t *testing.T) {
	c := newCore(t)
	k := c.initiator()
	c.receives(k, true)
	c.after(second).receives(k, true)
	if c.expires() != timerKeepalive {
		t.Fatal("another timer fired first")
	}
	c.wantKeepalive(true, "the core has sent nothing for 10 s after it received data")
	c.sends(false)
	c.wantIn(timerKeepalive, keepaliveTimeout, 0, "more data arrived while the timer was set, so it is set for another period")
	if c.expires() != timerKeepalive {
		t.Fatal("another timer fired first")
	}
	c.wantKeepalive(true, "the second keepalive")
	c.sends(false)
	c.wantNone(timerKeepalive, "no data has arrived since")
}

func TestKeepaliveOnceForOnePacket(t *testing.T) {
	c := newCore(t)
	c.receives(c.initiator(), true)
	c.expires()
	c.wantKeepalive(true, "the core has sent nothing for 10 s after it received data")
	c.sends(false)
	c.wantNone(timerKeepalive, "one packet causes one keepalive")
}

func TestKeepaliveCancelledBeforeTheSend(t *testing.T) {
	for name, send := range map[string]func(*core){
		"data":       func(c *core) { c.sending(1, c.now, c.step()) },
		"initiation": func(c *core) { c.initiate(c.now+5*second, false, c.step()); c.after(5 * second).initiates() },
		"response":   func(c *core) { c.responded() },
	} {
		c := newCore(t)
		c.receives(c.initiator(), true)
		c.wantIn(timerKeepalive, keepaliveTimeout, 0, "data was received")
		send(c)
		c.wantNone(timerKeepalive, "sending any authenticated message cancels the timer before the send succeeds: "+name)
	}
}

func TestPersistentKeepalive(t *testing.T) {
	c := newCore(t)
	c.persistent = 25
	k := c.initiator()
	c.wantIn(timerPersistent, 25*second, 0, "the handshake is traffic")
	for name, traffic := range map[string]func(){
		"data sent":          func() { c.sends(true) },
		"keepalive sent":     func() { c.sends(false) },
		"data received":      func() { c.receives(k, true) },
		"keepalive received": func() { c.receives(k, false) },
		"response sent":      func() { c.responded(); c.next = nil },
	} {
		c.after(second)
		traffic()
		c.wantIn(timerPersistent, 25*second, 0, name+": traffic restarts the interval")
	}
	c.timers = timers{}
	c.traversed(c.now)
	if c.expires() != timerPersistent {
		t.Fatal("another timer fired first")
	}
	c.wantKeepalive(true, "25 s without traffic")
	c.sends(false)
	c.wantIn(timerPersistent, 25*second, 0, "the keepalive restarts the interval")

	c.persistent = 0
	c.expires()
	c.wantKeepalive(false, "the persistent keepalive was turned off meanwhile")
	c.wantNone(timerPersistent, "the persistent keepalive was turned off meanwhile")
}

// TestPersistentKeepaliveOffAmidSleep is about a persistent keepalive that was turned off but whose timer is still set. After the
// machine slept, this timer may be due together with that of a passive keepalive. The passive keepalive must still be sent.
func TestPersistentKeepaliveOffAmidSleep(t *testing.T) {
	c := newCore(t)
	c.persistent = 25
	c.receives(c.initiator(), true)
	c.persistent = 0
	c.after(25 * second)
	c.expire(c.now, c.step())
	c.wantKeepalive(true, "data was received and not answered")
}

func TestPersistentKeepaliveOff(t *testing.T) {
	c := newCore(t)
	k := c.initiator()
	c.sends(true)
	c.receives(k, true)
	c.wantNone(timerPersistent, "the persistent keepalive is off")
}

func TestSessionExpires(t *testing.T) {
	c := newCore(t)
	k := c.initiator()
	c.wantIn(timerExpiry, rejectAfterTime, 0, "the session is established")
	c.after(rejectAfterTime - 1).elapse()
	c.wantEvents("a nanosecond before 180 s")
	c.after(1).elapse()
	c.wantEvents("the limit of 180 s is inclusive", EventSessionExpired)
	c.wantNone(timerExpiry, "the timer has fired")
	if c.sending(1, c.now, c.step()) {
		t.Error("the core sends in a session that is exactly 180 s old")
	}
	c.wantInitiation(true, "there is no usable session for a packet")
	if c.current != k {
		t.Error("the expiry removed the session, want it removed by the wipe")
	}
}

func TestSessionRenewedDoesNotExpire(t *testing.T) {
	c := newCore(t)
	c.initiator()
	c.after(120 * second).initiator()
	c.wantIn(timerExpiry, rejectAfterTime, 0, "the expiry of the new session")
	c.after(60 * second).elapse()
	c.wantEvents("the first session was replaced")
}

func TestWipe(t *testing.T) {
	c := newCore(t)
	c.initiator()                    // its index is 1
	c.after(10 * second).initiator() // its index is 2
	c.after(10 * second).responded() // its index is 3
	c.static, c.staticOf = secret{1}, new(identity)
	c.wantIn(timerWipe, wipeAfterTime, 0, "540 s after the last new session")
	for c.timers.at[timerWipe] > c.now {
		c.expires()
	}
	c.wantFreed("the wipe frees the indices of all sessions", 2, 3)
	if c.keypairs != (keypairs{}) || c.handshake != nil || c.drops != nil {
		t.Error("the wipe left keypairs, a handshake or drop counters")
	}
	if c.timers.pending(timerWipe) || c.timers.pending(timerExpiry) {
		t.Error("the timer of the wipe or of the expiry is still set")
	}
	if c.static == (secret{}) {
		t.Error("the wipe cleared the static secret, which belongs to the identity")
	}
	if c.out.forget {
		t.Error("the wipe makes the device forget a configured peer")
	}
}

func TestWipeEndsHandshake(t *testing.T) {
	c := newCore(t)
	c.initiator()
	c.after(530 * second)
	c.initiate(c.now, false, c.step())
	c.initiates()
	h := c.handshake
	c.at(540 * time.Second).elapse()
	if c.handshake != nil || *h != (handshake{}) {
		t.Error("the wipe did not clear the secrets of the handshake")
	}
}

func TestWipeOfLookedUpPeer(t *testing.T) {
	c := newCore(t)
	c.lookedUp = true
	c.responded()
	c.wantIn(timerWipe, rejectAfterTime, 0, "a replayed initiation can make such a session, but cannot confirm it")
	c.after(second).receives(c.next, false)
	c.wantIn(timerWipe, wipeAfterTime-second, 0, "the session is confirmed")
	c.after(120 * second).responded()
	c.wantIn(timerWipe, wipeAfterTime, 0, "there is already a confirmed session")
	c.after(wipeAfterTime).elapse()
	if !c.out.forget {
		t.Error("the wipe does not make the device forget a looked-up peer")
	}
}
