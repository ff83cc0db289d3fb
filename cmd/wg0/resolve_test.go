package main

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A names is a resolver that knows one name.
type names struct{ a atomic.Pointer[netip.Addr] }

func (n *names) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{*n.a.Load()}, nil
}

// TestResolveAgain moves a peer to another address and changes the address of its name. After a handshake has failed, the name is
// resolved again and the tunnel recovers. A peer without a name keeps its endpoint.
func TestResolveAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wire := pipe.NewNetwork(pipe.Config{})
		old, moved := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		key, peerKey := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
		other := wireguard.NewPrivateKey().Public()
		start := func(c wireguard.Config) *wireguard.Device {
			c.Clock, c.Tunnel = pipe.NewClock(), pipe.NewTunnel(0)
			return devices.Up(t, c)
		}
		at := func(a netip.Addr) wireguard.Endpoint { return wireguard.EndpointOf(netip.AddrPortFrom(a, 51820)) }
		start(wireguard.Config{PrivateKey: peerKey, ListenPort: 51820, Bind: wire.NewEnd(moved),
			Peers: []wireguard.PeerConfig{{PublicKey: key.Public()}}})
		d := start(wireguard.Config{PrivateKey: key, Bind: wire.NewEnd(netip.MustParseAddr("192.0.2.9")),
			Peers: []wireguard.PeerConfig{
				{PublicKey: peerKey.Public(), Endpoint: at(old), PersistentKeepalive: 25 * time.Second},
				{PublicKey: other, Endpoint: at(old), PersistentKeepalive: 25 * time.Second},
			}})
		resolver := new(names)
		resolver.a.Store(&old)
		ended := make(chan struct{})
		var asked atomic.Int32 // calls of endpoint, which searches a long list of peers
		failed := d.Subscribe(wireguard.EventHandshakeFailed)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer close(ended)
			resolveAgain(ctx, d, conf.Resolution{Resolver: resolver}, func(k wireguard.PublicKey) conf.Endpoint {
				asked.Add(1)
				if k == other {
					return conf.Endpoint{}
				}
				return conf.Endpoint{Host: "vpn.example.com", Port: 51820}
			}, slog.New(slog.DiscardHandler))
		}()
		synctest.Wait()
		time.Sleep(time.Minute)
		resolver.a.Store(&moved)
		time.Sleep(3 * time.Minute)
		if p, _ := d.Peer(peerKey.Public()); !p.Session || p.Endpoint.Addr.Addr() != moved {
			t.Errorf("no session at the new address: endpoint %v, session %v", p.Endpoint, p.Session)
		}
		if p, _ := d.Peer(other); p.Endpoint.Addr.Addr() != old {
			t.Errorf("a peer without a name was moved to %v", p.Endpoint)
		}
		cancel()
		<-ended
		d.Close()
		failures := int32(0)
		for e := range failed.Events(t.Context()) {
			failures += 1 + int32(e.Merged)
		}
		if n := asked.Load(); n != failures {
			t.Errorf("the file was searched %d times for %d handshakes that failed", n, failures)
		}
	})
}
