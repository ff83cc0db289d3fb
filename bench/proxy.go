package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/idlemem"
	"github.com/seed-86b749af/wireguard/proxy"
)

// proxyMeasures returns the measures of a SOCKS5 server whose targets are behind a tunnel.
//
//	client ── loopback ──▶ SOCKS5 ─ stack ══ tunnel ══ stack of this library ── target
func proxyMeasures() []measure {
	return []measure{
		{name: "proxy/socks", unit: "Gbit/s", run: runProxyDownload},
		{name: "proxy/socks-memory", unit: "MiB resident", lower: true, run: runProxyMemory},
		{name: "proxy/connect", unit: "connections/s", run: runProxyConnect},
		{name: "proxy/idle", unit: "bytes", lower: true, run: runProxyIdle, rounds: 3},
	}
}

// joinByProxy makes a stack of the measured library with a SOCKS5 server on it, and a second stack with the target, at the other
// side of a tunnel. The second stack is always one of this library. So the figures of the two libraries differ only because of
// the proxy's side.
func joinByProxy(st *stage) (*stacks, error) {
	ka, kb := wireguard.NewPrivateKey(), wireguard.NewPrivateKey()
	a, near, err := st.lib.stack(st, ka, addrA, nil)
	if err != nil {
		return nil, err
	}
	b, far, err := ours{}.stack(st, kb, addrB, nil)
	if err != nil {
		return nil, err
	}
	if err := introduce(a, b, ka, kb); err != nil {
		return nil, err
	}
	s, err := listen(st, near, far)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(loopback, 0).String())
	if err != nil {
		return nil, err
	}
	st.atClose(func() { l.Close() })
	serveSOCKS(st, a, near, l)
	s.dial = func(ctx context.Context) (net.Conn, error) { return dialSOCKS(ctx, l.Addr().String()) }
	return s, nil
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// serveSOCKS runs a SOCKS5 server that dials through near, the stack of the device a. For this library, the server consists of
// package proxy and internal/idlemem, as in wgproxy. For wireguard-go, the server does what wireproxy does.
func serveSOCKS(st *stage, a node, near network, l net.Listener) {
	dial := func(ctx context.Context, _, address string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return nil, err
		}
		return near.dial(ctx, to)
	}
	our, ok := a.(*ourNode)
	if !ok {
		go serveLikeWireproxy(l, dial)
		return
	}
	s := &proxy.Server{Protocol: proxy.SOCKS5{}, DialContext: dial}
	ctx, cancel := context.WithCancel(context.Background())
	st.atClose(func() { cancel(); s.Close() })
	go idlemem.Watch(ctx, func() uint64 { return idlemem.Moved(our.dev) })
	go func() { _ = s.Serve(l) }()
}

var errSOCKS = errors.New("the SOCKS5 server refused the request")

// dialSOCKS connects to port 80 of addrB through a SOCKS5 server, whose address is at.
func dialSOCKS(ctx context.Context, at string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	var b [10]byte
	to := addrB.As4()
	for _, step := range []struct {
		send   []byte
		answer int
	}{{[]byte{5, 1, 0}, 2}, {[]byte{5, 1, 0, 1, to[0], to[1], to[2], to[3], 0, 80}, 10}} {
		if _, err = c.Write(step.send); err == nil {
			_, err = io.ReadFull(c, b[:step.answer])
		}
		if err == nil && b[1] != 0 {
			err = errSOCKS
		}
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("SOCKS5: %w", err)
		}
	}
	return c, c.SetDeadline(time.Time{})
}

// runProxyDownload measures the throughput of one connection through the proxy, from the target to the client.
func runProxyDownload(st *stage) (sample, error) {
	s, err := joinByProxy(st)
	if err != nil {
		return sample{}, err
	}
	return download(st, s)
}

// download lets the target write to each connection that it accepts. It opens one connection and measures its throughput.
func download(st *stage, s *stacks) (sample, error) {
	s.serve(func(c net.Conn) { _ = fill(c) })
	return s.drainOne(st)
}

// runProxyMemory measures the resident memory of the whole process, client and target included, half a minute after a download.
// The bench requests no garbage collection. For this library, internal/idlemem requests one 10 to 15 seconds after the download,
// as in wgproxy.
func runProxyMemory(st *stage) (sample, error) {
	before, err := residentBytes("VmRSS")
	if err != nil {
		return sample{}, err
	}
	s, err := joinByProxy(st)
	if err != nil {
		return sample{}, err
	}
	d, err := download(st, s)
	if err != nil {
		return sample{}, err
	}
	st.rest()
	loaded, err := residentBytes("VmRSS")
	if err != nil {
		return sample{}, err
	}
	time.Sleep(st.Settle)
	after, err := residentBytes("VmRSS")
	return sample{after / (1 << 20), []aside{
		{Name: "right after the download", Unit: "MiB", Value: loaded / (1 << 20)},
		{Name: "download before", Unit: "Gbit/s", Value: d.Value},
		{Name: "before the devices", Unit: "MiB", Value: before / (1 << 20)},
	}}, err
}

// runProxyConnect measures how many connections per second one client opens through the proxy, one after another. See runConnect.
func runProxyConnect(st *stage) (sample, error) {
	s, err := joinByProxy(st)
	if err != nil {
		return sample{}, err
	}
	return runConnect(st, s)
}

// runProxyIdle measures the bytes of heap and stacks per idle connection through the proxy, after garbage collection. These bytes
// include the connections of the client and of the target, which no goroutine reads.
func runProxyIdle(st *stage) (sample, error) {
	s, err := joinByProxy(st)
	if err != nil {
		return sample{}, err
	}
	before, after, n, err := s.weighIdle(st, st.conns()+1)
	return sample{(after.heap + after.stack - before.heap - before.stack) / n, []aside{
		{Name: "stacks", Unit: "bytes", Value: (after.stack - before.stack) / n},
		{Name: "resident growth", Unit: "bytes", Value: (after.resident - before.resident) / n},
		{Name: "goroutines", Value: float64(after.goroutines-before.goroutines) / n},
	}}, err
}
