package wireguard

import (
	"net/netip"
	"testing"
	"time"
)

func place(n byte) Endpoint {
	return EndpointOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, n}), 51820))
}

// Row 32 of the list decisions in coverage_test.go: Renew sends an initiation at once if, during the last 5 s, the device sent no
// initiation to the same endpoint, and fewer than 4 initiations to all endpoints of the peer together.
func TestRenewLimits(t *testing.T) {
	c := newCore(t)
	c.initiator()
	renew := func(want bool, why string) {
		t.Helper()
		c.renew(c.now, c.step())
		c.wantInitiation(want, why)
		if want {
			c.initiates()
		}
	}
	renew(true, "a session is no reason to wait")
	renew(false, "an initiation was just sent to this endpoint")
	for n := range byte(maxRecent - 1) {
		c.after(second).setEndpoint(place(n))
		renew(true, "no initiation was sent to this endpoint")
		renew(false, "an initiation was just sent to the new endpoint")
	}
	c.setEndpoint(place(200))
	renew(false, "at most 4 initiations are sent in 5 s")
	c.at(5*time.Second - 1)
	renew(false, "the first of the 4 was sent less than 5 s ago")
	c.after(1)
	renew(true, "the first of the 4 was sent 5 s ago")
	c.setEndpoint(place(0))
	renew(false, "the second of the 4, to this endpoint, was sent less than 5 s ago")
	c.after(second)
	renew(true, "the second of the 4 was sent 5 s ago")
}

// If Renew has to delay its initiation, the device makes the initiation later, even if there is a session by then.
func TestRenewPutOff(t *testing.T) {
	c := newCore(t)
	c.renew(c.now, c.step())
	c.initiates()
	c.initiator() // the response arrived
	c.after(second).renew(c.now, c.step())
	c.wantInitiation(false, "an initiation was sent to this endpoint a second ago")
	c.wantIn(timerRetransmit, 4*second, maxJitter, "the initiation is delayed")
	c.expires()
	c.wantInitiation(true, "the delayed initiation is due")
}

// When the device begins to make an initiation for Renew, it checks again that it has not sent an initiation to the same endpoint
// in the last 5 s.
func TestRenewJudgedAgain(t *testing.T) {
	c := newCore(t)
	c.renew(c.now, c.step())
	c.initiates()
	c.setEndpoint(place(1))
	c.renew(c.now, c.step())
	c.wantInitiation(true, "the core has another endpoint now")
	c.setEndpoint(coreEndpoint)
	if _, ok := c.beginInitiation(c.now, TimestampOf(c.wall)); ok {
		t.Error("beginInitiation allows an initiation to an endpoint to which one was just sent")
	}
	c.wantIn(timerRetransmit, 5*second, maxJitter, "the initiation is delayed")

	// While a worker is making an initiation, renew does not ask for another one.
	c = newCore(t)
	c.renew(c.now, c.step())
	if _, ok := c.beginInitiation(c.now, TimestampOf(c.wall)); !ok {
		t.Fatal("beginInitiation refused to make the initiation")
	}
	c.renew(c.now, c.step())
	c.wantInitiation(false, "a worker is making an initiation")
}

// A response delays ordinary initiations for 5 s, but not those of Renew.
func TestRenewAfterResponse(t *testing.T) {
	c := newCore(t)
	c.responder()
	c.initiate(c.now, false, c.step())
	c.wantInitiation(false, "a response was just sent")
	c.renew(c.now, c.step())
	c.wantInitiation(true, "no initiation was sent to this endpoint")
	c.initiates()
}

// When the state of a peer is wiped, stopped or retired, the list of endpoints that received initiations is freed.
func TestRenewMemory(t *testing.T) {
	for name, end := range map[string]func(c *core){
		"wiped":   func(c *core) { c.wipe(c.step()) },
		"stopped": func(c *core) { c.stop(c.step()) },
		"retired": func(c *core) { c.retire(nil, c.step()) },
	} {
		c := newCore(t)
		c.renew(c.now, c.step())
		c.initiates()
		if c.recent == nil || c.recent.before != nil {
			t.Fatal("the list of recent initiations does not have exactly one entry")
		}
		if end(c); c.recent != nil {
			t.Errorf("%s: the list of recent initiations was not freed", name)
		}
	}
}

// The list of recent initiations does not grow while a peer leaves many of them unanswered.
func TestRecentIsBounded(t *testing.T) {
	c := newCore(t)
	for range 20 {
		c.renew(c.now, c.step())
		c.initiates()
		c.after(5 * second)
	}
	n := 0
	for s := c.recent; s != nil; s = s.before {
		n++
	}
	if n == 0 || n > maxRecent {
		t.Errorf("the list has %d initiations, want 1 to %d", n, maxRecent)
	}
}

// Row 32: a session is live if two conditions hold. A message has arrived in the session since Configure last changed the
// endpoint. And there is no data in the session that has been unanswered for 10 s.
func TestLiveSession(t *testing.T) {
	for _, test := range []struct {
		name string
		play func(c *core, k *keypair)
		live bool
	}{
		{"new", func(c *core, k *keypair) {}, true},
		{"idle", func(c *core, k *keypair) { c.after(179 * second) }, true},
		{"expired", func(c *core, k *keypair) { c.after(180 * second) }, false},
		{"data in flight", func(c *core, k *keypair) { c.sends(true); c.after(10*second - 1) }, true},
		{"data unanswered", func(c *core, k *keypair) { c.sends(true); c.after(10 * second) }, false},
		{"more data does not make it young", func(c *core, k *keypair) { c.sends(true); c.after(9 * second).sends(true); c.after(second) }, false},
		{"data unanswered beyond the time of the new initiation", func(c *core, k *keypair) {
			c.sends(true)
			c.expires()
			c.after(second).sends(true)
		}, false},
		{"answered", func(c *core, k *keypair) { c.sends(true); c.after(second).receives(k, false); c.after(10 * second) }, true},
		{"answered late", func(c *core, k *keypair) { c.sends(true); c.after(11*second).receives(k, false) }, true},
		{"a keepalive needs no answer", func(c *core, k *keypair) { c.sends(false); c.after(10 * second) }, true},
		{"moved", func(c *core, k *keypair) { c.setEndpoint(place(1)) }, false},
		{"moved and heard", func(c *core, k *keypair) { c.setEndpoint(place(1)); c.receives(k, false) }, true},
		{"moved and heard in the previous session", func(c *core, k *keypair) {
			c.initiator()
			c.setEndpoint(place(1))
			c.receives(k, true)
		}, false},
		{"endpoint set to its current value", func(c *core, k *keypair) { c.setEndpoint(coreEndpoint) }, true},
		{"roamed", func(c *core, k *keypair) { e := place(1); c.peerState.receive(k, &e, true, c.now, c.step()) }, true},
		{"moved, and only an initiation arrived", func(c *core, k *keypair) { c.setEndpoint(place(1)); c.responded() }, false},
		{"a new session after the move", func(c *core, k *keypair) { c.setEndpoint(place(1)); c.initiator() }, true},
	} {
		c := newCore(t)
		test.play(c, c.initiator())
		if got := c.current.live(c.now); got != test.live {
			t.Errorf("%s: live is %v, want %v", test.name, got, test.live)
		}
	}
	if (*keypair)(nil).live(coreT0) {
		t.Error("live is true without a session")
	}
}

// A message in a session that was no longer live makes the session live again, and ends the calls that wait for a session.
func TestRevivedSession(t *testing.T) {
	c := newCore(t)
	k := c.initiator()
	if c.receives(k, true); c.out.revived {
		t.Error("a message in a live session revived it")
	}
	c.setEndpoint(place(1))
	if c.receives(k, false); !c.out.revived {
		t.Error("a message after a change of the endpoint did not revive the session")
	}
	if c.receives(k, false); c.out.revived {
		t.Error("the next message revived the session again")
	}
}

// TestRenewWhileMade checks that Renew does not ask for a second initiation while a worker is making one. Otherwise the device
// would send both initiations to the current endpoint at the same time. The peer would refuse the second one, and the device
// would refuse the peer's response to the first one.
func TestRenewWhileMade(t *testing.T) {
	c := newCore(t)
	if _, ok := c.beginInitiation(c.now, Timestamp{1}); !ok {
		t.Fatal("beginInitiation refused to make the initiation")
	}
	c.setEndpoint(Endpoint{Addr: netip.MustParseAddrPort("192.0.2.99:1")})
	c.renew(c.now, c.step())
	c.wantInitiation(false, "a worker is making an initiation, and will send it to the new endpoint")
	c.commitInitiation(&handshake{initiator: true, local: 1}, make([]byte, initiationSize), c.now, c.step())
	c.setEndpoint(Endpoint{Addr: netip.MustParseAddrPort("192.0.2.98:1")})
	c.renew(c.now, c.step())
	c.wantInitiation(true, "the endpoint changed after the initiation was made")
}
