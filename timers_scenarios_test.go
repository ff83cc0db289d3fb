package wireguard_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// If the initiator of a session sends a data message when the session is at least 120 s old (Rekey-After-Time), it begins a new
// handshake. The responder does not (whitepaper, section 6.2).
func TestRekeyOnSend(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(120*time.Second - 1)
		a.send(b, "young")
		w.want("a data", "1 ns before REKEY_AFTER_TIME")
		w.advance(1)
		b.send(a, "responder")
		w.want("b data", "the responder does not renew the session")
		a.send(b, "old")
		w.want("a data, a initiation, b response, a keepalive", "the initiator renews the session after it has sent the packet")
		b.wantArrived("the old session works during the rekey", "young", "old")
		a.send(b, "new")
		w.want("a data", "the new session is young")
	})
}

// Sending a keepalive can also cause a rekey. Linux calls keep_key_fresh after keepalives too (wg_packet_create_data_done).
func TestRekeyOnKeepalive(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(115 * time.Second)
		b.send(a, "data that wants a keepalive")
		w.want("b data", "the session is too young for a rekey")
		w.wantAt(10*time.Second, "a keepalive, a initiation, b response, a keepalive", "sending a keepalive causes a rekey, too")
	})
}

// If the initiator of a session receives a data message when the session is at least 165 s old (Reject-After-Time −
// Keepalive-Timeout − Rekey-Timeout; whitepaper, section 6.2), it begins a new handshake, at most once per session.
func TestRekeyOnReceive(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(165*time.Second - 1)
		b.send(a, "one")
		w.want("b data", "1 ns before 165 s")
		w.net.CutOneWay(a.end, b.end)
		w.advance(1)
		b.send(a, "two")
		w.want("b data, a initiation", "at 165 s")
		for range 4 {
			w.advance(time.Second)
			b.send(a, "three")
		}
		w.want("b data x4", "more data causes no initiation before the retry is due")
		w.wantJittered(time.Second, "a initiation", "the retry")
	})
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(170 * time.Second)
		a.send(b, "x")
		w.want("a data, a initiation, b response, a keepalive", "the initiator renews the session because it sends data")
		b.send(a, "y")
		w.want("b data", "the new session is too young for a rekey on receive")
		w.advance(165 * time.Second)
		w.script()
		b.send(a, "z")
		w.want("b data, a initiation, b response, a keepalive", "the new session is renewed on receive after 165 s")
	})
}

// The responder never renews a session because of a message that it receives.
func TestNoRekeyOnReceiveByResponder(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(110 * time.Second)
		a.send(b, "x")
		w.want("a data", "the session is young")
		w.judge(func(m *message) pipe.Verdict {
			if m.kind == pipe.TypeInitiation {
				return pipe.Drop
			}
			return pipe.Pass
		})
		w.advance(60 * time.Second)
		w.script()
		a.send(b, "y")
		w.script()
		if n := b.end.Sent().Initiations; n != 0 {
			w.Fatalf("the responder sent %d initiations, want 0", n)
		}
	})
}

// If a device has received data and sends nothing back for 10 s (Keepalive-Timeout), it sends a keepalive (whitepaper, section
// 6.5).
func TestPassiveKeepalive(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.send(b, "hello")
		w.want("a data", "a sends a packet")
		w.wantAt(10*time.Second, "b keepalive", "nothing was sent back for KEEPALIVE_TIMEOUT")
		w.wantIdle(time.Hour, "a keepalive is not answered: no ping-pong, and no renewal of an idle session")
	})
}

// If a device that has received data sends any authenticated message within 10 s, it does not send the passive keepalive (Linux,
// wg_timers_any_authenticated_packet_sent).
func TestPassiveKeepaliveCancelled(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.send(b, "hello")
		w.advance(10*time.Second - 1)
		b.send(a, "back")
		w.want("a data, b data", "b sends data just before its keepalive is due")
		w.wantAt(10*time.Second, "a keepalive", "b's packet is data, so a sends a keepalive")
		w.wantIdle(time.Minute, "b's keepalive was cancelled")
	})
}

// If a device receives more data while its keepalive timer runs, the timer runs for another period after the keepalive is sent,
// as in Linux (peer->timer_need_another_keepalive).
func TestNeedAnotherKeepalive(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.send(b, "one")
		w.advance(5 * time.Second)
		a.send(b, "two")
		w.advance(1 * time.Second)
		a.send(b, "three")
		w.want("a data x3", "all three packets are sent before the keepalive")
		w.wantAt(4*time.Second, "b keepalive", "10 s after the first packet, not the last one")
		w.wantAt(10*time.Second, "b keepalive", "one more keepalive, for the packets that arrived meanwhile")
		w.wantIdle(time.Minute, "there is no third keepalive")
	})
}

// A keepalive does not need an answer: neither its sender nor its receiver starts a timer because of it (row 10 of the list
// decisions in coverage_test.go; Linux calls wg_timers_data_sent only for packets that are not empty).
func TestKeepaliveAnsweredByNothing(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.net.Cut(a.end, b.end)
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(time.Hour)})
		w.want("a keepalive", "a sends a keepalive at once when it is turned on")
		w.wantIdle(10*time.Minute, "an unanswered keepalive is no reason for a handshake")
	})
}

// If a device has sent data and receives nothing for 15 s (Keepalive-Timeout + Rekey-Timeout; whitepaper, section 6.5), it begins
// a new handshake. The time counts from the first packet that was not answered.
func TestUnansweredData(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.net.Cut(a.end, b.end)
		a.send(b, "first")
		w.advance(7 * time.Second)
		a.send(b, "second")
		w.advance(7 * time.Second)
		a.send(b, "third")
		w.want("a data x3", "all three packets are lost")
		w.wantJittered(time.Second, "a initiation", "15 s and the jitter after the first packet")
	})
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		b.send(a, "first") // the same holds for the responder
		w.lose("a keepalive", 1)
		w.want("b data", "b sends a packet")
		w.wantAt(10*time.Second, "a keepalive", "the keepalive is lost")
		w.wantJittered(5*time.Second, "b initiation, a response, b keepalive", "the responder begins a handshake, too")
	})
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.send(b, "first")
		w.advance(14 * time.Second)
		w.want("a data, b keepalive", "b answers")
		w.wantIdle(time.Minute, "any authenticated packet cancels the timer")
	})
}

// When a session is exactly 180 s old (Reject-After-Time), neither device sends or receives data in it any more.
func TestSessionSilentAt180s(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.judge(func(m *message) pipe.Verdict { // drop all initiations, so that the session is not renewed
			if m.kind == pipe.TypeInitiation {
				return pipe.Drop
			}
			return pipe.Pass
		})
		w.advance(180*time.Second - 1)
		a.send(b, "a's last")
		b.send(a, "b's last")
		w.want("a data, a initiation, b data", "1 ns before REJECT_AFTER_TIME the session carries data")
		b.wantArrived("the session is younger than 180 s", "a's last")
		a.wantArrived("the session is younger than 180 s", "b's last")
		late := w.last("b data")
		a.wantSession(b, true, "1 ns before REJECT_AFTER_TIME")
		w.advance(1)
		a.wantSession(b, false, "a does not send in a session that is 180 s old")
		b.wantSession(a, false, "b does not send in a session that is 180 s old")
		a.send(b, "x")
		b.send(a, "x")
		w.want("b initiation", "no device sends data; a must wait for 5 s, and b initiates at once")
		late.data[8]++ // this makes the message a forgery, but a drops it before it opens the message
		w.replay(late)
		a.wantDrops(wireguard.DropExpiredKey, 1, "a does not receive in the session")
		a.wantEvents("the session expired", wireguard.EventHandshake, wireguard.EventSessionExpired)
	})
}

// A device refuses a message that arrives when the session is 180 s old, even if the message was sent earlier.
func TestReceiveAt180s(t *testing.T) {
	for _, late := range []time.Duration{-1, 0} {
		scenario(t, func(w *world, a, b *node) {
			w.connect(a, b)
			w.advance(100 * time.Second)
			w.hold("a data", 1)
			a.send(b, "slow")
			w.advance(80*time.Second + late)
			w.release()
			if late < 0 {
				b.wantArrived("1 ns before the end of the session", "slow")
			} else {
				b.wantArrived("the session is 180 s old")
				b.wantDrops(wireguard.DropExpiredKey, 1, "the session is 180 s old")
			}
		})
	}
}

// A device clears all keys of a session when 540 s (3 × Reject-After-Time; whitepaper, section 6.3) have passed without a new
// session.
func TestWipe(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(540*time.Second - 1)
		for _, n := range []*node{a, b} {
			if got := wireguard.SessionIndices(n.Device); got != 1 {
				w.Fatalf("%s has %d session indices before the wipe, want 1", n.name, got)
			}
		}
		w.advance(1)
		for _, n := range []*node{a, b} {
			if got := wireguard.SessionIndices(n.Device); got != 0 {
				w.Fatalf("%s has %d session indices after the wipe, want 0", n.name, got)
			}
			if s := n.status(map[*node]*node{a: b, b: a}[n]); s.NextReason != "" {
				w.Fatalf("%s: the next deadline is %q, want none", n.name, s.NextReason)
			}
		}
		w.want("", "a wipe sends nothing")
	})
}

// Each new session, in either role, restarts the 540 s after which the device clears the keys.
func TestWipeAfterLastSession(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(200 * time.Second)
		w.connect(b, a)
		w.advance(540*time.Second - 1)
		if x, y := wireguard.SessionIndices(a.Device), wireguard.SessionIndices(b.Device); x == 0 || y == 0 {
			w.Fatal("a device wiped its keys 540 s after the first session, want 540 s after the last one")
		}
		w.advance(1)
		if x, y := wireguard.SessionIndices(a.Device), wireguard.SessionIndices(b.Device); x+y != 0 {
			w.Fatalf("%d and %d session indices are left 540 s after the last session, want 0", x, y)
		}
	})
}

// When a device gives up a series of initiations, it sets the timer that clears the keys after 540 s, unless this timer is
// already set. Linux does the same: "We set a timer for destroying any residue that might be left of a partial exchange"
// (wg_expired_retransmit_handshake).
func TestWipeAfterGiveUp(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.net.Cut(nil, nil)
		a.send(b, "x")
		for len(a.events) == 0 {
			w.advance(time.Millisecond)
		}
		if n := wireguard.SessionIndices(a.Device); n != 1 {
			w.Fatalf("a has %d session indices when it gives up, want 1: that of the last initiation", n)
		}
		w.advance(540*time.Second - time.Millisecond)
		if n := wireguard.SessionIndices(a.Device); n != 1 {
			w.Fatalf("a has %d session indices before the wipe, want 1", n)
		}
		w.advance(time.Millisecond)
		if n := wireguard.SessionIndices(a.Device); n != 0 {
			w.Fatalf("a has %d session indices after the wipe, want 0", n)
		}
	})
}

// A device sends a persistent keepalive when it has neither sent nor received anything for the interval, as in Linux
// (wg_timers_any_authenticated_packet_traversal).
func TestPersistentKeepaliveIdle(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(time.Second)
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(25 * time.Second)})
		w.want("a keepalive", "a sends a keepalive at once when it is turned on")
		for i := range 4 {
			w.wantAt(25*time.Second, "a keepalive", fmt.Sprintf("interval %d", i+1))
		}
		w.wantAt(25*time.Second, "a keepalive, a initiation, b response, a keepalive",
			"after 126 s, the session is also due for a rekey")
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(30 * time.Second)})
		w.want("", "a change of the interval sends no keepalive")
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(time.Duration(0))})
		w.wantIdle(time.Hour, "the persistent keepalive is off")
	})
}

// While packets flow through the tunnel, in either direction, the device sends no persistent keepalives.
func TestPersistentKeepaliveActive(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(15 * time.Second)})
		w.want("a keepalive", "a sends a keepalive at once when it is turned on")
		for range 18 {
			w.advance(4 * time.Second)
			b.send(a, "b")
			w.advance(time.Second)
			a.send(b, "a")
		}
		if n := a.end.Sent().Keepalives; n != 2 {
			w.Fatalf("a sent %d keepalives, want 2: that of the handshake and the first persistent one", n)
		}
		w.script()
		w.wantAt(10*time.Second, "b keepalive", "b sends a passive keepalive after a's last packet")
		w.wantAt(15*time.Second, "a keepalive", "the interval begins with the last message in either direction")
	})
}

// If a persistent keepalive is turned on and there is no session, the device begins a handshake. It also does so in Up if a
// persistent keepalive is configured.
func TestPersistentKeepaliveMakesSession(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(25 * time.Second)})
		w.want("a initiation, b response, a keepalive", "a begins a handshake at once")
		a.Down()
		w.advance(time.Minute)
		w.want("", "a device that is down sends nothing")
		if err := a.Up(); err != nil {
			w.Fatal(err)
		}
		w.want("a initiation, b response, a keepalive", "Up begins a handshake for the persistent keepalive, without the 5 s limit (row 26)")
	})
}

// If a persistent keepalive is configured before the endpoint, it begins when the endpoint is configured.
func TestPersistentKeepaliveThenEndpoint(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.node("a"), w.node("b")
		b.knows(a, func(c *wireguard.PeerConfig) { c.Endpoint = wireguard.Endpoint{} })
		a.knows(b, func(c *wireguard.PeerConfig) {
			c.Endpoint, c.PersistentKeepalive = wireguard.Endpoint{}, 25*time.Second
		})
		w.wantIdle(time.Minute, "a peer without an endpoint gets no initiation, even if a timer is due (row 2)")
		a.update(b, wireguard.PeerChange{Endpoint: ptr(b.at())})
		w.advance(25 * time.Second)
		if n := a.end.Sent().Initiations; n != 1 {
			w.Fatalf("a sent %d initiations, want 1: the peer has an endpoint, and one interval has passed", n)
		}
		b.wantSession(a, true, "the persistent keepalive made a session")
	})
}
