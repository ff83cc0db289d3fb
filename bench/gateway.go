package main

import (
	"context"
	"io"
	"net"
	"net/netip"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/gateway"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"golang.zx2c4.com/wireguard/conn"
	wgonetstack "golang.zx2c4.com/wireguard/tun/netstack"
)

// gatewayMeasures returns the measures of a gateway, which forwards TCP connections from a tunnel to the host's sockets.
func gatewayMeasures() []measure {
	return []measure{{name: "gateway/tcp", unit: "Gbit/s", run: runGateway}}
}

// far is the destination that a client of this library's gateway dials. Its address belongs to neither stack.
var far = netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, 1}), 80)

// gateway brings up a device without peers that forwards each TCP connection to target. A peer may dial any address; gateway
// returns far.
func (ours) gateway(st *stage, key wireguard.PrivateKey, target netip.AddrPort) (node, netip.AddrPort, error) {
	g, err := gateway.New(gateway.Config{Policy: func(gateway.Request) gateway.Verdict {
		return gateway.Verdict{Allow: true, To: target}
	}})
	if err != nil {
		return nil, far, err
	}
	t, err := netstack.New(netstack.Config{Addresses: []netip.Addr{addrB}, MTU: mtu, Forward: g.Forward})
	if err != nil {
		return nil, far, err
	}
	n := &ourNode{}
	err = n.up(st, wireguard.Config{PrivateKey: key, Tunnel: t, Bind: countedBind{st}})
	st.atClose(func() { g.Close() })
	return n, far, err
}

// gateway forwards only connections to the stack's own address, because wireguard-go's stack accepts no others.
func (rival) gateway(st *stage, key wireguard.PrivateKey, target netip.AddrPort) (node, netip.AddrPort, error) {
	to := netip.AddrPortFrom(addrB, far.Port())
	t, stack, err := wgonetstack.CreateNetTUN([]netip.Addr{addrB}, nil, mtu)
	if err != nil {
		return nil, to, err
	}
	n, err := newRivalNode(st, key, t, conn.NewStdNetBind())
	if err != nil {
		return nil, to, err
	}
	l, err := stack.ListenTCP(net.TCPAddrFromAddrPort(to))
	if err != nil {
		return nil, to, err
	}
	st.atClose(func() { l.Close() })
	(&stacks{listener: l}).serve(func(local net.Conn) {
		remote, err := net.Dial("tcp", target.String())
		if err != nil {
			return
		}
		defer remote.Close()
		go func() {
			_, _ = io.Copy(remote, local)
			_ = remote.Close()
		}()
		_, _ = io.Copy(local, remote)
	})
	return n, to, nil
}

// runGateway measures a download from a TCP socket of the host through the gateway. The client is an in-process stack of the same
// library, at the other side of the tunnel.
func runGateway(st *stage) (sample, error) {
	l, err := net.Listen("tcp", netip.AddrPortFrom(loopback, 0).String())
	if err != nil {
		return sample{}, err
	}
	st.atClose(func() { l.Close() })
	(&stacks{listener: l}).serve(func(c net.Conn) { _ = fill(c) })
	ka, kb := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	a, from, err := st.lib.stack(st, ka, addrA, nil)
	if err != nil {
		return sample{}, err
	}
	b, to, err := st.lib.gateway(st, kb, l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		return sample{}, err
	}
	if err := introduce(a, b, ka, kb); err != nil {
		return sample{}, err
	}
	everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if err := a.plan(peer{kb.Public(), netip.AddrPortFrom(loopback, b.port()), everywhere})(); err != nil {
		return sample{}, err
	}
	s := &stacks{dial: func(ctx context.Context) (net.Conn, error) { return from.dial(ctx, to) }}
	d, err := s.drainOne(st)
	d.Aside = append(d.Aside, st.calls()...)
	return d, err
}
