package follow_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/follow"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

const (
	port = 51820
	host = "vpn.example.com"
)

var (
	first, second, third = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::3")

	insideClient = netip.MustParseAddrPort("10.0.0.2:7")
	insideServer = netip.MustParseAddrPort("10.0.0.1:7")
)

// A world is a client that follows its server, in virtual time.
//
//	client 192.0.2.9 ── wire ── server, at the address first until it moves
type world struct {
	*testing.T
	net            *pipe.Network
	client         *wireguard.Device
	tunnel         *pipe.Tunnel // the client's tunnel
	server         *wireguard.Device
	serverTunnel   *pipe.Tunnel
	key, serverKey wireguard.PrivateKey
	follower       *follow.Follower
	changed        func() // tells the follower that the network changed

	mu    sync.Mutex // guards the fields below, which belong to the resolver
	addrs []netip.Addr
	err   error
	asked []time.Time
}

// LookupNetIP answers with the addresses of the only name.
func (w *world) LookupNetIP(_ context.Context, network, name string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, time.Now())
	if name != host || network != "ip" {
		w.Errorf("the resolver was asked for the network %s of the name %s, want ip and the server's name", network, name)
	}
	return slices.Clone(w.addrs), w.err
}

// resolves sets the answer of LookupNetIP.
func (w *world) resolves(err error, addrs ...netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.addrs, w.err = addrs, err
}

func (w *world) lookups() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.asked)
}

func named() conf.Endpoint { return conf.Endpoint{Host: host, Port: port} }

func literal(a netip.Addr) conf.Endpoint { return conf.Endpoint{Host: a.String(), Port: port} }

func at(a netip.Addr) wireguard.Endpoint {
	return wireguard.EndpointOf(netip.AddrPortFrom(a, port))
}

// inWorld calls f with a server at serverAt and a client whose peer has these endpoints. At the start, the client's endpoint for
// the server is the address 192.0.2.1 (first).
func inWorld(t *testing.T, serverAt netip.Addr, endpoints []conf.Endpoint, f func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, net: pipe.NewNetwork(pipe.Config{Seed: 1}), key: wireguard.NewPrivateKey(), serverKey: wireguard.NewPrivateKey()}
		w.net.SetConditions(pipe.Conditions{Delay: 20 * time.Millisecond})
		w.resolves(nil, first)
		w.tunnel = pipe.NewTunnel(0)
		w.serve(serverAt)
		w.client = devices.Up(t, wireguard.Config{
			PrivateKey: w.key, Bind: w.net.NewEnd(netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")), Tunnel: w.tunnel, Clock: pipe.NewClock(),
			Peers: []wireguard.PeerConfig{{PublicKey: w.serverKey.Public(), Endpoint: at(first), AllowedIPs: []netip.Prefix{netip.PrefixFrom(insideServer.Addr(), 32)}}},
		})
		changes := func(ctx context.Context, changed func()) error {
			w.changed = changed
			<-ctx.Done()
			return nil
		}
		w.follower = follow.New(w.client, follow.Config{Resolution: conf.Resolution{Resolver: w}, Changes: changes})
		w.follower.Set(map[wireguard.PublicKey][]conf.Endpoint{w.serverKey.Public(): endpoints})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan struct{})
		go func() {
			defer close(ran)
			w.follower.Run(ctx)
		}()
		defer func() { cancel(); <-ran }()
		synctest.Wait()
		f(w)
	})
}

// talk sends a packet to the server every 200 ms until the server gets one, or until limit has passed. It returns how long that
// took.
func (w *world) talk(limit time.Duration) (took time.Duration, heard bool) {
	for w.serverTunnel.TryReceive() != nil {
	}
	for start := time.Now(); time.Since(start) < limit; time.Sleep(200 * time.Millisecond) {
		w.tunnel.TrySend(pipe.UDPPacket(insideClient, insideServer, []byte("hello")))
		synctest.Wait()
		if w.serverTunnel.TryReceive() != nil {
			return time.Since(start), true
		}
	}
	return limit, false
}

func (w *world) wantHeard(limit time.Duration, why string) (took time.Duration) {
	w.Helper()
	took, heard := w.talk(limit)
	if !heard {
		p, _ := w.client.Peer(w.serverKey.Public())
		w.Fatalf("the server received no packet within %v: %s; the endpoint is %v", limit, why, p.Endpoint)
	}
	return took
}

func (w *world) wantEndpoint(a netip.Addr, why string) {
	w.Helper()
	if p, _ := w.client.Peer(w.serverKey.Public()); p.Endpoint.Addr.Addr() != a {
		w.Errorf("the endpoint is %v, want %v: %s", p.Endpoint, a, why)
	}
}

// serve starts the server at a.
func (w *world) serve(a netip.Addr) {
	w.serverTunnel = pipe.NewTunnel(0)
	w.server = devices.Up(w.T, wireguard.Config{
		PrivateKey: w.serverKey, ListenPort: port, Bind: w.net.NewEnd(a), Tunnel: w.serverTunnel, Clock: pipe.NewClock(),
		Peers: []wireguard.PeerConfig{{PublicKey: w.key.Public(), AllowedIPs: []netip.Prefix{netip.PrefixFrom(insideClient.Addr(), 32)}}},
	})
}

// serverMoves ends the server, and starts it at another address. The new server has no session, and does not know where
// the client is.
func (w *world) serverMoves(a netip.Addr) {
	w.server.Close()
	w.serve(a)
}

// TestNameChanges checks that traffic flows again at most 17 s after the server has moved and its name has the new address.
func TestNameChanges(t *testing.T) {
	inWorld(t, first, []conf.Endpoint{named()}, func(w *world) {
		w.wantHeard(time.Second, "the server answers at the first address")
		time.Sleep(time.Minute)
		w.wantHeard(time.Second, "the server answers at the first address")
		if n := w.lookups(); n != 0 {
			w.Errorf("%d lookups for a tunnel that works, want 0", n)
		}
		w.serverMoves(second)
		w.resolves(nil, second)
		took := w.wantHeard(17*time.Second, "the name has the new address")
		w.Logf("traffic flows again after %v", took)
		w.wantEndpoint(second, "the server answered there")
	})
}

// TestNameChangesLater checks that traffic flows again if DNS fails for a minute after the server's move.
func TestNameChangesLater(t *testing.T) {
	inWorld(t, first, []conf.Endpoint{named()}, func(w *world) {
		w.wantHeard(time.Second, "the server answers at the first address")
		w.serverMoves(second)
		w.resolves(errors.New("no DNS today"))
		if _, heard := w.talk(time.Minute); heard {
			w.Fatal("the server received a packet, although DNS did not give its new address")
		}
		w.resolves(nil, second)
		took := w.wantHeard(65*time.Second, "a name is resolved again every minute")
		w.Logf("traffic flows again %v after the name changed", took)
		if n := w.lookups(); n < 3 || n > 10 {
			w.Errorf("%d lookups since the server moved, want 3 to 10", n)
		}
	})
}

// TestDeadAtStart checks that the client has a session within 7 s if the server does not answer at its first endpoint.
func TestDeadAtStart(t *testing.T) {
	for name, c := range map[string]struct {
		server    netip.Addr
		endpoints []conf.Endpoint
		addrs     []netip.Addr
		limit     time.Duration
	}{
		"second endpoint":        {second, []conf.Endpoint{literal(first), literal(second)}, nil, 7 * time.Second},
		"third endpoint":         {third, []conf.Endpoint{literal(first), literal(second), literal(third)}, nil, 7 * time.Second},
		"second address":         {second, []conf.Endpoint{named()}, []netip.Addr{first, second}, 7 * time.Second},
		"other family first":     {third, []conf.Endpoint{named()}, []netip.Addr{first, second, third}, 6 * time.Second},
		"name after an address":  {second, []conf.Endpoint{literal(first), named()}, []netip.Addr{second}, 7 * time.Second},
		"address after one name": {second, []conf.Endpoint{named(), literal(second)}, []netip.Addr{first}, 7 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, c.server, c.endpoints, func(w *world) {
				w.resolves(nil, c.addrs...)
				ctx, cancel := context.WithTimeout(w.Context(), c.limit)
				defer cancel()
				start := time.Now()
				w.net.Tap(func(p pipe.Packet) { w.Logf("%v: %v %v to %v %v", time.Since(start), p.Type, p.From, p.To, p.Fate) })
				if err := w.client.Handshake(ctx, w.serverKey.Public()); err != nil {
					w.Fatalf("the client has no session after %v: %v", time.Since(start), err)
				}
				w.Logf("the client has a session after %v", time.Since(start))
				w.wantEndpoint(c.server, "the server answered there")
			})
		})
	}
}

// TestWorkingTunnelStays checks that neither a DNS answer nor a lost datagram changes the endpoint of a peer that answers.
func TestWorkingTunnelStays(t *testing.T) {
	inWorld(t, first, []conf.Endpoint{named(), literal(second)}, func(w *world) {
		w.wantHeard(time.Second, "the server answers at the first address")
		w.resolves(nil, second)
		w.net.SetConditions(pipe.Conditions{Delay: 20 * time.Millisecond, Loss: 0.05})
		answer := time.NewTicker(3 * time.Second)
		defer answer.Stop()
		for range 400 { // 6 min 40 s, with some handshakes and lost datagrams
			w.tunnel.TrySend(pipe.UDPPacket(insideClient, insideServer, []byte("hello")))
			time.Sleep(time.Second)
			w.wantEndpoint(first, "the server answers there")
			if w.Failed() {
				return
			}
		}
	})
}

// TestOneWay checks that a keepalive counts as an answer. A server that has no data to send sends a keepalive 10 s after it has
// received data.
func TestOneWay(t *testing.T) {
	inWorld(t, first, []conf.Endpoint{named(), literal(second)}, func(w *world) {
		for range 100 {
			w.tunnel.TrySend(pipe.UDPPacket(insideClient, insideServer, []byte("hello")))
			time.Sleep(time.Second)
		}
		w.wantEndpoint(first, "the server answers there")
		if n := w.lookups(); n != 0 {
			w.Errorf("%d lookups for a server that answers, want 0", n)
		}
	})
}

// TestAbsent checks that the attempts to reach a peer end if the peer answers nowhere, and that new packets start them again.
func TestAbsent(t *testing.T) {
	inWorld(t, netip.MustParseAddr("192.0.2.77"), []conf.Endpoint{named(), literal(second)}, func(w *world) {
		w.tunnel.TrySend(pipe.UDPPacket(insideClient, insideServer, []byte("hello")))
		time.Sleep(10 * time.Minute)
		after := w.net.Sent().Initiations
		if after > 35 {
			w.Errorf("the client sent %d initiations for one packet, want at most 35: 20, one for each place, and one for each of 10 turns", after)
		}
		lookups := w.lookups()
		time.Sleep(time.Hour)
		if got := w.net.Sent().Initiations; got != after || w.lookups() != lookups {
			w.Errorf("the client made %d initiations and %d lookups while no packet was sent, want none", got-after, w.lookups()-lookups)
		}
		w.serverMoves(second)
		w.wantHeard(20*time.Second, "a packet starts new attempts, at all places in turn")
	})
}

// TestNotFollowed checks that a peer that Set does not name keeps its endpoint.
func TestNotFollowed(t *testing.T) {
	inWorld(t, second, nil, func(w *world) {
		if _, heard := w.talk(time.Minute); heard || w.lookups() != 0 {
			w.Errorf("the server received a packet: %v, with %d lookups; want false and 0", heard, w.lookups())
		}
		w.wantEndpoint(first, "the follower knows no endpoint of this peer")
		w.follower.Set(map[wireguard.PublicKey][]conf.Endpoint{w.serverKey.Public(): {literal(second)}})
		w.wantHeard(10*time.Second, "Set has named the second address")
	})
}

// TestEndpoints checks that Endpoints returns the endpoints of a file in their order, without peers that have none.
func TestEndpoints(t *testing.T) {
	a, b := wireguard.NewPrivateKey().Public(), wireguard.NewPrivateKey().Public()
	f, err := conf.Parse([]byte("[Peer]\nPublicKey=" + a.String() + "\nEndpoint=192.0.2.1:51820\nEndpoint=" + host + ":51820\n[Peer]\nPublicKey=" + b.String() + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := follow.Endpoints(f); len(got) != 1 || !slices.Equal(got[a], []conf.Endpoint{literal(first), named()}) {
		t.Errorf("Endpoints returned %v, want the two endpoints of the first peer, in order", got)
	}
}

// TestChangeWakes checks that the peer receives something from the device after a change of the network, although the device has
// no data to send.
func TestChangeWakes(t *testing.T) {
	inWorld(t, first, []conf.Endpoint{named()}, func(w *world) {
		w.wantHeard(time.Second, "the server answers at the first address")
		time.Sleep(time.Minute)
		before, _ := w.server.Peer(w.key.Public())
		w.changed()
		time.Sleep(time.Second)
		after, _ := w.server.Peer(w.key.Public())
		if after.Received.Bytes <= before.Received.Bytes {
			t.Error("the server received nothing after the change of the network")
		}
		if n := w.lookups(); n != 0 {
			t.Errorf("%d lookups for a tunnel that works, want 0", n)
		}
	})
}

// TestChangeSearchesAnew checks that a search restarts when the network is back, after all its places were tried without a
// network and without DNS. The search waits neither for the device's own attempts nor for the time at which a name is resolved
// again.
func TestChangeSearchesAnew(t *testing.T) {
	inWorld(t, first, []conf.Endpoint{named(), literal(second)}, func(w *world) {
		w.wantHeard(time.Second, "the server answers at the first address")
		time.Sleep(time.Second) // until the wire is empty
		w.net.SetConditions(pipe.Conditions{Loss: 1})
		w.resolves(errors.New("no network"))
		if _, heard := w.talk(2 * time.Minute); heard {
			t.Fatal("the server received a packet without a network")
		}
		w.serverMoves(third)
		w.resolves(nil, third)
		w.net.SetConditions(pipe.Conditions{Delay: 20 * time.Millisecond})
		w.changed()
		took := w.wantHeard(4*time.Second, "the network is back, and the name has the new address")
		w.Logf("traffic flows again after %v", took)
		w.wantEndpoint(third, "the server answered there")
	})
}

// TestChangeTriesAgain checks that a place that was tried without a network is tried again soon after the network is back. The
// search does not wait until an attempt of the device has failed, 5 s later.
func TestChangeTriesAgain(t *testing.T) {
	inWorld(t, first, []conf.Endpoint{literal(first), literal(second)}, func(w *world) {
		w.wantHeard(time.Second, "the server answers at the first address")
		time.Sleep(time.Second) // until the wire is empty
		w.net.SetConditions(pipe.Conditions{Loss: 1})
		if _, heard := w.talk(2 * time.Minute); heard {
			t.Fatal("the server received a packet without a network")
		}
		other := first // an endpoint to which the device does not send at the moment
		if p, _ := w.client.Peer(w.serverKey.Public()); p.Endpoint.Addr.Addr() == first {
			other = second
		}
		w.serverMoves(other)
		w.net.SetConditions(pipe.Conditions{Delay: 20 * time.Millisecond})
		w.changed()
		took := w.wantHeard(2*time.Second, "the network is back")
		w.Logf("traffic flows again after %v", took)
	})
}
