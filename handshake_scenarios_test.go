package wireguard_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// An initiator that receives no response sends a new initiation with a new ephemeral key after REKEY_TIMEOUT (5 s; whitepaper,
// section 6.4) and a random jitter. Linux adds the jitter too (timers.c, wg_timers_handshake_initiated).
func TestInitiationRetransmitted(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.net.Cut(a.end, b.end)
		a.send(b, "hello")
		w.want("a initiation", "a sends the first initiation at once")
		for i := range 5 {
			before := w.last("a initiation")
			// Each wait begins at the previous initiation, so that the jitters do not add up.
			w.wantIdle(5*time.Second-1-(w.now()-before.at), "REKEY_TIMEOUT is not over")
			w.advance(jitter + 1)
			w.want("a initiation", fmt.Sprintf("a sends retry %d after REKEY_TIMEOUT and the jitter", i+1))
			if after := w.last("a initiation"); string(after.data[8:40]) == string(before.data[8:40]) {
				w.Fatal("a retry has the ephemeral key of the previous initiation, want a new one")
			}
		}
		w.net.Mend(a.end, b.end)
		w.advance(5*time.Second + jitter)
		w.want("a initiation, b response, a data", "the network works again, and the staged packet confirms the session")
		b.wantArrived("the packet was staged until the handshake", "hello")
		w.wantIdle(9*time.Second, "the retries ended with the response")
	})
}

// The gaps between retries differ between two peers, and from one retry to the next, because of the jitter.
func TestJitterDiffers(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.net.Cut(nil, nil)
		a.send(b, "x")
		b.send(a, "x")
		seen := map[time.Duration]bool{}
		last := map[*node]time.Duration{}
		w.judge(func(m *message) pipe.Verdict {
			seen[m.at-last[m.from]], last[m.from] = true, m.at
			return pipe.Pass
		})
		w.advance(40 * time.Second)
		if len(seen) < 12 {
			w.Fatalf("%d different gaps among about 14 retries, want at least 12", len(seen))
		}
	})
}

// After 20 initiations without an answer, the device gives up, and drops the staged packets. Linux does the same (timers.c): its
// MAX_TIMER_HANDSHAKES is 90 / 5 = 18, and it gives up when "timer_handshake_attempts > MAX_TIMER_HANDSHAKES", which is after 20
// initiations.
func TestGiveUpAfterTwentyInitiations(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.net.Cut(a.end, b.end)
		a.send(b, "one", "two")
		w.advance(20*5*time.Second - 1)
		n := a.end.Sent().Initiations
		w.advance(20*jitter + 1)
		if n > 20 || a.end.Sent().Initiations != 20 {
			w.Fatalf("%d initiations after 100 s, %d in the end, want 20", n, a.end.Sent().Initiations)
		}
		w.script()
		a.wantEvents("the device reports that it gave up", wireguard.EventHandshakeFailed)
		a.wantDrops(wireguard.DropNoSession, 2, "the staged packets are dropped")
		if s := a.status(b); s.Staged != 0 || s.NextReason != "wipe the session" || wireguard.StagedBytes(a.Device) != 0 {
			w.Fatalf("after the device gave up: %d staged packets, %d staged bytes, next deadline %q, want no staged packets and a wipe", s.Staged, wireguard.StagedBytes(a.Device), s.NextReason)
		}
		w.net.Mend(a.end, b.end)
		w.wantIdle(10*time.Minute, "the device does not try again by itself")
		a.send(b, "three")
		w.want("a initiation, b response, a data", "a new packet begins a new series")
		b.wantArrived("the old packets are gone", "three")
	})
}

// While the program sends packets, the device does not give up: each packet that has to wait for a session sets the count of
// attempts to zero. Linux does the same (wg_packet_send_queued_handshake_initiation, !is_retry).
func TestNoGiveUpWhilePacketsCome(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.net.Cut(a.end, b.end)
		for range 60 {
			a.send(b, "again")
			w.advance(5 * time.Second)
		}
		if n := a.end.Sent().Initiations; n < 56 || n > 61 {
			w.Fatalf("%d initiations in 300 s under traffic, want one every 5 to 5.33 s", n)
		}
		a.wantEvents("there is one event for each 20 attempts, and the attempts continue", wireguard.EventHandshakeFailed, wireguard.EventHandshakeFailed)
	})
}

// With a persistent keepalive, a new series of initiations starts one interval after the last try of the previous series.
func TestPersistentKeepaliveStartsNewSeries(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.net.Cut(a.end, b.end)
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(25 * time.Second)})
		for range 107 {
			w.advance(time.Second)
		}
		if n := a.end.Sent().Initiations; n != 20 {
			w.Fatalf("%d initiations, want 20", n)
		}
		w.script()
		last := w.last("a initiation").at
		w.advance(last + 25*time.Second - 1 - w.now())
		w.want("", "less than one interval after the last attempt")
		w.advance(1)
		w.want("a initiation", "one interval after the last attempt")
		if s := a.status(b); s.Attempts != 1 {
			w.Fatalf("attempt %d, want the first of a new series", s.Attempts)
		}
	})
}

// The responder must not send data before it receives the initiator's first data message, which proves that the initiator has the
// keys too. So as soon as the initiator receives the response, it sends its staged packets, or a keepalive if nothing is staged
// (section 6.5; Linux, wg_packet_handshake_receive_worker).
func TestInitiatorConfirmsAtOnce(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		a.send(b, "one", "two", "three")
		w.want("a initiation, b response, a data x3", "the staged packets confirm the session, so a sends no keepalive")
		b.wantArrived("the staged packets arrive in order", "one", "two", "three")
		w.wantIdle(9*time.Second, "nothing else is due")
	})
	scenario(t, func(w *world, a, b *node) {
		w.connect(b, a) // connect asserts that a keepalive confirms the session if nothing is staged
	})
}

// The responder sends its staged packets as soon as the initiator's first data message confirms the session. Before that message
// arrives, the responder "must wait to use the new session" (whitepaper, section 5.1, "key confirmation").
func TestResponderFlushesOnConfirmation(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.hold("a keepalive", 1)
		go a.Handshake(w.Context(), b.pub())
		w.want("a initiation, b response, a keepalive", "the confirmation is held back")
		b.send(a, "one")
		b.send(a, "two")
		w.want("", "the responder may not send before it is confirmed, nor initiate within 5 s of its response")
		b.wantSession(a, false, "the session is not confirmed")
		w.release()
		w.want("b data x2", "b sends its staged packets after the confirmation")
		a.wantArrived("the staged packets arrive in order", "one", "two")
	})
}

// If the initiations of two devices cross, each device forgets its own initiation when it answers that of the other device,
// because it has only one handshake state per peer, like Linux. So both devices have an unconfirmed keypair and no session. The
// next retry, after 5 to 5.33 s, makes a session.
func TestCrossingInitiationsHeal(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.net.SetConditions(pipe.Conditions{Delay: time.Millisecond})
		a.send(b, "from a")
		b.send(a, "from b")
		w.want("a initiation, b initiation", "the initiations cross")
		w.advance(10 * time.Millisecond)
		if s, r := w.script(), a.end.Sent().Responses+b.end.Sent().Responses; r != 2 {
			w.Fatalf("the devices sent %q, want a response from each", s)
		}
		a.wantSession(b, false, "a forgot its own initiation, and b does not confirm the response of a")
		b.wantSession(a, false, "b forgot its own initiation, and a does not confirm the response of b")
		w.wantIdle(5*time.Second-9*time.Millisecond-1, "no initiation within 5 s of the last response")
		w.advance(jitter + 4*time.Millisecond)
		if n := w.net.Sent().Initiations; n != 3 {
			w.Fatalf("%d initiations, want 3, because the third makes a session", n)
		}
		w.script()
		b.wantArrived("the session is made after 5 to 5.33 s", "from a")
		a.wantArrived("the session is made after 5 to 5.33 s", "from b")
		w.advance(8 * time.Second)
		w.want("", "both devices have a session, and nothing is due")
	})
}

// Traffic in both directions does not make initiations cross again and again. The jitter prevents that: if the first packet after
// 5 s caused the next initiation at once, without jitter, both devices would always send their initiations at the same moment.
func TestCrossingInitiationsHealUnderTraffic(t *testing.T) {
	for _, gap := range []time.Duration{time.Second, 10 * time.Millisecond} {
		scenario(t, func(w *world, a, b *node) {
			w.net.SetConditions(pipe.Conditions{Delay: 50 * time.Millisecond})
			for i := range int(6 * time.Second / gap) {
				a.send(b, fmt.Sprint("a", i))
				b.send(a, fmt.Sprint("b", i))
				w.advance(gap)
			}
			a.wantSession(b, true, "the session is made after 5 to 5.33 s")
			b.wantSession(a, true, "the session is made after 5 to 5.33 s")
			if n := w.net.Sent().Initiations; n != 3 {
				w.Fatalf("%d initiations, want 3: two that cross and one that makes a session", n)
			}
		})
	}
}

// If one of two crossing initiations is lost, the other one makes a session at once.
func TestCrossingInitiationsOneLost(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.net.SetConditions(pipe.Conditions{Delay: time.Millisecond})
		w.lose("a initiation", 1)
		a.send(b, "from a")
		b.send(a, "from b")
		w.advance(5 * time.Millisecond)
		w.want("a initiation, b initiation, a response, b data, a data", "one handshake makes a session for both devices")
		a.wantArrived("the packet arrives at once", "from b")
		b.wantArrived("the packet arrives at once", "from a")
		w.wantIdle(9*time.Second, "a does not retry its lost initiation")
	})
}

// The initiator drops a response to an initiation that it has replaced with a newer one.
func TestResponseToSupersededInitiation(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.hold("b response", 1)
		a.send(b, "hello")
		w.want("a initiation, b response", "the response is delayed")
		w.judge(func(m *message) pipe.Verdict {
			if m.kind == pipe.TypeResponse {
				return pipe.Drop
			}
			return pipe.Pass
		})
		w.wantJittered(5*time.Second, "a initiation, b response", "the retry supersedes the first initiation")
		w.release()
		w.want("", "the response to the first initiation arrives too late")
		a.wantSession(b, false, "a refuses the late response")
		a.wantDrops(wireguard.DropUnknownIndex, 1, "the index of the replaced initiation is no longer in use")
		w.advance(5*time.Second + jitter)
		w.want("a initiation, b response, a data", "a accepts the response to its newest initiation")
		b.wantArrived("the packet arrives after the last handshake", "hello")
	})
}

// A device refuses a replayed initiation: "the responder keeps track of the greatest timestamp received per peer and discards
// packets containing timestamps less than or equal to it" (whitepaper, section 5.1).
func TestReplayedInitiationRefused(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		first := w.last("a initiation")
		w.advance(time.Minute)
		w.replay(first)
		w.want("", "an initiation is answered once")
		b.wantDrops(wireguard.DropOldTimestamp, 1, "its timestamp is equal to the greatest one")

		a.configure(wireguard.Change{PrivateKey: &wireguard.PrivateKey{}})
		a.configure(wireguard.Change{PrivateKey: &a.key})
		w.connect(a, b)
		w.advance(time.Second)
		w.replay(first)
		w.want("", "an older initiation is not answered either")
		b.wantDrops(wireguard.DropOldTimestamp, 2, "its timestamp is less than the greatest one")

		// The replays do not harm the established session.
		a.send(b, "still here")
		w.want("a data", "no new handshake")
		b.wantArrived("the session still exists", "still here")
	})
}

// A device still knows the greatest timestamp that it has received from a peer after it has wiped the sessions, and after Down.
// It loses the timestamp only "if the responder restarts" (whitepaper, section 5.1).
func TestReplayedInitiationRefusedAfterWipeAndDown(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		first := w.last("a initiation")
		w.wantIdle(10*time.Minute, "all keys are wiped in this time")
		w.replay(first)
		w.want("", "the wipe removes the keys and keeps the timestamp")
		b.Down()
		if err := b.Up(); err != nil {
			w.Fatal(err)
		}
		w.replay(first)
		w.want("", "Down keeps the timestamp")
		b.wantDrops(wireguard.DropOldTimestamp, 2, "both are replays")
	})
}

// A device drops a replayed response: the index in the response now belongs to the session, and no handshake waits for a
// response.
func TestReplayedResponseRefused(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.replay(w.last("b response"))
		w.want("", "the replay causes no second session and no second confirmation")
		a.wantDrops(wireguard.DropSuperseded, 1, "the handshake of the response is complete")
		a.send(b, "still here")
		w.want("a data", "the session still exists")
		b.wantArrived("the session still exists", "still here")
		w.wantIdle(time.Second, "no device has a reason to send")
		a.wantEvents("there was one handshake", wireguard.EventHandshake)
	})
}

// A device accepts at most one initiation of a peer per 20 ms, like Linux (INITIATIONS_PER_SECOND = 50). It drops an initiation
// that arrives earlier.
func TestInitiationTooSoon(t *testing.T) {
	for _, gap := range []time.Duration{20*time.Millisecond - 1, 20 * time.Millisecond} {
		scenario(t, func(w *world, a, b *node) {
			w.judge(func(m *message) pipe.Verdict {
				if m.from == b {
					return pipe.Drop
				}
				return pipe.Pass
			})
			a.send(b, "one")
			w.want("a initiation, b response", "the first is accepted")
			w.advance(gap)
			// Changing the key and changing it back makes the device send an initiation at once.
			a.configure(wireguard.Change{PrivateKey: &wireguard.PrivateKey{}})
			a.configure(wireguard.Change{PrivateKey: &a.key})
			if gap < 20*time.Millisecond {
				w.want("a initiation", "b does not answer less than 20 ms after the last initiation")
				b.wantDrops(wireguard.DropTooSoon, 1, "the initiation arrived too soon")
			} else {
				w.want("a initiation, b response", "b answers 20 ms after the last initiation")
			}
		})
	}
}

// If one message of a handshake is lost, a retry makes the session. A staged packet is lost only if the lost message contained
// it.
func TestLossOfEachHandshakeMessage(t *testing.T) {
	for _, test := range []struct {
		lost         string
		first, later string
		healed       time.Duration
	}{
		{"a initiation", "a initiation", "a initiation, b response, a data", 5 * time.Second},
		{"b response", "a initiation, b response", "a initiation, b response, a data", 5 * time.Second},
		// The lost message contains the packet and would have confirmed the session. The device a initiates again when it has
		// received nothing for 15 s.
		{"a data", "a initiation, b response, a data", "a initiation, b response, a keepalive", 15 * time.Second},
	} {
		t.Run(test.lost, func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				w.lose(test.lost, 1)
				a.send(b, "hello")
				w.want(test.first, "the lost message is the last one")
				w.wantJittered(test.healed, test.later, "the retry makes a session")
				if test.lost == "a data" {
					b.wantArrived("a does not resend a lost data message")
				} else {
					b.wantArrived("the staged packet is kept until the retry", "hello")
				}
				b.wantSession(a, true, "the retry made a session")
				a.wantSession(b, true, "the retry made a session")
			})
		})
	}
}

// If the initiator's first data message is lost and the responder has a packet to send, the responder makes a session itself.
func TestLostConfirmationAndDataAtResponder(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.lose("a keepalive", 1)
		go a.Handshake(w.Context(), b.pub())
		w.want("a initiation, b response, a keepalive", "the confirmation is lost")
		b.send(a, "hello")
		w.wantJittered(5*time.Second, "b initiation, a response, b data", "5 s after its response the responder initiates")
		a.wantArrived("the packet of b arrives", "hello")
	})
}

// Two devices with different preshared keys cannot make a session, because the "psk … is mixed into the handshake" (whitepaper,
// section 5.2). The initiator detects the difference: it cannot verify the response's tag.
func TestPresharedKeyMismatch(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		a.update(b, wireguard.PeerChange{PresharedKey: ptr(wireguard.PresharedKey{1})})
		a.send(b, "hello")
		w.want("a initiation, b response", "a cannot verify the response")
		a.wantDrops(wireguard.DropForged, 1, "the response's tag is made with another psk")
		w.wantJittered(5*time.Second, "a initiation, b response", "a continues to retry")
		a.wantSession(b, false, "the preshared keys differ")
		b.wantSession(a, false, "a never confirmed the session")
		b.update(a, wireguard.PeerChange{PresharedKey: ptr(wireguard.PresharedKey{1})})
		w.advance(5*time.Second + jitter)
		w.want("a initiation, b response, a data", "the next handshake uses the new preshared key")
		b.wantArrived("the packet arrives after the handshake", "hello")
	})
}

// If both devices have the same preshared key, they make a session, and data arrives in both directions.
func TestPresharedKeySession(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		psk := wireguard.NewPresharedKey()
		a.update(b, wireguard.PeerChange{PresharedKey: &psk})
		b.update(a, wireguard.PeerChange{PresharedKey: &psk})
		w.connect(a, b)
		a.send(b, "there")
		b.send(a, "back")
		w.want("a data, b data", "both devices send data in the session")
		b.wantArrived("b opens the packet", "there")
		a.wantArrived("a opens the packet", "back")
	})
}

// A device sends handshake messages with TOS 0x88, and data messages with DSCP 0, like Linux (messages.h: HANDSHAKE_DSCP = 0x88).
func TestHandshakeTOS(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		a.send(b, "x")
		if i, r := w.last("a initiation"), w.last("b response"); i.tos != 0x88 || r.tos != 0x88 {
			w.Fatalf("TOS of initiation %#x, of response %#x, want 0x88", i.tos, r.tos)
		}
		if d := w.last("a data"); d.tos != 0 {
			w.Fatalf("TOS of data %#x, want 0", d.tos)
		}
	})
}
