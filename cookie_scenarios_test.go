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
		w.want("a initiation, b cookie reply", "b computes no X25519 before a has shown that it receives messages at its address")
		w.wantMAC2("a initiation", false, "there is no cookie yet")
		b.wantDrops(wireguard.DropCookieRequired, 1, "b answers the initiation with a cookie reply")
		if s := b.Status(); s.CookieReplies != 1 || !s.UnderLoad {
			w.Fatalf("status %+v, want load and 1 cookie reply", s)
		}
		w.wantJittered(5*time.Second, "a initiation, b response, a data", "a uses the cookie in its next retry, and not at once")
		w.wantMAC2("a initiation", true, "the mac2 is made with the cookie")
		b.wantArrived("b makes a session under load", "hello")
		// Cookie replies are not counted as sent or received bytes.
		if s := b.status(a); s.Sent.Bytes != 92 || s.Received.Bytes != 148+32+48 {
			w.Fatalf("b counted %+v as sent and %+v as received, want 92 bytes sent and 228 received", s.Sent, s.Received)
		}
		if r := a.status(b).Received.Bytes; r != 92 {
			w.Fatalf("a counted %d received bytes, want 92", r)
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
		w.wantMAC2("a initiation", false, "a received no cookie")
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
			w.want("a initiation, b cookie reply", "b sends a cookie")
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
			w.want("a initiation, b cookie reply", "b makes a cookie secret")
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
		w.want("a initiation", "the initiation has a mac2, and is lost")
		good, home := w.last("a initiation"), a.at().Addr
		for _, from := range []netip.AddrPort{
			netip.AddrPortFrom(home.Addr(), home.Port()+1),
			netip.AddrPortFrom(elsewhere, home.Port()),
		} {
			w.replay(good, from)
			w.want("b cookie reply", fmt.Sprintf("a's cookie is not valid for %v", from))
		}
		w.replay(good)
		w.want("b response, a data", "the cookie is valid for a's address and port")
	})
}

// A device never answers a message that has no valid mac1, whether it is under load or not. Section 5.1 calls this silence.
func TestNoAnswerWithoutMAC1(t *testing.T) {
	for _, load := range []bool{false, true} {
		scenario(t, func(w *world, a, b *node) {
			wireguard.ForceLoad(b.Device, load)
			w.lose("a initiation", 1)
			a.send(b, "x")
			w.want("a initiation", "the initiation is lost")
			forged := w.last("a initiation")
			for _, at := range []int{1, 4, 8, 100, 116, 131} { // type, sender, ephemeral, timestamp, mac1
				bad := forged
				bad.data = bytes.Clone(forged.data)
				bad.data[at] ^= 1
				w.replay(bad)
			}
			w.want("", "b does not answer a sender that does not know its public key")
			b.wantDrops(wireguard.DropBadMAC, 5, "each message with a wrong mac1 is counted")
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
		w.wantJittered(5*time.Second, "a initiation, b response, a data", "b sends a mac2 in its next response")
		w.wantMAC2("b response", true, "the mac2 is made with the cookie")
		b.wantArrived("a makes a session under load", "hello")
	})
}

// A device accepts a cookie reply only to the last message that it sent, because the mac1 of that message authenticates the
// reply: "the initiator's mac1 is the additional data" (5.4.7).
func TestCookieReplyWithWrongMAC1Ignored(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		wireguard.ForceLoad(b.Device, true)
		w.lose("b cookie reply", 100)
		a.send(b, "x")
		w.want("a initiation, b cookie reply", "the cookie reply is lost")
		old := w.last("b cookie reply")
		w.wantJittered(5*time.Second, "a initiation, b cookie reply", "the second cookie reply is lost too")
		fresh := w.last("b cookie reply")
		w.replay(old)
		a.wantDrops(wireguard.DropUnknownIndex, 1, "the cookie reply answers a superseded initiation")
		copy(old.data[4:8], fresh.data[4:8]) // an attacker can set the right index, but the reply is sealed for another mac1
		w.replay(old)
		a.wantDrops(wireguard.DropBadCookie, 1, "the cookie reply is sealed for another mac1")
		bad := fresh
		bad.data = bytes.Clone(fresh.data)
		bad.data[40] ^= 1
		w.replay(bad)
		a.wantDrops(wireguard.DropBadCookie, 2, "the cookie reply is forged")
		w.replay(fresh)
		a.wantDrops(wireguard.DropBadCookie, 2, "the cookie reply answers the last initiation")
		w.replay(fresh)
		a.wantDrops(wireguard.DropBadCookie, 3, "row 5: a accepts only one cookie reply for each message")
		w.judge(nil)
		w.advance(5*time.Second + jitter)
		w.want("a initiation, b response, a data", "the initiation has a mac2 made with the cookie")
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
		b.wantDrops(wireguard.DropRateLimited, 7, "b accepts a burst of 5 messages")
		b.wantDrops(wireguard.DropOldTimestamp, 4, "b answers one message of the burst, and the other 4 are replays")
		w.advance(49 * time.Millisecond)
		w.replay(good)
		b.wantDrops(wireguard.DropRateLimited, 8, "less than 50 ms after the burst: the limit is 20 per second")
		w.advance(time.Millisecond)
		w.replay(good)
		b.wantDrops(wireguard.DropRateLimited, 8, "50 ms after the burst, b accepts one more message")
		if n := wireguard.LimitedSources(b.Device); n != 1 {
			w.Fatalf("%d sources are remembered, want 1", n)
		}
		w.advance(2 * time.Second)
		if n := wireguard.LimitedSources(b.Device); n != 0 {
			w.Fatalf("%d sources are remembered after 2 s without messages, want 0", n)
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
			w.Fatalf("%d of 8 initiations from one /64 were limited, want 3", n)
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
			w.Fatal("b is under load with 511 queued initiations")
		}
		flood(1)
		if !b.Status().UnderLoad {
			w.Fatal("b is not under load with 512 queued initiations")
		}
		flood(4096 - 512)
		b.wantDrops(wireguard.DropQueueFull, 0, "the queue has room for more than 4096 initiations")
		a.send(b, "meanwhile")
		b.wantArrived("the queue of initiations does not delay data messages", "meanwhile")

		gate <- struct{}{}
		b.wantArrived("b handles the initiation of c first, because it arrived first", "from c")
		s := b.Status()
		if s.CookieReplies != 4096 || s.Drops[wireguard.DropCookieRequired] != 4096 || s.Drops.Total() != 4096 {
			w.Fatalf("%d cookie replies and drops %v, want one of each for each of 4096 initiations", s.CookieReplies, s.Drops)
		}
		w.advance(time.Second - 1)
		if !b.Status().UnderLoad {
			w.Fatal("the load ended before 1 s had passed")
		}
		w.advance(1)
		if b.Status().UnderLoad {
			w.Fatal("the load did not end after 1 s")
		}
	})
}

// A flood keeps a device under load. Cookie replies cost so little that the queue stays short during the flood. So the device
// counts the initiations that it answers with cookie replies. It stays under load while it receives more of them than half of its
// cores could answer with handshake responses. Otherwise the device would compute hundreds of X25519 at the beginning of each
// second of the flood. Initiations without a valid mac1 do not keep it under load: they were not made for its public key.
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
			w.Fatal("300 initiations put the device under load, want at least 512")
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
			w.Errorf("%d of %d initiations were answered with a cookie reply, want all", n, 50*300)
		}
		for range 20 {
			w.advance(100 * time.Millisecond)
			flood(200)
		}
		if b.Status().UnderLoad {
			w.Error("the device is still under load, although fewer initiations arrive than it can answer")
		}
		wireguard.BeginLoad(b.Device)
		clear(old.data[len(old.data)-32:]) // mac1 and mac2 are now wrong
		for range 20 {
			w.advance(100 * time.Millisecond)
			flood(300)
		}
		if b.Status().UnderLoad {
			w.Error("messages with a wrong mac1 keep the device under load")
		}
	})
}
