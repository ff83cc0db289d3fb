package udp_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit/devices"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// TestDevices checks that two devices with real sockets can shake hands and exchange packets in both directions, also after one
// of them changes its port during the session.
//
//	tunnel a ═══ device a ─── 127.0.0.1 ─── device b ═══ tunnel b
//	10.0.0.1                                             10.0.0.2
func TestDevices(t *testing.T) {
	for name, bind := range map[string]*udp.Bind{
		"offload":  {},
		"portable": {Portable: true},
		"IPv4":     {Address: netip.MustParseAddr("127.0.0.1")},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			addrA, addrB := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2")
			tunA, tunB := pipe.NewTunnel(1420), pipe.NewTunnel(1420)
			a, b := devices.Pair(t,
				devices.Side{Tunnel: tunA, Bind: bind, Inside: []netip.Prefix{prefix(addrA)}},
				devices.Side{Tunnel: tunB, Bind: bind, Inside: []netip.Prefix{prefix(addrB)}},
			)

			exchange := func(from, to *pipe.Tunnel, src, dst netip.AddrPort, n int) {
				t.Helper()
				for i := range n {
					sent := pipe.UDPPacket(src, dst, fmt.Appendf(nil, "%s %d", name, i))
					if err := from.Send(ctx, sent); err != nil {
						t.Fatal(err)
					}
					got, err := to.Receive(ctx)
					if err != nil {
						t.Fatalf("packet %d from %v: %v", i, src, err)
					}
					if !bytes.Equal(got, sent) {
						t.Fatalf("packet %d from %v arrived changed", i, src)
					}
				}
			}
			exchange(tunA, tunB, addrA, addrB, 20)
			exchange(tunB, tunA, addrB, addrA, 20)

			free, err := bind.Listen(0)
			if err != nil {
				t.Fatal(err)
			}
			port := free.Port()
			free.Close()
			if err := b.Configure(wireguard.Change{ListenPort: &port}); err != nil {
				t.Fatal(err)
			}
			exchange(tunB, tunA, addrB, addrA, 20) // a learns the new port of b
			exchange(tunA, tunB, addrA, addrB, 20)
			if s, _ := a.Peer(b.Status().PublicKey); s.Endpoint.Addr.Port() != port {
				t.Errorf("device a sends to b at port %d, want %d", s.Endpoint.Addr.Port(), port)
			}
		})
	}
}

func prefix(a netip.AddrPort) netip.Prefix { return netip.PrefixFrom(a.Addr(), 32) }
