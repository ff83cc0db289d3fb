package wireguard_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// "a peer … keeps the previous session … to receive … until a packet … under the new" (6.1, "the last two sessions and
// the unconfirmed next one"). In each role, the old session still decrypts while it is the previous one.
func TestPreviousSessionDecryptsDuringRotation(t *testing.T) {
	for _, late := range []string{"a", "b"} {
		t.Run("late from "+late, func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				from, to := a, b
				if late == "b" {
					from, to = b, a
				}
				w.connect(a, b)
				w.advance(121 * time.Second)
				w.hold(late+" data", 1)
				from.send(to, "under the old key")
				old := w.last(late + " data")
				if late == "b" {
					a.send(b, "x")
				}
				w.advance(time.Second)
				if s := a.status(b).SessionAge; s != time.Second {
					w.Fatalf("session age %v: no rotation", s)
				}
				to.arrived()
				w.release()
				to.wantArrived("previous still receives", "under the old key")

				// The next rotation drops the old session.
				w.advance(120 * time.Second)
				w.script()
				a.send(b, "x")
				w.want("a data, a initiation, b response, a keepalive", "rotation")
				to.arrived()
				w.replay(old)
				to.wantArrived("two rotations on, it is gone")
				to.wantDrops(wireguard.DropUnknownIndex, 1, "its index is given up")
			})
		})
	}
}

// The responder sends on its current session until the next one is confirmed.
func TestResponderSendsOnCurrentUntilConfirmed(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(120 * time.Second)
		w.hold("a keepalive", 1)
		a.send(b, "renew")
		w.want("a data, a initiation, b response, a keepalive", "the confirmation of the new session is held back")
		if age := b.status(a).SessionAge; age != 120*time.Second {
			w.Fatalf("session age at the responder %v: want the old one", age)
		}
		b.send(a, "on the old")
		w.want("b data", "at once, on the session that is confirmed")
		a.wantArrived("which is a's previous", "on the old")
		w.release()
		if age := b.status(a).SessionAge; age != 0 {
			w.Fatalf("session age at the responder %v: want the new one", age)
		}
	})
}

// offerCounters makes the device a send messages with the given counters, and gives them to b in that order. It returns which of
// them b accepted.
func offerCounters(w *world, a, b *node, counters []uint64) (accepted []bool) {
	made := map[uint64]message{}
	w.judge(func(m *message) pipe.Verdict { return pipe.Drop })
	for _, c := range counters {
		if _, ok := made[c]; !ok {
			wireguard.SetSendCounter(a.Device, b.pub(), c)
			a.send(b, fmt.Sprint(c))
			made[c] = w.last("a data")
			if got := binary.LittleEndian.Uint64(made[c].data[8:]); got != c {
				w.Fatalf("counter %d on the wire, want %d", got, c)
			}
		}
		w.replay(made[c])
		accepted = append(accepted, len(b.arrived()) == 1)
	}
	return accepted
}

// "the receiver keeps a sliding window" (5.4.6). The rows are those of Linux's selftest/counter.c, run with whole devices.
func TestReplayWindow(t *testing.T) {
	const limit = wireguard.WindowSize + 1
	type row struct {
		counter uint64
		fresh   bool
	}
	for name, rows := range map[string][]row{
		"small": {{0, true}, {1, true}, {1, false}, {9, true}, {8, true}, {7, true}, {7, false}, {0, false}},
		"edges": {{0, true}, {limit, true}, {limit - 1, true}, {limit - 1, false}, {limit - 2, true}, {2, true}, {2, false},
			{limit + 16, true}, {3, false}, {limit + 16, false}},
		"far jumps": {{limit * 4, true}, {limit*4 - (limit - 1), true}, {10, false}, {limit*4 - limit, false},
			{limit*4 - (limit + 1), false}, {limit*4 - (limit - 2), true}, {limit*4 + 1 - limit, false}, {0, false},
			{1 << 40, true}, {1<<40 - 1, true}, {1 << 32, false}, {1 << 40, false}},
		"backwards": {{400, true}, {300, true}, {200, true}, {100, true}, {100, false}, {400, false}},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				w.connect(a, b)
				w.script()
				wireguard.SetSendCounter(a.Device, b.pub(), 1)
				var counters []uint64
				for _, r := range rows {
					// The handshake's keepalive used counter 0, so that all counters are greater by one here.
					counters = append(counters, r.counter+1)
				}
				for i, fresh := range offerCounters(w, a, b, counters) {
					if fresh != rows[i].fresh {
						w.Fatalf("step %d, counter %d: accepted %v, want %v", i, rows[i].counter, fresh, rows[i].fresh)
					}
				}
			})
		})
	}
}

// "after Rekey-After-Messages … either role" (6.2): 2^60 messages.
func TestRekeyAfterMessages(t *testing.T) {
	for _, role := range []string{"initiator", "responder"} {
		t.Run(role, func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				if role == "initiator" {
					w.connect(a, b)
				} else {
					w.connect(b, a)
				}
				w.advance(6 * time.Second) // the 5 s after the last handshake message are over
				wireguard.SetSendCounter(a.Device, b.pub(), wireguard.RekeyAfterMessages-2)
				a.send(b, "last but one")
				w.want("a data", "2^60 - 1 messages")
				a.send(b, "last")
				w.want("a data, a initiation, b response, a keepalive", "2^60 messages")
				b.wantArrived("all of them", "last but one", "last")
			})
		})
	}
}

// "after Reject-After-Messages … refuse to send" (6.2).
func TestRejectAfterMessages(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(6 * time.Second)
		w.judge(func(m *message) pipe.Verdict {
			if m.kind == pipe.TypeInitiation {
				return pipe.Drop
			}
			return pipe.Pass
		})
		wireguard.SetSendCounter(a.Device, b.pub(), wireguard.RejectAfterMessages-2)
		a.send(b, "one")
		a.send(b, "two")
		w.want("a data, a initiation, a data", "the last two counters")
		a.wantSession(b, false, "used up")
		a.send(b, "three")
		w.want("", "never on this key")
		b.wantArrived("the last counter is good", "one", "two")
		w.judge(nil)
		w.advance(5*time.Second + jitter)
		w.want("a initiation, b response, a data", "it waits for the next session")
		b.wantArrived("staged", "three")
	})
}

// Fault of a peer project: its nonce counter had 32 bits.
func TestCounterPasses32Bits(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		wireguard.SetSendCounter(a.Device, b.pub(), 1<<32-2)
		a.send(b, "1", "2", "3", "4")
		b.wantArrived("across 2^32", "1", "2", "3", "4")
		if c := binary.LittleEndian.Uint64(w.last("a data").data[8:]); c != 1<<32+1 {
			w.Fatalf("counter %#x on the wire, want 2^32 + 1", c)
		}
	})
}

// After a change of its private key, the device stops sending with its current and next keys, clears its handshakes,
// and may send an initiation at once, regardless of the 5 s limit. It still receives with the old keys until they are
// 180 s old.
func TestPrivateKeyChange(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(time.Second)
		a.configure(wireguard.Change{PrivateKey: &a.key})
		a.wantSession(b, true, "the same key is no change")

		old := a.key
		a.key = wireguard.NewPrivateKey()
		a.configure(wireguard.Change{PrivateKey: &a.key})
		w.want("", "nothing waits")
		a.wantSession(b, false, "no more sending on the old identity's sessions")
		b.send(a, "still received")
		w.want("b data", "b knows nothing of it")
		a.wantArrived("until 180 s", "still received")
		a.send(b, "from the new me")
		w.want("a initiation", "at once, one second after the last handshake; b does not know this key")
		b.wantDrops(wireguard.DropUnknownPeer, 1, "b does not know this key")

		b.configure(wireguard.Change{Peers: []wireguard.PeerChange{
			{PublicKey: old.Public(), Remove: true},
			{PublicKey: a.pub(), Endpoint: ptr(a.at()), AllowedIPs: a.prefixes()},
		}})
		w.wantJittered(5*time.Second, "a initiation, b response, a data", "b knows the new key")
		b.wantArrived("under the new identity", "from the new me")
		b.send(a, "welcome")
		a.wantArrived("both ways", "welcome")
	})
}

// After a change of the private key, the device receives on the old key's session until that session expires.
func TestPrivateKeyChangeReceivesUntil180s(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(b, a)
		a.configure(wireguard.Change{PrivateKey: ptr(wireguard.NewPrivateKey())})
		w.advance(119 * time.Second)
		b.send(a, "119 s")
		w.advance(50 * time.Second)
		w.hold("b data", 1)
		b.send(a, "late")
		w.advance(11 * time.Second)
		w.release()
		a.wantArrived("until 180 s", "119 s")
		a.wantDrops(wireguard.DropExpiredKey, 1, "and not longer")
	})
}

// If a device that is up gets its first private key, it sends its staged packets. Without a key it makes and answers
// no handshake.
func TestFirstPrivateKeyOnUpDevice(t *testing.T) {
	inWorld(t, func(w *world) {
		var key wireguard.PrivateKey
		a := w.node("a", func(c *wireguard.Config) { key, c.PrivateKey = c.PrivateKey, wireguard.PrivateKey{} })
		b := w.node("b")
		a.key = key
		b.knows(a)
		a.knows(b)
		a.send(b, "one")
		a.send(b, "two")
		w.wantIdle(time.Minute, "no key, no handshake")
		b.send(a, "from b")
		w.want("b initiation", "not answered either")
		a.wantDrops(wireguard.DropNoIdentity, 1, "a device without a private key answers nothing")
		w.advance(6 * time.Second)
		w.script()
		a.configure(wireguard.Change{PrivateKey: &key})
		w.want("a initiation, b response, a data x2, b data", "the first key sends what is staged")
		b.wantArrived("in order", "one", "two")
		a.wantArrived("the other way too", "from b")

		a.configure(wireguard.Change{PrivateKey: &wireguard.PrivateKey{}})
		before := a.end.Sent()
		a.send(b, "three")
		w.advance(time.Minute)
		if a.end.Sent() != before {
			w.Fatalf("%q: the key is taken away again", w.script())
		}
		if !a.Status().PublicKey.IsZero() || !a.PrivateKey().IsZero() {
			w.Fatal("the device shows a key that was taken away")
		}
	})
}

// A device whose new public key equals a peer's removes this peer. A peer with the device's own key cannot be added.
func TestOwnKeyIsNoPeer(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.configure(wireguard.Change{PrivateKey: &b.key})
		if _, ok := a.Peer(b.pub()); ok {
			w.Fatal("the device is its own peer")
		}
		if _, ok := a.Route(b.addr); ok {
			w.Fatal("its prefixes still route")
		}
		if err := a.SetPeer(b.peer()); err == nil {
			w.Fatal("the own key was accepted as a peer")
		}
	})
}

// The device uses a new preshared key from the next handshake on, and keeps its running session.
func TestPresharedKeyChange(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.update(b, wireguard.PeerChange{PresharedKey: ptr(wireguard.PresharedKey{1})})
		a.send(b, "on")
		w.want("a data", "the running session stays")
		w.advance(119 * time.Second)
		b.update(a, wireguard.PeerChange{PresharedKey: ptr(wireguard.PresharedKey{1})})
		w.script()
		w.advance(time.Second)
		a.send(b, "and on")
		w.want("a data, a initiation, b response, a keepalive", "the next handshake has it")
		b.wantArrived("no break", "on", "and on")
	})
}

// When a peer is removed, its session is removed too. Its messages in flight find no session, and its staged packets are dropped.
func TestPeerRemovedWithPacketsInFlight(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.hold("b data", 3)
		b.send(a, "1", "2", "3")
		if err := a.RemovePeer(b.pub()); err != nil {
			w.Fatal(err)
		}
		w.release()
		a.wantArrived("in flight when b was removed")
		a.wantDrops(wireguard.DropUnknownIndex, 3, "they find no session")
		if n := wireguard.SessionIndices(a.Device); n != 0 {
			w.Fatalf("%d session indices of nobody", n)
		}
		a.send(b, "to nobody")
		a.wantDrops(wireguard.DropNoRoute, 1, "its prefixes are gone")
	})
	scenario(t, func(w *world, a, b *node) {
		w.net.Cut(nil, nil)
		waits := make(chan error, 1)
		go func() { waits <- a.Handshake(context.Background(), b.pub()) }()
		a.send(b, "1", "2")
		if err := a.RemovePeer(b.pub()); err != nil {
			w.Fatal(err)
		}
		if err := <-waits; err == nil {
			w.Fatal("Handshake succeeded with a peer that was removed")
		}
		a.wantDrops(wireguard.DropNoSession, 2, "staged")
		if n, m := wireguard.StagedBytes(a.Device), wireguard.SessionIndices(a.Device); n != 0 || m != 0 {
			w.Fatalf("%d bytes staged and %d indices for nobody", n, m)
		}
		w.script()
		w.wantIdle(time.Minute, "and no retries")
	})
}

// "staged packets delivered in order after the handshake, none overtaken".
func TestStagedInOrder(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.net.SetConditions(pipe.Conditions{Delay: 10 * time.Millisecond})
		var want []string
		for i := range 60 { // one per millisecond: before, during and after the handshake
			s := fmt.Sprint(i)
			want = append(want, s)
			a.send(b, s)
			w.advance(time.Millisecond)
		}
		w.advance(time.Second)
		b.wantArrived("none overtaken", want...)
		w.want("a initiation, b response, a data x60", "nothing but these")
	})
}

// "MAX_STAGED_PACKETS = 128": if more packets are staged, the oldest are dropped (Linux, wg_xmit).
func TestStagingOverflow(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.lose("a initiation", 1)
		var want []string
		for i := range 300 {
			a.send(b, fmt.Sprint(i))
			if i >= 300-128 {
				want = append(want, fmt.Sprint(i))
			}
		}
		a.wantDrops(wireguard.DropStagedOverflow, 300-128, "the oldest")
		if s := a.status(b); s.Staged != 128 || s.Drops[wireguard.DropStagedOverflow] != 300-128 {
			w.Fatalf("%d staged, %d dropped of this peer", s.Staged, s.Drops[wireguard.DropStagedOverflow])
		}
		w.advance(5*time.Second + jitter)
		b.wantArrived("the newest 128, in order", want...)
		if n := wireguard.StagedBytes(a.Device); n != 0 {
			w.Fatalf("%d bytes still counted as staged", n)
		}
	})
}

// 128 packets to each of 64 absent peers use up StagedBytes. Meanwhile a peer that has no session loses none of its few staged
// packets, and packets to a peer that has a session are sent.
func TestStagedBytesShared(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		c := w.node("c")
		a.knows(c)
		c.knows(a)
		w.connect(a, c)
		fill := func() {
			for i := range 64 {
				addr := netip.AddrFrom4([4]byte{10, 9, 0, byte(i)})
				p := pipe.UDPPacket(netip.AddrPortFrom(a.addr, 1), netip.AddrPortFrom(addr, 1), make([]byte, 1300))
				a.inject(slices.Repeat([][]byte{p}, 128)...)
			}
		}
		var absent []wireguard.PeerChange
		for i := range 64 {
			at := wireguard.EndpointOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 9))
			absent = append(absent, wireguard.PeerChange{PublicKey: wireguard.NewPrivateKey().Public(), Endpoint: &at,
				AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}), 32)}})
		}
		a.configure(wireguard.Change{Peers: absent})
		fill()
		if n := wireguard.StagedBytes(a.Device); n < 16<<20-2080 || n > 16<<20 {
			w.Fatalf("%d bytes staged, want all of the pool", n)
		}
		w.lose("b response", 1)
		large := string(make([]byte, 1300))
		a.send(b, "1", "2", "3", large, large)
		fill()
		a.send(c, "1", "2", "3")
		c.wantArrived("it has a session", "1", "2", "3")
		if s := a.status(b); s.Staged != 5 || s.Drops.Total() != 0 {
			w.Fatalf("%d packets are staged, drops %v", s.Staged, s.Drops)
		}
		w.advance(5*time.Second + jitter)
		b.wantArrived("it asked for little", "1", "2", "3", large, large)
		a.wantDrops(wireguard.DropStagedBytes, a.Status().Drops.Total()-a.Status().Drops[wireguard.DropStagedOverflow], "those who took most paid")
	})
}

// StagedBytes limits all peers of a device together. When it is used up, the peer whose packets take the most loses its
// oldest packet.
func TestStagedBytesBound(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.node("a", func(c *wireguard.Config) { c.StagedBytes = 10 * (256 + 32) })
		b, c := w.node("b"), w.node("c")
		a.knows(b)
		a.knows(c)
		w.net.Cut(nil, nil)
		payload := string(make([]byte, 100)) // takes 256 bytes while it is staged, and 32 for its place
		for range 7 {
			a.send(b, payload)
			a.send(c, payload)
		}
		if n := wireguard.StagedBytes(a.Device); n != 10*(256+32) {
			w.Fatalf("%d bytes staged, want the limit", n)
		}
		a.wantDrops(wireguard.DropStagedBytes, 4, "over the limit of the device")
		if x, y := a.status(b).Staged, a.status(c).Staged; x != 5 || y != 5 {
			w.Fatalf("%d and %d packets are staged: of two, each has half", x, y)
		}
		a.Down()
		if n := wireguard.StagedBytes(a.Device); n != 0 {
			w.Fatalf("%d bytes staged after Down", n)
		}
	})
}
