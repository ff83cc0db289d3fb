package wireguard_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// faults lists faults that other implementations had in releases, and the tests that would have found them. A fault of the
// control protocol needs two kinds of tests: the tests of this package cover the effect of a Change, and the tests of package
// uapi cover the protocol.
var faults = []covered{
	{"32-bit nonce counter", "TestCounterPasses32Bits"},
	{"no limit on messages per key", "TestRejectAfterMessages TestRekeyAfterMessages"},
	{"roaming on a cookie reply", "TestCookieReplyMovesNothing"},
	{"keepalives answering keepalives", "TestPassiveKeepalive TestKeepaliveAnsweredByNothing"},
	{"keepalive timed from the wrong event", "TestFaultKeepaliveTimedFromTheWrongEvent TestNeedAnotherKeepalive"},
	{"persistent keepalive sent on an active tunnel", "TestPersistentKeepaliveActive"},
	{"reverse check with nested prefixes of two peers", "TestNestedPrefixesOfTwoPeers"},
	{"crash on an oversized datagram", "TestDatagramsOfAnySize"},
	{"wrong source family from recvmmsg", "udp.TestTrainsArriveWhole udp.TestSourceOfIPv6 TestFaultPeersOfBothFamilies"},
	{"port taken in one family only", "udp.TestPortTakenInOneFamily udp.TestPortZeroTriesUntilBothFamiliesHaveIt"},
	{"host without IPv6", "udp.TestMissingFamilyIsNoError udp.TestIPv6SwitchedOff"},
	{"preshared key not applied", "TestPresharedKeyMismatch TestPresharedKeyChange TestHandshakePresharedKeyMismatch"},
	{"late response accepted", "TestResponseToSupersededInitiation TestSuspendAmidHandshakeInitiator"},
	{"update of an existing peer that does harm or has no effect", "TestUpdateOneField uapi.TestSetUpdates uapi.TestSetKeepsSession"},
	{"second of several changes lost", "TestFaultChangesInARow uapi.TestServerPipelined uapi.TestSetReadsNoFurther"},
	{"error in the middle of a peer leaving a half-made peer", "TestConfigureAllOrNothing TestConfigureRefusesAsAWhole uapi.TestSetRefuses uapi.TestServerCut"},
	{"UDP GSO failing for ever with EMSGSIZE on a small path MTU", "udp.TestRefusedTrainGoesOutSingly udp.TestSmallMTU TestPathMTUShrinks"},
	{"IPv6 length wrap delivering a truncated packet", "TestInnerLength packet.TestUnpad"},
	{"limiter keyed by /128", "TestRateLimitIsPer64"},
	{"use after close of the limiter", "TestLimiterOutlivesClose"},
	{"ping replies lost that came before the read", "netstack.TestPing"},
	{"deadline that fires once and then blocks for ever", "netstack.TestConnTCP netstack.TestConnUDP netstack.TestPingFails"},
	{"double close panicking", "TestEveryCallInEveryState udp.TestClose netstack.TestClose pipe.TestCloseIsIdempotent"},
	{"close racing a handshake and leaking the device", "TestCloseAmidHandshake TestCloseUnderLoad"},
	{"a receiver that stops for ever after one odd socket error", "TestReceiverSurvivesErrors udp.TestErrorsOfEarlierDatagrams"},
	{"a nil logger that crashes", "TestFaultNilLogger"},
	{"a sending address that is gone kept for ever", "TestStickySource TestStickySourceForgotten udp.TestGoneSourceIsForgotten udp.TestAddressTakenAway"},
	{"a sending address forgotten only for the peers of one family", "TestFaultSourcesOfEveryPeerForgotten udp.TestGoneSourceIsForgotten"},
	{"a netlink loop that stops at the first IPv6 peer", "udp.TestRoutesSurviveErrors"},
	{"a failed send that is not reported", "TestSendTrouble"},
}

// A device sends the passive keepalive 10 s after it received the first data packet that it has not answered. Later packets,
// keepalives, handshakes and earlier sends do not change that time.
func TestFaultKeepaliveTimedFromTheWrongEvent(t *testing.T) {
	for name, before := range map[string]func(w *world, a, b *node){
		"the handshake":   func(w *world, a, b *node) {},
		"a keepalive":     func(w *world, a, b *node) { a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(time.Hour)}) },
		"the last send":   func(w *world, a, b *node) { b.send(a, "x") },
		"something older": func(w *world, a, b *node) { a.send(b, "x"); b.send(a, "x") },
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				w.connect(a, b)
				before(w, a, b)
				w.advance(4 * time.Second)
				w.script()
				a.send(b, "first")
				w.advance(3 * time.Second)
				a.send(b, "later")
				w.advance(7*time.Second - 1)
				w.want("a data x2", "less than 10 s have passed since the first data packet")
				w.advance(1)
				w.want("b keepalive", "10 s have passed since the first unanswered data packet")
			})
		})
	}
}

// A device has one peer with an IPv4 endpoint and one with an IPv6 endpoint. It must send to each peer at that peer's address, no
// matter which peer sent last.
func TestFaultPeersOfBothFamilies(t *testing.T) {
	inWorld(t, func(w *world) {
		h, four, six := w.node("hub"), w.node("four"), w.node("six")
		for _, n := range []*node{four, six} {
			n.knows(h)
			h.knows(n, func(c *wireguard.PeerConfig) { c.Endpoint = wireguard.Endpoint{} })
		}
		for n, family := range map[*node]int{four: 0, six: 1} {
			if err := n.end.SetAddrs(n.end.Addrs()[family]); err != nil {
				w.Fatal(err)
			}
		}
		six.update(h, wireguard.PeerChange{Endpoint: ptr(wireguard.EndpointOf(netip.AddrPortFrom(h.end.Addrs()[1], h.port)))})
		for i := range 6 {
			for _, n := range []*node{four, six, six, four} {
				n.send(h, "up")
				h.arrived()
				h.wantEndpoint(n, n.at().Addr, "the endpoint has the peer's own address, of the peer's family")
				h.send(n, "down")
				n.wantArrived("the hub sends to the peer's address", "down")
			}
			if i%2 == 1 {
				w.advance(121 * time.Second) // so that the next packets cause handshakes with the same addresses
			}
		}
		h.wantDrops(wireguard.DropSendFailed, 0, "the hub does not send to an address of one family on a socket of the other family")
	})
}

// If one Change has several entries for the same peer, Configure makes all these changes, in order. If several goroutines call
// Configure at the same time, it makes the changes of all of them.
func TestFaultChangesInARow(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		key := b.pub()
		a.configure(wireguard.Change{Peers: []wireguard.PeerChange{
			{PublicKey: key, AllowedIPs: prefixesOf("10.1.0.0/16"), PersistentKeepalive: ptr(time.Hour)},
			{PublicKey: key, AllowedIPs: prefixesOf("10.2.0.0/16"), PersistentKeepalive: ptr(2 * time.Hour)},
			{PublicKey: key, RemoveAllowedIPs: prefixesOf("10.1.0.0/16"), UpdateOnly: true},
		}})
		if s := a.status(b); s.AllowedIPs != 3 || s.PersistentKeepalive != 2*time.Hour || !s.Session {
			w.Fatalf("peer %+v, want all three changes", s)
		}
		if _, ok := a.Route(netip.MustParseAddr("10.1.0.1")); ok {
			w.Fatal("10.1.0.1 still has a route, so the last of the three changes is lost")
		}
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 3, byte(i), 0}), 24)
				if err := a.Configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: key, AllowedIPs: []netip.Prefix{prefix}}}}); err != nil {
					w.Error(err)
				}
			})
		}
		wg.Wait()
		for i := range 64 {
			if got, ok := a.Route(netip.AddrFrom4([4]byte{10, 3, byte(i), 1})); !ok || got != key {
				w.Fatalf("change %d of 64 concurrent changes is lost", i)
			}
		}
		wantWorks(w, a, b, "in the same session")
	})
}

// When the firewall mark changes, the device forgets the local source address that it uses for each peer, for IPv4 and for IPv6.
func TestFaultSourcesOfEveryPeerForgotten(t *testing.T) {
	inWorld(t, func(w *world) {
		h, b, c, d := hub(w)
		v6 := wireguard.EndpointOf(netip.AddrPortFrom(c.end.Addrs()[1], c.port))
		h.update(c, wireguard.PeerChange{Endpoint: &v6})
		h.send(c, "over IPv6")
		c.send(h, "back")
		for _, n := range []*node{b, c, d} {
			if s := h.status(n).Endpoint; !s.Source.IsValid() || s.Addr.Addr().Is6() != (n == c) {
				w.Fatalf("endpoint %+v of %s, want a source address before the change, and IPv6 only for c", s, n.name)
			}
		}
		h.configure(wireguard.Change{FirewallMark: ptr(uint32(1))})
		for _, n := range []*node{b, c, d} {
			if s := h.status(n).Endpoint; s.Source.IsValid() || s.Interface != 0 {
				w.Fatalf("endpoint %+v of %s, want no source and no interface after the change", s, n.name)
			}
		}
	})
}

// TestFaultNilLogger makes a device do everything that it logs, first without a logger and then with one. The log must not
// contain secrets. The device must log actions of peers and strangers at level Debug, not above.
func TestFaultNilLogger(t *testing.T) {
	var log bytes.Buffer
	var mu sync.Mutex
	for _, logger := range []*slog.Logger{nil, slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, &slog.HandlerOptions{Level: slog.LevelDebug - 8}))} {
		inWorld(t, func(w *world) {
			mood := &moodyBind{}
			a := w.node("a", func(c *wireguard.Config) { mood.Bind, c.Bind, c.Logger = c.Bind, mood, logger })
			b := w.node("b")
			psk := wireguard.NewPresharedKey()
			for _, n := range [][2]*node{{a, b}, {b, a}} {
				n[0].knows(n[1], func(c *wireguard.PeerConfig) { c.PresharedKey = psk })
			}
			read := func() string {
				mu.Lock()
				defer mu.Unlock()
				defer log.Reset()
				return log.String()
			}
			w.connect(a, b)
			if got := read(); logger != nil && !strings.Contains(got, "level=INFO msg=\"wireguard: up\"") {
				w.Fatalf("the log is %q, want a message at level INFO that the device is up", got)
			}
			// Peers and strangers do the following.
			a.move(elsewhere)
			a.send(b, "x")
			b.move(elsewhere2)
			b.send(a, "y")
			for _, kind := range []string{"a initiation", "b response", "b data"} {
				m := w.last(kind)
				m.dst = a.at().Addr
				w.replay(m, stranger)
				m.data = append(bytes.Clone(m.data), 1)
				w.replay(m, stranger)
			}
			wireguard.ForceLoad(a.Device, true)
			w.replay(w.last("a initiation"), stranger)
			wireguard.ForceLoad(a.Device, false)
			w.net.SetConditions(pipe.Conditions{MTU: 60, RefuseTooBig: true})
			a.send(b, "refused by the socket")
			w.net.SetConditions(pipe.Conditions{})
			for range 1100 / 100 {
				b.send(a, numbered(0, 100)...)
			}
			w.net.Cut(nil, nil)
			w.advance(200 * time.Second)
			a.send(b, "z")
			w.advance(120 * time.Second)
			got := read()
			if logger != nil && !strings.Contains(got, "level=DEBUG") {
				w.Fatalf("the log is %q, want a message at level DEBUG", got)
			}
			if strings.Contains(got, "level=INFO") || strings.Contains(got, "level=WARN") || strings.Contains(got, "level=ERROR") {
				w.Fatalf("the log is %q, want no message above level DEBUG", got)
			}
			// The system and the program do the following.
			mood.set(func() { mood.moods = []error{errors.New("odd")} })
			w.net.Mend(nil, nil)
			b.move(netip.MustParseAddr("198.18.0.2"))
			b.send(a, "wakes the receiver")
			w.advance(time.Minute)
			mood.set(func() { mood.fail = errors.New("busy") })
			a.Wake()
			mood.set(func() { mood.fail = nil })
			a.Down()
			a.Close()
			got += read()
			if logger != nil && (!strings.Contains(got, "level=WARN") || !strings.Contains(got, "wireguard: down")) {
				w.Fatalf("the log is %q, want a message at level WARN and the message that the device is down", got)
			}
			for _, secret := range [][]byte{a.key[:], b.key[:], psk[:]} {
				if bytes.Contains([]byte(got), secret) || strings.Contains(got, hex.EncodeToString(secret)) ||
					strings.Contains(got, wireguard.PublicKey(secret).String()) {
					w.Fatalf("the log contains a secret: %q", got)
				}
			}
		})
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
