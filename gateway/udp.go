package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/seed-86b749af/wireguard/internal/sockets"
	"github.com/seed-86b749af/wireguard/transport/netstack"
)

// maxDestinations is how many destinations, and how many remote addresses, a mapping remembers. The policy is asked again about a
// forgotten destination. Datagrams from a forgotten remote address are dropped until the peer sends to that address again.
const maxDestinations = 256

// buffers holds buffers for one datagram each. A mapping takes a buffer only when a datagram can be read, because a peer may have
// thousands of idle mappings.
var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// A mapping joins one UDP socket behind a peer with one outbound socket. In the terms of RFC 4787, the mapping is
// endpoint-independent and the filtering is address-dependent: an inbound datagram passes if the peer has sent to its source
// address, whatever the port.
type mapping struct {
	g        *Gateway
	account  *account
	source   *netstack.UDPSource
	host     sockets.Datagrams
	verdicts map[netip.AddrPort]Verdict // by destination; only outbound's goroutine uses it

	mu    sync.Mutex                        // guards the rest
	heard map[netip.Addr]bool               // remote addresses to which the peer has sent, so they may answer
	names map[netip.AddrPort]netip.AddrPort // the destination to which the peer sent, by the Verdict.To that replaced it
}

// udp serves a UDP socket behind a peer. The netstack.Net closes the source once it has carried nothing for the time
// netstack.Forwarding.UDPIdle.
func (g *Gateway) udp(f *netstack.Flow, a *account) {
	network := "udp4"
	if f.Source().Addr().Is6() {
		network = "udp6"
	}
	source, began, err := f.AcceptSource()
	if err != nil || !began {
		a.opened.Add(^uint64(0)) // another call of udp already serves the datagrams of this socket
		return
	}
	defer source.Close()
	ctx, cancel := g.outbound(f)
	host, err := g.config.ListenPacket(ctx, network, ":0")
	cancel()
	if err != nil {
		a.failed.Add(1)
		_ = source.Refuse(f.Destination(), netstack.RefusalOf(err))
		return
	}
	defer host.Close()
	m := &mapping{
		g: g, account: a, source: source, host: sockets.DatagramsOf(host), verdicts: make(map[netip.AddrPort]Verdict),
		heard: make(map[netip.Addr]bool), names: make(map[netip.AddrPort]netip.AddrPort),
	}
	stop := context.AfterFunc(g.ctx, func() { _ = source.Close() })
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.inbound()
		_ = source.Close()
	}()
	m.outbound()
	_, _ = source.Close(), host.Close()
	<-ended
}

// outbound sends the peer's datagrams to other hosts.
func (m *mapping) outbound() {
	for m.source.WaitReadable() == nil && m.outboundOne() {
	}
}

// outboundOne sends one datagram. It returns false when the mapping ends.
func (m *mapping) outboundOne() bool {
	b := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(b)
	n, to, err := m.source.ReadTo(b[:])
	if err != nil {
		return !isEnded(err) // another error: the peer reported by ICMP that its socket is closed
	}
	if m.account.spent() {
		_ = m.source.Refuse(to, netstack.Prohibited)
		return false
	}
	real, ok := m.decide(to)
	if !ok {
		return true
	}
	if !m.account.admit(&m.account.fromPeer, n) {
		m.account.dropped.Add(1)
		return true
	}
	if _, err := m.host.WriteToUDPAddrPort(b[:n], real); err != nil {
		m.account.dropped.Add(1)
		m.account.fromPeer.bytes.Add(-uint64(n))
		_ = m.source.Refuse(to, netstack.RefusalOf(err))
	}
	return true
}

// decide returns the address to which a datagram for the destination to is sent. If the policy does not allow the datagram,
// decide refuses it and returns false. Only outbound's goroutine calls decide. The policy may take long, so decide holds no lock
// while the policy runs.
func (m *mapping) decide(to netip.AddrPort) (real netip.AddrPort, ok bool) {
	v, known := m.verdicts[to]
	if !known {
		v = m.g.config.Policy(Request{m.source.Peer(), "udp", m.source.Source(), to})
		if v.Allow && v.To.IsValid() && v.To.Addr().Is4() != to.Addr().Is4() {
			v = Verdict{Refusal: netstack.NetUnreachable}
		}
		if !v.Allow {
			m.account.refused.Add(1)
		}
		put(m.verdicts, to, v)
	}
	if !v.Allow {
		_ = m.source.Refuse(to, v.Refusal)
		return real, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if real = to; v.To.IsValid() {
		real = v.To
		put(m.names, real, to)
	}
	put(m.heard, real.Addr(), true)
	return real, true
}

// put adds an entry to the map m. If m is full, put first removes an arbitrary entry.
func put[K comparable, V any](m map[K]V, k K, v V) {
	if _, ok := m[k]; !ok && len(m) >= maxDestinations {
		for old := range m {
			delete(m, old)
			break
		}
	}
	m[k] = v
}

// inbound sends the datagrams of other hosts to the peer.
func (m *mapping) inbound() {
	wait := sockets.Waiter(m.host)
	for failures := 0; failures < 100; { // Windows reports an ICMP error about an earlier datagram as a failed read
		err := wait()
		if err == nil {
			err = m.inboundOne()
		}
		switch {
		case err == nil:
			failures = 0
		case isEnded(err), errors.Is(err, errQuota):
			return
		default:
			failures++
		}
	}
}

func (m *mapping) inboundOne() error {
	b := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(b)
	n, from, err := m.host.ReadFromUDPAddrPort(b[:])
	if err != nil {
		return err
	}
	if m.account.spent() {
		return errQuota
	}
	name, ok := m.nameOf(from)
	if !ok || !m.account.admit(&m.account.toPeer, n) {
		m.account.dropped.Add(1)
		return nil
	}
	_, err = m.source.WriteFrom(b[:n], name)
	if err != nil {
		m.account.toPeer.bytes.Add(-uint64(n))
	}
	if isEnded(err) {
		return err
	} else if err != nil {
		m.account.dropped.Add(1)
	}
	return nil
}

// nameOf returns the address that the peer sees as the source of datagrams from the remote address a, and whether a may send
// to the peer.
func (m *mapping) nameOf(a netip.AddrPort) (netip.AddrPort, bool) {
	a = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	m.mu.Lock()
	defer m.mu.Unlock()
	if name, ok := m.names[a]; ok {
		return name, true
	}
	return a, m.heard[a.Addr()]
}

// isEnded reports whether err means that a socket was closed.
func isEnded(err error) bool { return errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) }
