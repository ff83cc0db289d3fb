package wireguard_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

func (w *world) wantMAC2(kind string, set bool, why string) {
	w.Helper()
	if got := !bytes.Equal(mac2(w.last(kind)), make([]byte, 16)); got != set {
		w.Fatalf("at %v: mac2 of the last %s is set: %v, want %v: %s", w.now(), kind, got, set, why)
	}
}

// TestCookieUnderLoad checks that a responder under load answers an initiation with a cookie reply (whitepaper, section 5.3). The
// initiator does not resend at once: "a cookie reply message … does not cause the initiator to immediately resend" (6.6). Its
// next retry has a mac2.
func TestCookieUnderLoad(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		wireguard.ForceLoad(b.Device, true)
		a.send(b, "hello")
		w.want("a initiation, b cookie reply", "no X25519 for whoever did not show that it receives")
		w.wantMAC2("a initiation", false, "there is no cookie yet")
		b.wantDrops(wireguard.DropCookieRequired, 1, "answered with a cookie")
		if s := b.Status(); s.CookieReplies != 1 || !s.UnderLoad {
			w.Fatalf("status %+v", s)
		}
		w.wantJittered(5*time.Second, "a initiation, b response, a data", "not at once, but with the next retry")
		w.wantMAC2("a initiation", true, "made with the cookie")
		b.wantArrived("under load as well", "hello")
		// Cookie replies are not counted as sent or received bytes.
		if s := b.status(a); s.Sent.Bytes != 92 || s.Received.Bytes != 148+32+48 {
			w.Fatalf("counted %+v, %+v", s.Sent, s.Received)
		}
		if r := a.status(b).Received.Bytes; r != 92 {
			w.Fatalf("a counted %d bytes received", r)
		}
	})
}

// A device that is not under load does not check mac2, and sends no cookie replies.
func TestNoCookieWithoutLoad(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		wireguard.ForceLoad(b.Device, true)
		w.lose("b cookie reply", 1)
		a.send(b, "x")
		wireguard.ForceLoad(b.Device, false)
		w.want("a initiation, b cookie reply", "the reply is lost")
		w.wantJittered(5*time.Second, "a initiation, b response, a data", "the load is over")
		w.wantMAC2("a initiation", false, "never heard of a cookie")
	})
}

// The initiator uses a cookie for 115 s, as Linux does: COOKIE_SECRET_MAX_AGE - COOKIE_SECRET_LATENCY in
// wg_cookie_add_mac_to_packet.
func TestCookieUsedFor115s(t *testing.T) {
	for _, test := range []struct {
		age time.Duration
		set bool
	}{{115*time.Second - 1, true}, {115 * time.Second, false}} {
		scenario(t, func(w *world, a, b *node) {
			a.restart()
			wireguard.ForceLoad(b.Device, true)
			a.send(b, "x")
			w.want("a initiation, b cookie reply", "the cookie comes")
			a.configure(wireguard.Change{PrivateKey: &wireguard.PrivateKey{}}) // no retries until the key is set again
			w.advance(test.age)
			w.script()
			a.configure(wireguard.Change{PrivateKey: &a.key})
			w.wantMAC2("a initiation", test.set, fmt.Sprintf("the cookie is %v old", test.age))
		})
	}
}

// TestCookieSecretLives120s checks that the responder changes its cookie secret every 120 s: "the secret … changes every two
// minutes" (5.4.7). After the change, it refuses the old cookie, and answers with a new cookie reply.
func TestCookieSecretLives120s(t *testing.T) {
	for _, test := range []struct {
		age    time.Duration
		answer string
	}{{120*time.Second - 1, "b response"}, {120 * time.Second, "b cookie reply"}} {
		scenario(t, func(w *world, a, b *node) {
			wireguard.ForceLoad(b.Device, true)
			a.send(b, "x")
			w.want("a initiation, b cookie reply", "the secret is made")
			// The next initiation has a mac2. The network drops it here, and the test replays it when the secret is old.
			w.judge(func(m *message) pipe.Verdict {
				if m.kind == pipe.TypeInitiation {
					return pipe.Drop
				}
				return pipe.Pass
			})
			w.advance(6 * time.Second)
			good := w.last("a initiation")
			a.Down()
			w.advance(test.age - w.now())
			w.script()
			w.replay(good)
			w.want(test.answer, fmt.Sprintf("the secret is %v old", test.age))
		})
	}
}

// A cookie is bound to an address and a port, so another source cannot use it. Section 5.4.7 requires the address, and Linux adds
// the port.
func TestMAC2BoundToAddressAndPort(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		wireguard.ForceLoad(b.Device, true)
		a.send(b, "x")
		w.want("a initiation, b cookie reply", "a gets a cookie")
		w.lose("a initiation", 1)
		w.advance(6 * time.Second)
		w.want("a initiation", "with mac2, and lost")
		good, home := w.last("a initiation"), a.at().Addr
		for _, from := range []netip.AddrPort{
			netip.AddrPortFrom(home.Addr(), home.Port()+1),
			netip.AddrPortFrom(elsewhere, home.Port()),
		} {
			w.replay(good, from)
			w.want("b cookie reply", fmt.Sprintf("a's cookie is not that of %v", from))
		}
		w.replay(good)
		w.want("b response, a data", "it is good where it belongs")
	})
}

// A device never answers a message that has no valid mac1, whether it is under load or not. Section 5.1 calls this silence.
func TestNoAnswerWithoutMAC1(t *testing.T) {
	for _, load := range []bool{false, true} {
		scenario(t, func(w *world, a, b *node) {
			wireguard.ForceLoad(b.Device, load)
			w.lose("a initiation", 1)
			a.send(b, "x")
			w.want("a initiation", "lost")
			forged := w.last("a initiation")
			for _, at := range []int{1, 4, 8, 100, 116, 131} { // type, sender, ephemeral, timestamp, mac1
				bad := forged
				bad.data = bytes.Clone(forged.data)
				bad.data[at] ^= 1
				w.replay(bad)
			}
			w.want("", "who does not know b's public key hears nothing")
			b.wantDrops(wireguard.DropBadMAC, 5, "counted")
			b.wantDrops(wireguard.DropUnknownMessage, 1, "reserved bytes must be zero: row 19")
		})
	}
}

// An initiator under load answers a handshake response with a cookie reply. The responder uses the cookie in its next response,
// although it has finished its part of the handshake before the cookie reply arrives. So the cookie belongs to the peer, and
// outlives the state of the handshake.
func TestCookieReplyToResponse(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		wireguard.ForceLoad(a.Device, true)
		a.send(b, "hello")
		w.want("a initiation, b response, a cookie reply", "the initiator is under load")
		w.wantMAC2("b response", false, "b has no cookie yet")
		w.wantJittered(5*time.Second, "a initiation, b response, a data", "the next response has mac2")
		w.wantMAC2("b response", true, "made with the cookie")
		b.wantArrived("a session under load", "hello")
	})
}

// A device accepts a cookie reply only to the last message that it sent, because the mac1 of that message authenticates the
// reply: "the initiator's mac1 is the additional data" (5.4.7).
func TestCookieReplyWithWrongMAC1Ignored(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		wireguard.ForceLoad(b.Device, true)
		w.lose("b cookie reply", 100)
		a.send(b, "x")
		w.want("a initiation, b cookie reply", "lost")
		old := w.last("b cookie reply")
		w.wantJittered(5*time.Second, "a initiation, b cookie reply", "lost again")
		fresh := w.last("b cookie reply")
		w.replay(old)
		a.wantDrops(wireguard.DropUnknownIndex, 1, "to an initiation that is superseded")
		copy(old.data[4:8], fresh.data[4:8]) // an attacker can set the right index, but the reply is sealed for another mac1
		w.replay(old)
		a.wantDrops(wireguard.DropBadCookie, 1, "to another mac1")
		bad := fresh
		bad.data = bytes.Clone(fresh.data)
		bad.data[40] ^= 1
		w.replay(bad)
		a.wantDrops(wireguard.DropBadCookie, 2, "forged")
		w.replay(fresh)
		a.wantDrops(wireguard.DropBadCookie, 2, "this is the one")
		w.replay(fresh)
		a.wantDrops(wireguard.DropBadCookie, 3, "row 5: clear have-sent-mac1 after use")
		w.judge(nil)
		w.advance(5*time.Second + jitter)
		w.want("a initiation, b response, a data", "with the cookie")
	})
}

// A device under load accepts at most 20 messages with a valid mac2 per second from one source, in bursts of at most 5 (Linux,
// ratelimiter.c: PACKETS_PER_SECOND, PACKETS_BURSTABLE).
func TestRateLimitUnderLoad(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		wireguard.ForceLoad(b.Device, true)
		a.send(b, "x")
		w.judge(func(m *message) pipe.Verdict {
			if m.kind == pipe.TypeInitiation {
				return pipe.Drop
			}
			return pipe.Pass
		})
		w.advance(6 * time.Second)
		w.script()
		good := w.last("a initiation") // with mac2, so b computes an X25519 for each replay that its limit admits
		a.Down()
		for range 12 {
			w.replay(good)
		}
		b.wantDrops(wireguard.DropRateLimited, 7, "a burst of 5 passes")
		b.wantDrops(wireguard.DropOldTimestamp, 4, "of which one is answered")
		w.advance(49 * time.Millisecond)
		w.replay(good)
		b.wantDrops(wireguard.DropRateLimited, 8, "20 a second")
		w.advance(time.Millisecond)
		w.replay(good)
		b.wantDrops(wireguard.DropRateLimited, 8, "50 ms after the burst")
		if n := wireguard.LimitedSources(b.Device); n != 1 {
			w.Fatalf("%d sources", n)
		}
		w.advance(2 * time.Second)
		if n := wireguard.LimitedSources(b.Device); n != 0 {
			w.Fatalf("%d sources are remembered after 1 s idle", n)
		}
	})
}

// The rate limiter of another project counted each IPv6 address as a separate source. Here a source is an IPv4 address or an IPv6
// /64.
func TestRateLimitIsPer64(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		wireguard.ForceLoad(b.Device, true)
		to := netip.AddrPortFrom(b.end.Addrs()[1], b.port)
		a.update(b, wireguard.PeerChange{Endpoint: ptr(wireguard.EndpointOf(to))})
		seen := map[string]message{}
		offer := func(from netip.Addr) {
			if err := a.end.SetAddrs(from); err != nil {
				w.Fatal(err)
			}
			a.restart()
			a.send(b, "x")
			w.judge(func(m *message) pipe.Verdict { return pipe.Drop })
			w.advance(6 * time.Second)
			w.judge(nil)
			seen[from.String()] = w.last("a initiation")
			a.Down()
		}
		for i := range 8 {
			offer(netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 15: byte(1 + i)}))
		}
		w.advance(2 * time.Second)
		before := b.Status().Drops[wireguard.DropRateLimited]
		for _, m := range seen {
			w.replay(m)
		}
		if n := b.Status().Drops[wireguard.DropRateLimited] - before; n != 3 {
			w.Fatalf("%d of 8 from one /64 were limited, want 3", n)
		}
	})
}

// The device is under load once 512 initiations are queued. It stops being under load one second after the flood. The number 512
// is that of Linux: MAX_QUEUED_INCOMING_HANDSHAKES / 8 in wg_receive_handshake_packet.
func TestFloodPutsUnderLoad(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // one worker, so that the test can block all work on handshakes
	inWorld(t, func(w *world) {
		a, b, c := w.node("a"), w.nodeDown("b"), w.node("c")
		a.knows(b)
		c.knows(b)
		b.knows(a)
		b.knows(c)
		gate := make(chan struct{}, 1)
		gate <- struct{}{}
		random := rand.NewChaCha8([32]byte{7})
		wireguard.SetRandom(b.Device, func(p []byte) {
			<-gate
			random.Read(p)
			gate <- struct{}{}
		})
		if err := b.Up(); err != nil {
			w.Fatal(err)
		}
		w.connect(a, b)
		old := w.last("a initiation")

		<-gate // from now on, the worker waits for the gate while it answers c
		c.send(b, "from c")
		flood := func(n int) {
			for range n {
				if err := w.net.Inject(stranger, b.at().Addr, old.data); err != nil {
					w.Fatal(err)
				}
			}
			w.settle()
		}
		flood(511)
		if b.Status().UnderLoad {
			w.Fatal("under load with 511 initiations")
		}
		flood(1)
		if !b.Status().UnderLoad {
			w.Fatal("not under load with 512 initiations")
		}
		flood(4096 - 512)
		b.wantDrops(wireguard.DropQueueFull, 0, "there is room for many more")
		a.send(b, "meanwhile")
		b.wantArrived("data is not held up", "meanwhile")

		gate <- struct{}{}
		b.wantArrived("who came first is served first", "from c")
		s := b.Status()
		if s.CookieReplies != 4096 || s.Drops[wireguard.DropCookieRequired] != 4096 || s.Drops.Total() != 4096 {
			w.Fatalf("%d cookie replies, drops %v: want an answer to each of 4096", s.CookieReplies, s.Drops)
		}
		w.advance(time.Second - 1)
		if !b.Status().UnderLoad {
			w.Fatal("the load is held for 1 s")
		}
		w.advance(1)
		if b.Status().UnderLoad {
			w.Fatal("the load did not end after a second")
		}
	})
}

// A flood keeps a device under load. Cookie replies cost so little that the queue stays short during the flood. So the device
// counts the initiations that it answers with cookie replies. It stays under load while it receives more of them than half of its
// cores could answer with handshake responses. Otherwise the device would compute hundreds of X25519 at the beginning of each
// second of the flood. Messages without a valid mac1 do not count, because they were not made for this device's public key.
func TestFloodKeepsUnderLoad(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so that 2,500 initiations per second are too many
	inWorld(t, func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.knows(b)
		b.knows(a)
		w.connect(a, b)
		old := w.last("a initiation")
		wireguard.ForceLoad(b.Device, false)
		w.advance(time.Minute)
		flood := func(n int) {
			for range n {
				if err := w.net.Inject(stranger, b.at().Addr, old.data); err != nil {
					w.Fatal(err)
				}
			}
			w.settle()
		}
		flood(300) // less than 512
		if b.Status().UnderLoad {
			w.Fatal("a short queue puts the device under load")
		}
		wireguard.BeginLoad(b.Device)
		replies := b.Status().CookieReplies
		for i := range 50 {
			w.advance(100 * time.Millisecond)
			if flood(300); !b.Status().UnderLoad {
				w.Fatalf("the load ended %d ms after it began, amid a flood of 3,000 per second", 100*(i+1))
			}
		}
		if n := b.Status().CookieReplies - replies; n != 50*300 {
			w.Errorf("%d of %d initiations were answered with a cookie", n, 50*300)
		}
		for range 20 {
			w.advance(100 * time.Millisecond)
			flood(200)
		}
		if b.Status().UnderLoad {
			w.Error("the load goes on although fewer arrive than a core can answer")
		}
		wireguard.BeginLoad(b.Device)
		clear(old.data[len(old.data)-32:]) // mac1 and mac2 are now wrong
		for range 20 {
			w.advance(100 * time.Millisecond)
			flood(300)
		}
		if b.Status().UnderLoad {
			w.Error("messages that are not for this device's key keep it under load")
		}
	})
}
