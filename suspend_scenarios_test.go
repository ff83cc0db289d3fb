package wireguard_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// These tests suspend the machines of devices: one or both of them, during a session or a handshake, and with or without a
// persistent keepalive. In each case, the devices must not send data with a key that is too old, and the tunnel must work again
// after at most one retry.

var naps = []time.Duration{time.Second, 100 * time.Second, 130 * time.Second, 200 * time.Second, time.Hour}

// wantYoungKeys asserts that from now on no device sends a data message in a session that is 180 s old or older. It recognizes a
// session by the indices in its response.
func (w *world) wantYoungKeys() {
	made := map[uint32]time.Duration{}
	w.net.Tap(func(p pipe.Packet) {
		switch index := binary.LittleEndian.Uint32(p.Data[4:]); p.Type {
		case pipe.TypeResponse:
			made[index], made[binary.LittleEndian.Uint32(p.Data[8:])] = w.now(), w.now()
		case pipe.TypeData, pipe.TypeKeepalive:
			if at, ok := made[index]; !ok || w.now()-at >= 180*time.Second {
				w.Errorf("at %v: a device sent a message in a session that is %v old (known: %v)", w.now(), w.now()-at, ok)
			}
		}
	})
}

// The machines of both devices sleep and resume at the same time. Whether the device that sends first makes a new session depends
// on the age of the old session.
func TestSuspendBoth(t *testing.T) {
	for _, asleep := range naps {
		for _, first := range []string{"initiator", "responder"} {
			t.Run(fmt.Sprint(asleep, " ", first, " first"), func(t *testing.T) {
				scenario(t, func(w *world, a, b *node) {
					w.wantYoungKeys()
					w.connect(a, b)
					w.suspend(asleep, a, b)
					w.want("", "no message is due after the sleep")
					from, to := a, b
					if first == "responder" {
						from, to = b, a
					}
					from.send(to, "good morning")
					switch {
					case asleep < 120*time.Second:
						w.want(from.name+" data", "the session is young")
					case asleep < 180*time.Second && from == a:
						w.want("a data, a initiation, b response, a keepalive", "the initiator renews the session after 120 s")
					case asleep < 180*time.Second:
						w.want("b data", "the responder does not renew the session")
					default:
						w.want(fmt.Sprintf("%s initiation, %s response, %s data", from.name, to.name, from.name), "the devices make a new session at once")
					}
					to.wantArrived("without delay", "good morning")
					to.send(from, "and to you")
					from.wantArrived("without delay", "and to you")
				})
			})
		}
		t.Run(fmt.Sprint(asleep, " both first"), func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				w.wantYoungKeys()
				w.connect(a, b)
				w.suspend(asleep, a, b)
				w.net.SetConditions(pipe.Conditions{Delay: time.Millisecond})
				a.tun.TrySend(a.packet(b, "from a"))
				b.tun.TrySend(b.packet(a, "from b"))
				w.advance(5*time.Second + jitter + 5*time.Millisecond)
				b.wantArrived("the initiations may cross, but one retry makes a session", "from a")
				a.wantArrived("the initiations may cross, but one retry makes a session", "from b")
			})
		})
	}
}

// The initiator's machine sleeps while the response is in flight. If it resumes within 5 s, the initiator accepts the response.
// Otherwise the initiator sends a new initiation when it resumes, and drops the response to the old one.
func TestSuspendAmidHandshakeInitiator(t *testing.T) {
	for _, asleep := range naps {
		t.Run(fmt.Sprint(asleep), func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				w.wantYoungKeys()
				w.hold("b response", 1)
				a.send(b, "hello")
				w.want("a initiation, b response", "the response is held back")
				w.suspend(asleep, a)
				if asleep < 5*time.Second {
					w.want("", "the initiation is younger than 5 s")
					w.release()
					w.want("a data", "the response answers the newest initiation")
				} else {
					w.want("a initiation, b response, a data", "the next initiation is due")
					w.release()
					w.want("", "a drops the response to its old initiation")
					a.wantDrops(wireguard.DropUnknownIndex, 1, "the response has the index of the old initiation")
				}
				b.wantArrived("the staged packet arrives", "hello")
			})
		})
	}
}

// The responder's machine sleeps. The initiator retries, and gives up after 20 initiations, as for any peer that does not answer.
func TestSuspendAmidHandshakeResponder(t *testing.T) {
	for _, asleep := range naps {
		t.Run(fmt.Sprint(asleep), func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				w.wantYoungKeys()
				go func() {
					time.Sleep(time.Nanosecond)
					a.tun.TrySend(a.packet(b, "hello"))
				}()
				w.suspend(asleep, b)
				tries := a.end.Sent().Initiations
				w.advance(5*time.Second + jitter)
				if tries < 20 {
					b.wantArrived("the next retry reaches b", "hello")
					a.wantEvents("one series of initiations is enough", wireguard.EventHandshake)
					return
				}
				if tries > 20 || asleep < 95*time.Second {
					w.Fatalf("a sent %d initiations while b slept, want 20 only if it slept for at least 95 s", tries)
				}
				a.wantEvents("b answered none of 20 initiations", wireguard.EventHandshakeFailed)
				w.script()
				w.wantIdle(time.Minute, "a does not try again by itself")
				a.send(b, "anyone?")
				w.want("a initiation, b response, a data", "a packet begins a new series")
				b.wantArrived("the first packet was dropped when a gave up", "anyone?")
			})
		})
	}
}

// If a device has a persistent keepalive, it is reachable as soon as its machine resumes.
func TestSuspendKeptAlive(t *testing.T) {
	for _, asleep := range naps {
		for _, role := range []string{"initiator", "responder"} {
			t.Run(fmt.Sprint(asleep, " ", role), func(t *testing.T) {
				scenario(t, func(w *world, a, b *node) {
					w.wantYoungKeys()
					if role == "initiator" {
						w.connect(a, b)
					} else {
						w.connect(b, a)
					}
					a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(25 * time.Second)})
					w.want("a keepalive", "a turns on the persistent keepalive")
					w.suspend(asleep, a)
					switch {
					case asleep < 25*time.Second:
						w.want("", "the keepalive is not due yet")
					case asleep < 120*time.Second, asleep < 180*time.Second && role == "responder":
						w.want("a keepalive", "the keepalive is due, and the session is young")
					case asleep < 180*time.Second:
						w.want("a keepalive, a initiation, b response, a keepalive", "the keepalive is due, and the initiator renews the session")
					default:
						w.want("a initiation, b response, a keepalive", "a makes a new session at once")
					}
					w.advance(25 * time.Second)
					b.send(a, "still there?")
					a.wantArrived("a is reachable without delay", "still there?")
				})
			})
		}
	}
}

// The wall clock is set back while the program is not running. The peer still knows the greatest timestamp that it has received,
// but the restarted device does not know it. So the peer refuses the device's initiations as replays until the wall clock has
// passed that timestamp (whitepaper, section 5.1). The peer can still initiate.
func TestRestartWithClockSetBack(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.Close()
		a.clock.stepWall(-time.Minute)
		a.tun = pipe.NewTunnel(0)
		a.boot(rand.NewChaCha8([32]byte{99}), func(c *wireguard.Config) { c.Peers = []wireguard.PeerConfig{b.peer()} })
		if err := a.Up(); err != nil {
			w.Fatal(err)
		}
		a.send(b, "x")
		w.want("a initiation", "b does not answer the initiation, because its timestamp is old")
		b.wantDrops(wireguard.DropOldTimestamp, 1, "b cannot distinguish the initiation from a replay")
		w.advance(50 * time.Second)
		w.script()
		b.wantSession(a, true, "b still has the session from before a's restart")
		w.advance(10*time.Second + 5*time.Second + jitter)
		b.wantArrived("a's wall clock has passed the old timestamp", "x")
	})
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.Close()
		a.clock.stepWall(-time.Hour)
		a.tun = pipe.NewTunnel(0)
		a.boot(rand.NewChaCha8([32]byte{99}), func(c *wireguard.Config) { c.Peers = []wireguard.PeerConfig{b.peer()} })
		if err := a.Up(); err != nil {
			w.Fatal(err)
		}
		b.send(a, "lost")
		w.want("b data", "b sends in a session that a does not have any more")
		a.wantDrops(wireguard.DropUnknownIndex, 1, "the session index is unknown")
		w.wantJittered(15*time.Second, "b initiation, a response, b keepalive", "the data was unanswered for 15 s, and b's timestamps are valid")
		a.send(b, "back again")
		b.wantArrived("the session works in both directions", "back again")
	})
}

// A machine sleeps during a session. The age of the session includes the time asleep. When the machine resumes, the device
// removes keys that are too old, and begins a handshake if one is due.
func TestSuspend(t *testing.T) {
	for _, asleep := range []time.Duration{time.Second, 100 * time.Second, 200 * time.Second, time.Hour} {
		for _, role := range []string{"initiator", "responder"} {
			for _, wake := range []bool{false, true} {
				t.Run(fmt.Sprint(asleep, role, map[bool]string{true: " Wake"}[wake]), func(t *testing.T) {
					scenario(t, func(w *world, a, b *node) { playSuspend(w, a, b, asleep, role, wake) })
				})
			}
		}
	}
}

func playSuspend(w *world, a, b *node, asleep time.Duration, role string, wake bool) {
	// The machine of a sleeps.
	if role == "initiator" {
		w.connect(a, b)
	} else {
		w.connect(b, a)
	}
	w.suspend(asleep, a)
	alive := asleep < 180*time.Second
	w.want("", "no message is due after the sleep")
	if wake {
		if err := a.Wake(); err != nil {
			w.Fatal(err)
		}
		if alive {
			w.want("a keepalive", "Wake tells the peer a's address, in the session that is still young")
		} else {
			w.want("", "no packet waits, so no handshake is due")
		}
	}
	a.wantSession(b, alive, "the age of the session includes the sleep")
	a.send(b, "good morning")
	if alive {
		w.want("a data", "the session is still young")
	} else {
		w.want("a initiation, b response, a data", "a sends no data with an old key, and begins a handshake at once")
	}
	b.wantArrived("without delay", "good morning")
	b.send(a, "good morning to you")
	w.want("b data", "b answers in the same session")
	a.wantArrived("without delay", "good morning to you")
}

// A suspended machine loses the packets that are sent to it. The sender notices after 15 s that it gets no answer, and sends
// initiations until the machine answers again.
func TestSuspendWhilePeerSends(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		b.send(a, "before")
		a.clock.suspend(true)
		w.net.Cut(a.end, nil)
		b.send(a, "lost")
		w.advance(50 * time.Second)
		if n := b.end.Sent().Initiations; n < 6 || n > 8 {
			w.Fatalf("b sent %d initiations in 50 s, want one after 15 s, and then one per 5 s", n)
		}
		w.net.Mend(a.end, nil)
		a.clock.suspend(false)
		w.advance(5*time.Second + jitter)
		if w.script(); b.end.Sent().Keepalives == 0 {
			w.Fatal("the next initiation did not make a session")
		}
		b.send(a, "after")
		a.wantArrived("a is reachable again", "before", "after")
	})
}

// If the system's timers stop while the machine is suspended, Wake handles the timers that are due: those of keepalives, retries
// and wipes.
func TestWakeRings(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		for _, n := range []*node{a, b} {
			n.clock.leap(time.Hour)
		}
		w.wantIdle(0, "the timers stood still")
		for _, n := range []*node{a, b} {
			if err := n.Wake(); err != nil {
				w.Fatal(err)
			}
		}
		w.want("", "no message is due")
		if x, y := wireguard.SessionIndices(a.Device), wireguard.SessionIndices(b.Device); x+y != 0 {
			w.Fatalf("%d and %d session indices are left, want 0: Wake must wipe sessions that are an hour old", x, y)
		}
		a.wantEvents("a publishes the events that were due", wireguard.EventHandshake, wireguard.EventSessionExpired)
	})
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(25 * time.Second)})
		w.want("a keepalive", "a sends a keepalive at once")
		a.clock.leap(time.Hour)
		b.clock.leap(time.Hour)
		a.Wake()
		w.want("a initiation, b response, a keepalive", "a peer with a persistent keepalive needs a new session")
	})
}
