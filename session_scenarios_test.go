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

// After a rekey, both devices keep the old session as their previous session, and still decrypt messages of the old session
// (whitepaper, section 6.1). The next rekey removes it.
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
					w.Fatalf("the session is %v old, want a new session", s)
				}
				to.arrived()
				w.release()
				to.wantArrived("the previous session still receives", "under the old key")

				// The next rekey removes the old session.
				w.advance(120 * time.Second)
				w.script()
				a.send(b, "x")
				w.want("a data, a initiation, b response, a keepalive", "the next rekey")
				to.arrived()
				w.replay(old)
				to.wantArrived("the session was removed by the second rekey")
				to.wantDrops(wireguard.DropUnknownIndex, 1, "the index of the removed session is unknown")
			})
		})
	}
}

// The responder sends in its current session until the initiator confirms the next session.
func TestResponderSendsOnCurrentUntilConfirmed(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(120 * time.Second)
		w.hold("a keepalive", 1)
		a.send(b, "renew")
		w.want("a data, a initiation, b response, a keepalive", "the confirmation of the new session is held back")
		if age := b.status(a).SessionAge; age != 120*time.Second {
			w.Fatalf("the responder's session is %v old, want the old session", age)
		}
		b.send(a, "on the old")
		w.want("b data", "the responder sends at once, in the confirmed session")
		a.wantArrived("a receives in its previous session", "on the old")
		w.release()
		if age := b.status(a).SessionAge; age != 0 {
			w.Fatalf("the responder's session is %v old, want the new session", age)
		}
	})
}

// offerCounters makes the device a seal messages with the given counters, and delivers these messages to b in the given order.
// For each message, it returns whether b accepted it.
func offerCounters(w *world, a, b *node, counters []uint64) (accepted []bool) {
	made := map[uint64]message{}
	w.judge(func(m *message) pipe.Verdict { return pipe.Drop })
	for _, c := range counters {
		if _, ok := made[c]; !ok {
			wireguard.SetSendCounter(a.Device, b.pub(), c)
			a.send(b, fmt.Sprint(c))
			made[c] = w.last("a data")
			if got := binary.LittleEndian.Uint64(made[c].data[8:]); got != c {
				w.Fatalf("the message has counter %d, want %d", got, c)
			}
		}
		w.replay(made[c])
		accepted = append(accepted, len(b.arrived()) == 1)
	}
	return accepted
}

// TestReplayWindow checks the sliding window (whitepaper, section 5.4.6) of a whole device with the sequences of counters in
// Linux's selftest/counter.c.
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
					// The keepalive of the handshake has used counter 0, so the test adds one to all counters.
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

// A device in either role begins a rekey after it has sent 2^60 messages (Rekey-After-Messages; whitepaper, section 6.2).
func TestRekeyAfterMessages(t *testing.T) {
	for _, role := range []string{"initiator", "responder"} {
		t.Run(role, func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				if role == "initiator" {
					w.connect(a, b)
				} else {
					w.connect(b, a)
				}
				w.advance(6 * time.Second) // so that the next initiation does not have to wait for 5 s
				wireguard.SetSendCounter(a.Device, b.pub(), wireguard.RekeyAfterMessages-2)
				a.send(b, "last but one")
				w.want("a data", "2^60 - 1 messages")
				a.send(b, "last")
				w.want("a data, a initiation, b response, a keepalive", "2^60 messages")
				b.wantArrived("no packet is lost", "last but one", "last")
			})
		})
	}
}

// A device stops sending in a session when the counter has reached Reject-After-Messages (whitepaper, section 6.2).
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
		a.wantSession(b, false, "the session has used all its counters")
		a.send(b, "three")
		w.want("", "no further message is sent with this key")
		b.wantArrived("the message with the last counter is accepted", "one", "two")
		w.judge(nil)
		w.advance(5*time.Second + jitter)
		w.want("a initiation, b response, a data", "the packet waited for the next session")
		b.wantArrived("the staged packet arrives", "three")
	})
}

// The nonce counter of another implementation had only 32 bits. Here the counter passes 2^32.
func TestCounterPasses32Bits(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		wireguard.SetSendCounter(a.Device, b.pub(), 1<<32-2)
		a.send(b, "1", "2", "3", "4")
		b.wantArrived("the counter passes 2^32", "1", "2", "3", "4")
		if c := binary.LittleEndian.Uint64(w.last("a data").data[8:]); c != 1<<32+1 {
			w.Fatalf("the last message has counter %#x, want 2^32 + 1", c)
		}
	})
}

// After a change of its private key, the device stops sending in its current and next sessions, and clears its handshakes. It may
// send an initiation at once, even less than 5 s after the last one. It still receives in the old sessions until they are 180 s
// old.
func TestPrivateKeyChange(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(time.Second)
		a.configure(wireguard.Change{PrivateKey: &a.key})
		a.wantSession(b, true, "the same key again is not a change")

		old := a.key
		a.key = wireguard.NewPrivateKey()
		a.configure(wireguard.Change{PrivateKey: &a.key})
		w.want("", "no packet waits, so no handshake begins")
		a.wantSession(b, false, "a does not send in sessions of the old identity any more")
		b.send(a, "still received")
		w.want("b data", "b does not know of a's new key")
		a.wantArrived("a receives in the old session until it is 180 s old", "still received")
		a.send(b, "from the new me")
		w.want("a initiation", "a sends an initiation at once, and b does not know the new key")
		b.wantDrops(wireguard.DropUnknownPeer, 1, "b does not know this key")

		b.configure(wireguard.Change{Peers: []wireguard.PeerChange{
			{PublicKey: old.Public(), Remove: true},
			{PublicKey: a.pub(), Endpoint: ptr(a.at()), AllowedIPs: a.prefixes()},
		}})
		w.wantJittered(5*time.Second, "a initiation, b response, a data", "b knows the new key")
		b.wantArrived("the packet is sent in a session of the new identity", "from the new me")
		b.send(a, "welcome")
		a.wantArrived("the session works in both directions", "welcome")
	})
}

// After a change of the private key, the device receives in the session of the old key until this session expires.
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
		a.wantArrived("a receives in the old session until it is 180 s old", "119 s")
		a.wantDrops(wireguard.DropExpiredKey, 1, "a drops the message that arrives after 180 s")
	})
}

// A device without a private key does not begin or answer handshakes. When a device that is up gets its first private key, it
// begins a handshake with each peer for which packets are staged, and then sends these packets.
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
		w.wantIdle(time.Minute, "a device without a private key does not begin a handshake")
		b.send(a, "from b")
		w.want("b initiation", "a device without a private key does not answer")
		a.wantDrops(wireguard.DropNoIdentity, 1, "a device without a private key answers nothing")
		w.advance(6 * time.Second)
		w.script()
		a.configure(wireguard.Change{PrivateKey: &key})
		w.want("a initiation, b response, a data x2, b data", "with its first key, a sends the staged packets")
		b.wantArrived("in order", "one", "two")
		a.wantArrived("packets in the other direction arrive, too", "from b")

		a.configure(wireguard.Change{PrivateKey: &wireguard.PrivateKey{}})
		before := a.end.Sent()
		a.send(b, "three")
		w.advance(time.Minute)
		if a.end.Sent() != before {
			w.Fatalf("the devices sent %q, but a has no private key any more", w.script())
		}
		if !a.Status().PublicKey.IsZero() || !a.PrivateKey().IsZero() {
			w.Fatal("the device still shows the key that was removed")
		}
	})
}

// If a device gets a private key whose public key is that of a peer, it removes this peer. Adding a peer with the device's own
// public key fails.
func TestOwnKeyIsNoPeer(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.configure(wireguard.Change{PrivateKey: &b.key})
		if _, ok := a.Peer(b.pub()); ok {
			w.Fatal("the device is its own peer")
		}
		if _, ok := a.Route(b.addr); ok {
			w.Fatal("the prefixes of the removed peer still have a route")
		}
		if err := a.SetPeer(b.peer()); err == nil {
			w.Fatal("SetPeer accepted the device's own key as a peer")
		}
	})
}

// If the preshared key of a peer changes, the device keeps its current session, and uses the new key from the next handshake on.
func TestPresharedKeyChange(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.update(b, wireguard.PeerChange{PresharedKey: ptr(wireguard.PresharedKey{1})})
		a.send(b, "on")
		w.want("a data", "the current session continues")
		w.advance(119 * time.Second)
		b.update(a, wireguard.PeerChange{PresharedKey: ptr(wireguard.PresharedKey{1})})
		w.script()
		w.advance(time.Second)
		a.send(b, "and on")
		w.want("a data, a initiation, b response, a keepalive", "the next handshake uses the new preshared key")
		b.wantArrived("no packet is lost", "on", "and on")
	})
}

// When a peer is removed, its session is removed too. The device then drops messages from the peer that are still in flight, and
// the packets that are staged for the peer.
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
		a.wantDrops(wireguard.DropUnknownIndex, 3, "the messages in flight have no session any more")
		if n := wireguard.SessionIndices(a.Device); n != 0 {
			w.Fatalf("%d session indices are left of the removed peer, want 0", n)
		}
		a.send(b, "to nobody")
		a.wantDrops(wireguard.DropNoRoute, 1, "the prefixes of the removed peer have no route")
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
		a.wantDrops(wireguard.DropNoSession, 2, "the staged packets of the removed peer are dropped")
		if n, m := wireguard.StagedBytes(a.Device), wireguard.SessionIndices(a.Device); n != 0 || m != 0 {
			w.Fatalf("%d bytes and %d session indices are left of the removed peer, want 0", n, m)
		}
		w.script()
		w.wantIdle(time.Minute, "a does not send an initiation to the removed peer")
	})
}

// After the handshake, the device sends the staged packets in order, before any later packet.
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
		b.wantArrived("no packet overtakes another one", want...)
		w.want("a initiation, b response, a data x60", "one handshake is enough, and each packet is sent once")
	})
}

// A device stages at most 128 packets per peer, and drops the oldest if there are more (Linux, wg_xmit: MAX_STAGED_PACKETS).
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
		a.wantDrops(wireguard.DropStagedOverflow, 300-128, "the oldest packets are dropped")
		if s := a.status(b); s.Staged != 128 || s.Drops[wireguard.DropStagedOverflow] != 300-128 {
			w.Fatalf("the peer has %d staged and %d dropped packets, want 128 and 172", s.Staged, s.Drops[wireguard.DropStagedOverflow])
		}
		w.advance(5*time.Second + jitter)
		b.wantArrived("the newest 128, in order", want...)
		if n := wireguard.StagedBytes(a.Device); n != 0 {
			w.Fatalf("%d bytes still count as staged, want 0", n)
		}
	})
}

// In this test, 128 staged packets to each of 64 unreachable peers use up Config.StagedBytes. Meanwhile another peer without a
// session must not lose any of its few staged packets, and packets to a peer that has a session must be sent.
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
			w.Fatalf("%d bytes are staged, want the whole limit to be used", n)
		}
		w.lose("b response", 1)
		large := string(make([]byte, 1300))
		a.send(b, "1", "2", "3", large, large)
		fill()
		a.send(c, "1", "2", "3")
		c.wantArrived("c has a session", "1", "2", "3")
		if s := a.status(b); s.Staged != 5 || s.Drops.Total() != 0 {
			w.Fatalf("b has %d staged packets and the drops %v, want 5 packets and no drops", s.Staged, s.Drops)
		}
		w.advance(5*time.Second + jitter)
		b.wantArrived("b's few staged packets were not dropped", "1", "2", "3", large, large)
		a.wantDrops(wireguard.DropStagedBytes, a.Status().Drops.Total()-a.Status().Drops[wireguard.DropStagedOverflow], "packets were dropped only because of the two limits of staged packets")
	})
}

// Config.StagedBytes limits the memory for the staged packets of all peers together. When it is used up, the device drops the
// oldest packet of the peer whose staged packets use the most memory.
func TestStagedBytesBound(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.node("a", func(c *wireguard.Config) { c.StagedBytes = 10 * (256 + 32) })
		b, c := w.node("b"), w.node("c")
		a.knows(b)
		a.knows(c)
		w.net.Cut(nil, nil)
		payload := string(make([]byte, 100)) // while it is staged, the packet uses 256 bytes, and its entry in the queue 32 bytes
		for range 7 {
			a.send(b, payload)
			a.send(c, payload)
		}
		if n := wireguard.StagedBytes(a.Device); n != 10*(256+32) {
			w.Fatalf("%d bytes are staged, want the limit", n)
		}
		a.wantDrops(wireguard.DropStagedBytes, 4, "the packets exceed Config.StagedBytes")
		if x, y := a.status(b).Staged, a.status(c).Staged; x != 5 || y != 5 {
			w.Fatalf("%d and %d packets are staged, want 5 each: both peers get half of the limit", x, y)
		}
		a.Down()
		if n := wireguard.StagedBytes(a.Device); n != 0 {
			w.Fatalf("%d bytes are staged after Down, want 0", n)
		}
	})
}
