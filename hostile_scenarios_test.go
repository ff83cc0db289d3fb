package wireguard_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// These tests send hostile messages, and call Close at critical moments. The device must drop and count the hostile messages, and
// do nothing else.

// lowOrderPoints are public keys with which every Diffie-Hellman result is zero (RFC 7748, section 6.1).
var lowOrderPoints = func() (ks []wireguard.PublicKey) {
	for _, s := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000", // 0
		"0100000000000000000000000000000000000000000000000000000000000000", // 1
		"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800", // a point of order 8
		"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157", // a point of order 8
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // p-1
	} {
		b, _ := hex.DecodeString(s)
		ks = append(ks, wireguard.PublicKey(b))
	}
	return ks
}()

// signed returns a copy of the handshake message m with a valid mac1. Anyone who knows the receiver's public key can make a valid
// mac1.
func signed(m []byte, to wireguard.PublicKey) []byte {
	m = bytes.Clone(m)
	key := blake2s.Sum256(append([]byte("mac1----"), to[:]...))
	mac, _ := blake2s.New128(key[:])
	mac.Write(m[:len(m)-32])
	copy(m[len(m)-32:], mac.Sum(nil))
	return m
}

// If an X25519 result is all zero, the device ends the handshake silently. This test covers the results that a received message
// can cause. TestHandshakeLowOrder also covers createResponse.
func TestLowOrderMessages(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.lose("a initiation", 1)
		a.send(b, "hello")
		w.want("a initiation", "the initiation is lost")
		initiation := w.last("a initiation")
		for i, point := range lowOrderPoints {
			bad := initiation
			bad.data = bytes.Clone(initiation.data)
			copy(bad.data[8:40], point[:])
			bad.data = signed(bad.data, b.pub())
			w.replay(bad)
			w.want("", "b does not respond to an initiation with an ephemeral key of low order")
			b.wantDrops(wireguard.DropLowOrder, uint64(i+1), "the responder's es is zero")
		}

		w.hold("b response", 1)
		w.advance(5*time.Second + jitter)
		w.want("a initiation, b response", "a retries, and the response is held back")
		response := w.last("b response")
		for i, point := range lowOrderPoints {
			bad := response
			bad.data = bytes.Clone(response.data)
			copy(bad.data[12:44], point[:])
			bad.data = signed(bad.data, a.pub())
			w.replay(bad)
			w.want("", "a sends nothing after a response with an ephemeral key of low order")
			a.wantDrops(wireguard.DropLowOrder, uint64(i+1), "the initiator's ee is zero")
			a.wantSession(b, false, "the response made no session")
		}
		w.release()
		w.want("a data", "a still accepts the genuine response")
		b.wantArrived("the forged messages had no effect", "hello")
	})
}

// Anyone can make an initiation whose static key is of low order. The device drops it, even if a peer with that key is configured.
func TestLowOrderInitiator(t *testing.T) {
	for _, configured := range []bool{false, true} {
		scenario(t, func(w *world, a, b *node) {
			reason, n := wireguard.DropUnknownPeer, uint64(0)
			for _, point := range lowOrderPoints[1:] { // [0] is the zero key, which SetPeer refuses
				if configured {
					reason = wireguard.DropLowOrder
					if err := b.SetPeer(wireguard.PeerConfig{PublicKey: point}); err != nil {
						w.Fatal(err)
					}
				}
				if err := w.net.Inject(stranger, b.at().Addr, wireguard.InitiationFrom(point, b.pub(), time.Now())); err != nil {
					w.Fatal(err)
				}
				n++
				w.want("", "b does not answer the initiation")
				b.wantDrops(reason, n, "each initiation is counted as a drop")
				if s, _ := b.Peer(point); s.Endpoint.IsValid() || s.Timestamp != (wireguard.Timestamp{}) {
					w.Fatalf("status %+v, want no endpoint and no timestamp from the initiation", s)
				}
			}
			w.connect(a, b)
		})
	}
}

// A configuration may name a peer whose public key is of low order, as in the kernel. The device cannot make an initiation to
// that peer. It sends nothing, and gives up after the usual number of attempts.
func TestLowOrderPeer(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.node("a")
		for _, point := range lowOrderPoints[1:] {
			address := netip.MustParseAddr("10.66.0.1")
			err := a.SetPeer(wireguard.PeerConfig{
				PublicKey: point, Endpoint: wireguard.EndpointOf(stranger), AllowedIPs: []netip.Prefix{netip.PrefixFrom(address, 32)},
			})
			if err != nil {
				w.Fatal(err)
			}
			a.inject(pipe.UDPPacket(netip.AddrPortFrom(a.addr, 1), netip.AddrPortFrom(address, 1), nil))
			w.advance(20 * (5*time.Second + jitter))
			w.want("", "a cannot make an initiation")
			a.wantEvents("a gives up after 20 attempts", wireguard.EventHandshakeFailed)
			s, _ := a.Peer(point)
			if s.Drops[wireguard.DropLowOrder] != 20 || s.Drops[wireguard.DropNoSession] != 1 || s.Staged != 0 || s.Sent.Bytes != 0 {
				w.Fatalf("status %+v, want 20 failed attempts and one dropped packet", s)
			}
			if n := wireguard.SessionIndices(a.Device); n != 0 {
				w.Fatalf("%d session indices are in use, want 0", n)
			}
			a.RemovePeer(point)
		}
	})
}

// The device drops messages of every type if their reserved bytes are not zero.
func TestReservedBytes(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		wireguard.ForceLoad(b.Device, true)
		a.send(b, "x")
		w.want("a initiation, b cookie reply", "this exchange has messages of the first two types")
		w.lose("a initiation", 1)
		w.wantJittered(5*time.Second, "a initiation", "the retry is lost")
		w.hold("b response", 1)
		initiation := w.last("a initiation")
		w.replay(initiation)
		w.want("b response", "the response, a message of the third type, is held back")
		var refused [2]uint64
		offer := func(m message, to *node) {
			for at := 1; at < 4; at++ {
				bad := m
				bad.data = bytes.Clone(m.data)
				bad.data[at] = 1
				if m.kind == pipe.TypeInitiation || m.kind == pipe.TypeResponse {
					bad.data = signed(bad.data, to.pub())
				}
				w.replay(bad)
				w.want("", fmt.Sprintf("byte %d of a %v is not zero", at, m.kind))
				i := map[*node]int{a: 0, b: 1}[to]
				refused[i]++
				to.wantDrops(wireguard.DropUnknownMessage, refused[i], "the message is counted as a drop")
			}
		}
		offer(initiation, b)
		offer(w.last("b cookie reply"), a)
		offer(w.last("b response"), a)
		w.release()
		w.hold("a data", 1)
		a.send(b, "y")
		w.want("a data x2", "a sends data messages, the fourth type")
		offer(w.last("a data"), b)
		w.release()
		b.wantArrived("b accepts the genuine messages", "x", "y")
	})
}

// An oversized datagram crashed another implementation. Here the device receives datagrams of each type with many lengths: the
// lengths of valid messages and of buffers, the lengths one byte below and above, and the largest possible length.
func TestDatagramsOfAnySize(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		good := w.last("a keepalive")
		home, n := b.at().Addr, uint64(0)
		for _, size := range []int{
			1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 91, 92, 93, 147, 148, 149, 1279, 1500, 1501, 2047, 2048, 2049,
			4096, 9000, 16384, 32768, 65000, 65506, 65507,
		} {
			for kind := range byte(6) {
				m := make([]byte, size)
				m[0] = kind
				if size >= 8 {
					copy(m[4:8], good.data[4:8]) // the index of an established session
				}
				n++
				if err := w.net.Inject(stranger, home, m); err != nil {
					w.Fatal(err)
				}
				w.settle()
				if got := b.Status().Drops; got.Total() != n {
					w.Fatalf("%d bytes of type %d: drops %v, want each datagram counted once", size, kind, got)
				}
			}
		}
		w.want("", "b answers none of the datagrams")
		// The sealed form of this packet does not fit into a datagram, so the socket refuses it. The device still sends the next
		// packets.
		a.inject(pipe.UDPPacket(netip.AddrPortFrom(a.addr, 7), netip.AddrPortFrom(b.addr, 7), make([]byte, 65507)))
		a.wantDrops(wireguard.DropSendFailed, 1, "a packet of 65,535 bytes and 32 bytes of overhead do not fit into a datagram")
		large := string(make([]byte, 65507-32-15-28))
		a.send(b, large, "small")
		b.wantArrived("the largest packet that fits into a datagram arrives", large, "small")
		if e := b.status(a).Endpoint.Addr; e != a.at().Addr {
			w.Fatalf("b has the endpoint %v for a, want the address of a", e)
		}
	})
}

// Another implementation used its rate limiter after it had closed the limiter. Here messages arrive at a device under load
// before, during and after Down, Up and Close.
func TestLimiterOutlivesClose(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		wireguard.ForceLoad(b.Device, true)
		a.send(b, "x")
		w.want("a initiation, b cookie reply", "b is under load")
		w.lose("a initiation", 1)
		w.advance(6 * time.Second)
		good := w.last("a initiation") // it has a mac2, so that it reaches the limiter
		w.script()
		flood := func() {
			for range 20 {
				if err := w.net.Inject(good.src, good.dst, good.data); err != nil {
					w.Fatal(err)
				}
			}
		}
		flood()
		w.settle()
		if n := wireguard.LimitedSources(b.Device); n != 1 {
			w.Fatalf("%d sources are remembered, want 1, the source of the flood", n)
		}
		flood()
		b.Down()
		flood()
		w.advance(2 * time.Second) // the limiter's removal of unused sources is due while the device is down
		if err := b.Up(); err != nil {
			w.Fatal(err)
		}
		flood()
		w.advance(2 * time.Second)
		if n := wireguard.LimitedSources(b.Device); n != 0 {
			w.Fatalf("%d sources are remembered 2 s after the flood, want 0", n)
		}
		flood()
		b.Close()
		flood()
		w.advance(2 * time.Second)
	})
}

// In another implementation, Close during a handshake leaked the device. Here the test closes the initiator or the responder
// while a message of the handshake is in flight, or while a device makes a key. The test fails if a goroutine is left.
func TestCloseAmidHandshake(t *testing.T) {
	for _, who := range []string{"a", "b"} {
		for _, moment := range []string{"a initiation", "b response", "a data", "random"} {
			// In a handshake, each device reads random bytes twice: for an ephemeral key and for an index.
			for n := 1; n <= 2; n++ {
				t.Run(fmt.Sprint(who, " closes at ", moment, n), func(t *testing.T) {
					inWorld(t, func(w *world) { playCloseAmidHandshake(w, who, moment, n) })
				})
			}
		}
	}
}

func playCloseAmidHandshake(w *world, who, moment string, n int) {
	a, b := w.nodeDown("a"), w.nodeDown("b")
	a.knows(b)
	b.knows(a)
	closing := map[string]*node{"a": a, "b": b}[who]
	var once sync.Once
	begin := func() { once.Do(func() { go closing.Close() }) }
	if moment == "random" {
		var mu sync.Mutex
		random, calls := rand.NewChaCha8([32]byte{9}), 0
		wireguard.SetRandom(closing.Device, func(p []byte) {
			mu.Lock()
			random.Read(p)
			calls++
			now := calls == n
			mu.Unlock()
			if now {
				begin()
				time.Sleep(time.Second) // Close does what it can, and then waits until this function returns
			}
		})
	} else {
		seen := 0
		w.judge(func(m *message) pipe.Verdict {
			if m.String() == moment {
				if seen++; seen == 1 {
					begin()
				}
				if n == 2 {
					return pipe.Hold // the message arrives after the device is closed
				}
			}
			return pipe.Pass
		})
	}
	for _, x := range []*node{a, b} {
		if err := x.Up(); err != nil {
			w.Fatal(err)
		}
	}
	waits := make(chan error, 1)
	go func() { waits <- a.Handshake(context.Background(), b.pub()) }()
	a.tun.TrySend(a.packet(b, "hello")) // fails if the tunnel is already closed
	w.advance(2 * time.Second)
	w.release()
	<-closing.Done()
	if closing == a {
		if err := <-waits; err != nil && !errors.Is(err, net.ErrClosed) {
			w.Fatalf("Handshake returned %v, want nil or an error that wraps net.ErrClosed", err)
		}
	}
	if k, m := wireguard.StagedBytes(closing.Device), wireguard.Waiters(closing.Device); k != 0 || m != 0 {
		w.Fatalf("%d staged bytes and %d waiters after Close, want 0", k, m)
	}
	if k := wireguard.SessionIndices(closing.Device); k != 0 {
		w.Fatalf("%d session indices after Close, want 0", k)
	}
	before := closing.end.Sent()
	w.advance(time.Minute)
	if closing.end.Sent() != before {
		w.Fatalf("the messages %q were sent after Close, want none from the closed device", w.script())
	}
	a.Close()
	b.Close()
	if closing == b {
		<-waits
	}
}
