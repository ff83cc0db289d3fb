package wireguard_test

import (
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// In this test, four senders and the hub's tunnel send to several peers at the same time. At first there are no sessions, so
// packets are staged. The packets of each source to each peer must keep their order, both when they are sent and when they are
// delivered. Each packet must be delivered, or counted as dropped.
func TestOutboundOrder(t *testing.T) {
	for name, pause := range map[string]time.Duration{"fast socket": 0, "slow socket": 300 * time.Microsecond} {
		t.Run(name, func(t *testing.T) {
			const staged, total = 20, 10_000 // staged: packets of each source to each spoke; total: all packets
			r := newRush(t, 3)
			r.pause = pause
			first := make(chan struct{})
			unhold := r.wire.Filter(func(p *pipe.Packet) pipe.Verdict {
				if p.Type == pipe.TypeResponse {
					return pipe.Hold
				}
				return pipe.Pass
			})
			var ready sync.WaitGroup
			ready.Add(len(allSources))
			var begun [sourceMax]bool
			stop := r.run(allSources, func(source int, b *wireguard.Batch) {
				if !begun[source] {
					for range staged {
						var ps [][]byte
						for _, s := range r.spokes {
							ps = append(ps, r.packet(source, s, 100))
						}
						r.hand(source, b, ps...)
					}
					begun[source] = true
					ready.Done()
					<-first
				}
				if r.pace(); r.handed.Load() < total {
					r.hand(source, b, r.burst(source, 1+rand.IntN(60))...)
				} else {
					time.Sleep(time.Millisecond)
				}
			})
			testkit.Returns(r, testkit.Patience, "a send without a session", ready.Wait)
			r.eventually("not all packets were staged", func() bool {
				n := 0
				for p := range r.hub.Peers() {
					n += p.Staged
				}
				return n == len(allSources)*staged*len(r.spokes)
			})
			unhold()
			close(first)
			r.wire.Release()
			r.eventually("the sources did not hand over all packets", func() bool { return r.handed.Load() >= total })
			stop()
			r.wantCounted(r.spokes...)
			r.wantNothingQueued("the sources have ended")
			t.Logf("%d packets delivered, %d dropped", r.delivered(), r.dropped())
			if r.delivered() < total/2 {
				t.Errorf("only %d of %d packets were delivered", r.delivered(), r.handed.Load())
			}
		})
	}
}

// This test calls Down, Up and Close while all sources send. Each call must return. After Down and Up, the device must not send
// messages of earlier sessions through the new socket. Down and Close must not leave packets, sessions or goroutines.
func TestOutboundDuringDownAndClose(t *testing.T) {
	testkit.NoLeaks(t)
	r := newRush(t, 3)
	r.pause = time.Millisecond
	stop := r.run(allSources, func(source int, b *wireguard.Batch) {
		r.pace()
		if source == fromTunnel {
			if !r.tun.TrySend(r.burst(source, 1+rand.IntN(100))...) {
				time.Sleep(100 * time.Microsecond)
			}
		} else if r.hand(source, b, r.burst(source, 1+rand.IntN(100))...) != nil {
			time.Sleep(time.Duration(rand.IntN(50)) * time.Microsecond)
		}
	})
	for i := range 9 {
		r.wantFlow("a spoke delivers no packets although the hub is up")
		time.Sleep(25 * time.Millisecond) // a spoke refuses an initiation that arrives less than 20 ms after the last one
		testkit.Returns(r, testkit.Patience, "Down", func() { r.hub.Down() })
		if i%3 == 0 { // stay down for a while; the device must not send during that time
			r.wantNothingQueued("the device is down")
			if n := wireguard.SessionIndices(r.hub); n != 0 {
				t.Errorf("%d sessions survived Down", n)
			}
			time.Sleep(2 * time.Millisecond)
			before := r.end.Sent().Total()
			time.Sleep(5 * time.Millisecond)
			if n := r.end.Sent().Total() - before; n != 0 {
				t.Errorf("%d datagrams were sent while the device is down", n)
			}
		}
		testkit.Returns(r, testkit.Patience, "Up", func() {
			if err := r.hub.Up(); err != nil {
				t.Error(err)
			}
		})
	}
	r.wantFlow("a spoke delivers no packets although the hub is up")
	testkit.Returns(r, testkit.Patience, "Close", func() {
		if err := r.hub.Close(); err != nil {
			t.Error(err)
		}
	})
	before := r.end.Sent().Total()
	if err := r.hub.Send(r.hub.NewBatch()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Send after Close returned %v, want net.ErrClosed", err)
	}
	time.Sleep(5 * time.Millisecond)
	if n := r.end.Sent().Total() - before; n != 0 {
		t.Errorf("%d datagrams were sent after Close", n)
	}
	stop()
	if b, n := wireguard.StagedBytes(r.hub), wireguard.SessionIndices(r.hub); b != 0 || n != 0 {
		t.Errorf("after Close, %d bytes of packets are staged and %d session indices exist, want 0", b, n)
	}
}

// Several senders send to one peer without a pause. Meanwhile the device must still send packets of another sender to the same
// peer and to another peer, packets from the tunnel, and handshake messages and keepalives to a third peer.
func TestOutboundStarvesNobody(t *testing.T) {
	r := newRush(t, 3)
	busy, other, third := r.spokes[0], r.spokes[1], r.spokes[2]
	r.hand(fromTunnel, nil, r.packet(fromTunnel, other, 0))
	r.eventually("the first packet to the other peer did not arrive", func() bool { return other.delivered.Load() == 1 })
	stop := r.run([]int{1, 2, 3}, func(source int, b *wireguard.Batch) {
		var ps [][]byte
		for range 40 {
			ps = append(ps, r.packet(source, busy, 1200))
		}
		r.hand(source, b, ps...)
	})
	r.eventually("the packets of the senders do not arrive", func() bool { return busy.delivered.Load() > 1000 })

	var calls sync.WaitGroup
	calls.Go(func() {
		b := r.hub.NewBatch()
		for range 200 {
			r.hand(0, b, r.packet(0, busy, 100), r.packet(0, other, 100))
		}
	})
	testkit.Returns(r, testkit.Patience, "the last Send of another sender", calls.Wait)
	r.eventually("packets to another peer do not arrive", func() bool { return other.delivered.Load() == 201 })

	for i := range 50 {
		testkit.Returns(r, testkit.Patience, "a send through the hub's tunnel", func() { r.hand(fromTunnel, nil, r.packet(fromTunnel, other, 100)) })
		r.eventually("a packet from the hub's tunnel did not arrive", func() bool { return other.delivered.Load() == uint64(202+i) })
	}

	every := time.Second
	change := wireguard.PeerChange{PublicKey: third.key.Public(), PersistentKeepalive: &every}
	if err := r.hub.Configure(wireguard.Change{Peers: []wireguard.PeerChange{change}}); err != nil {
		t.Fatal(err)
	}
	r.eventually("the third peer did not receive two keepalives", func() bool { return third.end.Received().Keepalives >= 2 })
	stop()
	r.wantNothingQueued("the senders have ended")
}

// This test removes a peer and adds it again, while all sources send to this peer and to others. The device must not keep any
// state of the removed peer. Each packet to any peer must be delivered, or counted as dropped.
func TestOutboundDuringRemoval(t *testing.T) {
	r := newRush(t, 3)
	r.pause = 200 * time.Microsecond
	gone, stays := r.spokes[0], r.spokes[1:]
	stop := r.run(allSources, func(source int, b *wireguard.Batch) {
		r.pace()
		r.hand(source, b, r.burst(source, 1+rand.IntN(60))...)
	})
	r.wantFlow("a spoke delivers no packets although the hub has all peers")
	for range 10 {
		testkit.Returns(r, testkit.Patience, "RemovePeer", func() {
			if err := r.hub.RemovePeer(gone.config.PublicKey); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(rand.N(20 * time.Millisecond))
		if err := r.hub.SetPeer(gone.config); err != nil {
			t.Fatal(err)
		}
		before := gone.delivered.Load()
		r.eventually("no packet reaches the peer that was added again", func() bool { return gone.delivered.Load() > before })
		time.Sleep(25 * time.Millisecond) // a spoke refuses an initiation that arrives less than 20 ms after the last one
	}
	if err := r.hub.RemovePeer(gone.config.PublicKey); err != nil {
		t.Fatal(err)
	}
	stop()
	r.eventually("packets to the removed peer were neither delivered nor counted as dropped", func() bool { return r.delivered()+r.dropped() >= r.handed.Load() })
	r.wantCounted(stays...)
	r.wantNothingQueued("the sources have ended")
	if n := wireguard.SessionIndices(r.hub); n > len(stays)*3 {
		t.Errorf("%d session indices for %d peers, want at most 3 per peer", n, len(stays))
	}
	if i := slices.IndexFunc(slices.Collect(r.hub.Peers()), func(p wireguard.PeerStatus) bool { return p.PublicKey == gone.config.PublicKey }); i >= 0 {
		t.Error("the hub still has the removed peer")
	}
}
