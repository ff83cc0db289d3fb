package wireguard_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// "after sending a transport data message … if the peer was the original initiator of the handshake and the current
// session key is Rekey-After-Time ms old, a new handshake is initiated … the responder … does not" (6.2). Limits are
// inclusive.
func TestRekeyOnSend(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(120*time.Second - 1)
		a.send(b, "young")
		w.want("a data", "1 ns before REKEY_AFTER_TIME")
		w.advance(1)
		b.send(a, "responder")
		w.want("b data", "the responder does not renew")
		a.send(b, "old")
		w.want("a data, a initiation, b response, a keepalive", "the initiator does, after it sent")
		b.wantArrived("the old session carries on meanwhile", "young", "old")
		a.send(b, "new")
		w.want("a data", "the new session is young")
	})
}

// A keepalive can start a rekey too. Linux calls keep_key_fresh after keepalives as well (wg_packet_create_data_done).
func TestRekeyOnKeepalive(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(115 * time.Second)
		b.send(a, "data that wants a keepalive")
		w.want("b data", "too young for anything else")
		w.wantAt(10*time.Second, "a keepalive, a initiation, b response, a keepalive", "a keepalive is a send like any other")
	})
}

// "if the peer is the original initiator … after receiving a transport data message … and the session is
// Reject-After-Time − Keepalive-Timeout − Rekey-Timeout seconds old" (6.2), once a session.
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
		w.want("b data x4", "asked for once: retries have their own pace")
		w.wantJittered(time.Second, "a initiation", "the retry")
	})
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(170 * time.Second)
		a.send(b, "x")
		w.want("a data, a initiation, b response, a keepalive", "the initiator renews by its own data")
		b.send(a, "y")
		w.want("b data", "the new session has a last minute of its own")
		w.advance(165 * time.Second)
		w.script()
		b.send(a, "z")
		w.want("b data, a initiation, b response, a keepalive", "which begins 165 s after it was made")
	})
}

// The responder never renews a session because of a message that it receives.
func TestNoRekeyOnReceiveByResponder(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(110 * time.Second)
		a.send(b, "x")
		w.want("a data", "young")
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
			w.Fatalf("the responder sent %d initiations", n)
		}
	})
}

// "if a peer has received a validly-authenticated transport data message … but does not have any packets itself to send
// back for Keepalive-Timeout seconds, it sends a keepalive message" (6.5).
func TestPassiveKeepalive(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.send(b, "hello")
		w.want("a data", "sent")
		w.wantAt(10*time.Second, "b keepalive", "nothing was sent back for KEEPALIVE_TIMEOUT")
		w.wantIdle(time.Hour, "a keepalive is not answered: no ping-pong, and no renewal of an idle session")
	})
}

// "if … it has packets to send back, the keepalive is cancelled": any authenticated packet that is sent cancels it (Linux,
// wg_timers_any_authenticated_packet_sent).
func TestPassiveKeepaliveCancelled(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.send(b, "hello")
		w.advance(10*time.Second - 1)
		b.send(a, "back")
		w.want("a data, b data", "an answer just in time")
		w.wantAt(10*time.Second, "a keepalive", "that answer is data too")
		w.wantIdle(time.Minute, "b's keepalive was cancelled")
	})
}

// As in Linux (peer->timer_need_another_keepalive): if more data is received while the keepalive timer runs, the timer runs for one
// more period after the keepalive is sent.
func TestNeedAnotherKeepalive(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.send(b, "one")
		w.advance(5 * time.Second)
		a.send(b, "two")
		w.advance(1 * time.Second)
		a.send(b, "three")
		w.want("a data x3", "all before the keepalive")
		w.wantAt(4*time.Second, "b keepalive", "10 s after the first, not the last")
		w.wantAt(10*time.Second, "b keepalive", "one more, for those that came meanwhile")
		w.wantIdle(time.Minute, "and no third")
	})
}

// A keepalive starts no timer that waits for an answer, at either end (row 10; Linux calls wg_timers_data_sent only for packets
// that are not empty).
func TestKeepaliveAnsweredByNothing(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.net.Cut(a.end, b.end)
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(time.Hour)})
		w.want("a keepalive", "turned on: one at once")
		w.wantIdle(10*time.Minute, "nobody answers, and that is no reason for a handshake")
	})
}

// "if a packet has been sent … and no packet has been received for Keepalive-Timeout + Rekey-Timeout seconds, initiate a
// new handshake" (6.5). The time counts from the first packet that went unanswered.
func TestUnansweredData(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.net.Cut(a.end, b.end)
		a.send(b, "first")
		w.advance(7 * time.Second)
		a.send(b, "second")
		w.advance(7 * time.Second)
		a.send(b, "third")
		w.want("a data x3", "into the void")
		w.wantJittered(time.Second, "a initiation", "15 s and the jitter after the first")
	})
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		b.send(a, "first") // the responder is no exception
		w.lose("a keepalive", 1)
		w.want("b data", "sent")
		w.wantAt(10*time.Second, "a keepalive", "which is lost")
		w.wantJittered(5*time.Second, "b initiation, a response, b keepalive", "either role")
	})
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.send(b, "first")
		w.advance(14 * time.Second)
		w.want("a data, b keepalive", "answered")
		w.wantIdle(time.Minute, "any authenticated packet cancels it")
	})
}

// "after Reject-After-Time … a session … is not used": "silent at exactly 180 s on both sides".
func TestSessionSilentAt180s(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.judge(func(m *message) pipe.Verdict { // so that nothing renews the session
			if m.kind == pipe.TypeInitiation {
				return pipe.Drop
			}
			return pipe.Pass
		})
		w.advance(180*time.Second - 1)
		a.send(b, "a's last")
		b.send(a, "b's last")
		w.want("a data, a initiation, b data", "1 ns before REJECT_AFTER_TIME the session carries data")
		b.wantArrived("in time", "a's last")
		a.wantArrived("in time", "b's last")
		late := w.last("b data")
		a.wantSession(b, true, "1 ns before")
		w.advance(1)
		a.wantSession(b, false, "silent at exactly 180 s")
		b.wantSession(a, false, "on both sides")
		a.send(b, "x")
		b.send(a, "x")
		w.want("b initiation", "no data; a waits for its 5 s, b initiates at once")
		late.data[8]++ // makes the message a forgery, but a drops it before opening it
		w.replay(late)
		a.wantDrops(wireguard.DropExpiredKey, 1, "nor does it receive")
		a.wantEvents("it expired", wireguard.EventHandshake, wireguard.EventSessionExpired)
	})
}

// A message that is sent in time but arrives when the session is 180 s old is refused.
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
				b.wantArrived("at its end")
				b.wantDrops(wireguard.DropExpiredKey, 1, "at its end")
			}
		})
	}
}

// "after Reject-After-Time × 3 … all … are zeroed" (6.3).
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
				w.Fatalf("%s: next %q, want nothing", n.name, s.NextReason)
			}
		}
		w.want("", "a wipe sends nothing")
	})
}

// The 540 s until the wipe restart with each session, in either role.
func TestWipeAfterLastSession(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(200 * time.Second)
		w.connect(b, a)
		w.advance(540*time.Second - 1)
		if x, y := wireguard.SessionIndices(a.Device), wireguard.SessionIndices(b.Device); x == 0 || y == 0 {
			w.Fatal("540 s after the first session is too early")
		}
		w.advance(1)
		if x, y := wireguard.SessionIndices(a.Device), wireguard.SessionIndices(b.Device); x+y != 0 {
			w.Fatalf("%d and %d indices 540 s after the last session", x, y)
		}
	})
}

// When a series of initiations is given up, the device sets the timer of the wipe, if it is not set. Linux: "We set a timer for
// destroying any residue that might be left of a partial exchange" (wg_expired_retransmit_handshake).
func TestWipeAfterGiveUp(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.net.Cut(nil, nil)
		a.send(b, "x")
		for len(a.events) == 0 {
			w.advance(time.Millisecond)
		}
		if n := wireguard.SessionIndices(a.Device); n != 1 {
			w.Fatalf("%d indices at the give-up, want that of the last try", n)
		}
		w.advance(540*time.Second - time.Millisecond)
		if n := wireguard.SessionIndices(a.Device); n != 1 {
			w.Fatalf("%d indices before the wipe", n)
		}
		w.advance(time.Millisecond)
		if n := wireguard.SessionIndices(a.Device); n != 0 {
			w.Fatalf("%d indices after the wipe", n)
		}
	})
}

// Linux: the persistent keepalive is sent "if nothing was sent or received" for its interval
// (wg_timers_any_authenticated_packet_traversal).
func TestPersistentKeepaliveIdle(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(time.Second)
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(25 * time.Second)})
		w.want("a keepalive", "one at once when it is turned on")
		for i := range 4 {
			w.wantAt(25*time.Second, "a keepalive", fmt.Sprintf("interval %d", i+1))
		}
		w.wantAt(25*time.Second, "a keepalive, a initiation, b response, a keepalive",
			"at 126 s it is due for a new session, too")
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(30 * time.Second)})
		w.want("", "another interval is not turning on")
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(time.Duration(0))})
		w.wantIdle(time.Hour, "off")
	})
}

// A tunnel that is in use, in either direction, needs no persistent keepalive.
func TestPersistentKeepaliveActive(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(15 * time.Second)})
		w.want("a keepalive", "at once")
		for range 18 {
			w.advance(4 * time.Second)
			b.send(a, "b")
			w.advance(time.Second)
			a.send(b, "a")
		}
		if n := a.end.Sent().Keepalives; n != 2 {
			w.Fatalf("%d keepalives, want that of the handshake and the first one", n)
		}
		w.script()
		w.wantAt(10*time.Second, "b keepalive", "b has nothing to answer a's last packet with")
		w.wantAt(15*time.Second, "a keepalive", "its interval begins with whatever goes either way")
	})
}

// If a persistent keepalive is turned on and there is no session, the device makes one. So does a device that goes up with a
// persistent keepalive configured.
func TestPersistentKeepaliveMakesSession(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(25 * time.Second)})
		w.want("a initiation, b response, a keepalive", "at once")
		a.Down()
		w.advance(time.Minute)
		w.want("", "down")
		if err := a.Up(); err != nil {
			w.Fatal(err)
		}
		w.want("a initiation, b response, a keepalive", "row 26: up sends persistent keepalives, without the 5 s limit")
	})
}

// The endpoint may be configured after the persistent keepalive.
func TestPersistentKeepaliveThenEndpoint(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.node("a"), w.node("b")
		b.knows(a, func(c *wireguard.PeerConfig) { c.Endpoint = wireguard.Endpoint{} })
		a.knows(b, func(c *wireguard.PeerConfig) {
			c.Endpoint, c.PersistentKeepalive = wireguard.Endpoint{}, 25*time.Second
		})
		w.wantIdle(time.Minute, "row 2: no handshake work for a peer without endpoint, by packet or by timer")
		a.update(b, wireguard.PeerChange{Endpoint: ptr(b.at())})
		w.advance(25 * time.Second)
		if n := a.end.Sent().Initiations; n != 1 {
			w.Fatalf("%d initiations, want one: the peer can be reached now, within an interval", n)
		}
		b.wantSession(a, true, "kept alive")
	})
}
