package netstack

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// A gateway is a Net that forwards for two clients:
//
//	client 10.8.0.2, fd08::2 ─┐
//	                          ├─ gateway 10.8.0.1, fd08::1 ─ Config.Forward
//	client 10.8.0.3, fd08::3 ─┘
type gateway struct {
	*Net
	clients [2]*Net
	keys    [2]wireguard.PublicKey
	wires   [2]*wire // the wires from the clients to the gateway

	mu     sync.Mutex // guards the fields below
	routes map[netip.Addr]int
	drop   func(p []byte) bool // reports whether the packet p to a client is lost; nil means that no packet is lost
}

var clientAddrs = [2][]netip.Addr{
	{netip.MustParseAddr("10.8.0.2"), netip.MustParseAddr("fd08::2")},
	{netip.MustParseAddr("10.8.0.3"), netip.MustParseAddr("fd08::3")},
}

// newGateway returns a gateway with the configuration c. It sets the addresses in c.
func newGateway(t testing.TB, c Config) *gateway {
	t.Helper()
	g := &gateway{routes: make(map[netip.Addr]int)}
	c.Addresses = []netip.Addr{a4, a6}
	g.Net = newNet(t, c)
	g.link.attach(g)
	for i := range g.clients {
		g.keys[i] = wireguard.NewPrivateKey().Public()
		g.clients[i] = newNet(t, Config{Addresses: clientAddrs[i], MTU: c.MTU})
		g.wires[i] = &wire{to: g.Net}
		g.clients[i].link.attach(g.wires[i])
		for _, a := range clientAddrs[i] {
			g.routes[a] = i
		}
	}
	return g
}

func newNet(t testing.TB, c Config) *Net {
	t.Helper()
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// route routes an address to a client. If client is -1, route removes the route.
func (g *gateway) route(a netip.Addr, client int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.routes[a] = client; client < 0 {
		delete(g.routes, a)
	}
}

func (g *gateway) clientOf(a netip.Addr) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i, ok := g.routes[a]; ok {
		return i
	}
	return -1
}

func (g *gateway) lose(drop func([]byte) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drop = drop
}

// Route makes g a router.
func (g *gateway) Route(a netip.Addr) (key wireguard.PublicKey, ok bool) {
	if i := g.clientOf(a); i >= 0 {
		return g.keys[i], true
	}
	return key, false
}

// NewBatch and Send make g the outlet of its Net.
func (g *gateway) NewBatch() *wireguard.Batch { return new(wireguard.Batch) }

func (g *gateway) Send(b *wireguard.Batch) error {
	defer b.Reset()
	for i := range b.Len() {
		p := b.Packet(i)
		_, dst := addressesOf(p)
		g.mu.Lock()
		lost := g.drop != nil && g.drop(p)
		g.mu.Unlock()
		if to := g.clientOf(dst); to >= 0 && !lost {
			_, _ = g.clients[to].WritePackets([][]byte{p})
		}
	}
	return nil
}

func briefly(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
