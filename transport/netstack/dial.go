package netstack

import (
	"context"
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/seed-86b749af/wireguard/internal/stackroom"
)

// An attempt is one dial: a call of a method of a Dialer.
type attempt struct {
	*Dialer
	network string
	local   netip.AddrPort // the zero AddrPort means that the Net chooses
}

// tcp connects to remote.
func (a *attempt) tcp(ctx context.Context, remote netip.AddrPort) (*TCPConn, error) {
	stackroom.Take()
	n := a.Net
	if !remote.Addr().IsValid() {
		return nil, errMissingRemote
	}
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	remote = n.self(remote)
	if err := n.unreachable("connect", remote.Addr()); err != nil {
		return nil, err
	}
	if err := n.detached(remote.Addr()); err != nil {
		return nil, err
	}
	if _, _, err := n.family(a.network, remote.Addr()); err != nil {
		return nil, err
	}
	if err := several("connect", remote.Addr(), "TCP connects to one"); err != nil {
		return nil, err
	}
	if err := noGroup(a.local.Addr()); err != nil {
		return nil, err
	}
	if err := n.badLocal(a.local.Addr(), remote.Addr()); err != nil {
		return nil, err
	}
	var (
		ep    tcpip.Endpoint
		queue *waiter.Queue
	)
	entry, notify := waiter.NewChannelEntry(waiter.WritableEvents | hangUp)
	err := n.makeEndpoint(tcp.ProtocolNumber, protocolOf(remote.Addr()), func(e tcpip.Endpoint, q *waiter.Queue) error {
		ep, queue = e, q
		if a.local != (netip.AddrPort{}) {
			if err := ep.Bind(fullAddress(a.local)); err != nil {
				return systemError("bind", err)
			}
		}
		queue.EventRegister(&entry)
		err := ep.Connect(fullAddress(remote))
		if _, started := err.(*tcpip.ErrConnectStarted); err != nil && !started {
			return systemError("connect", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer queue.EventUnregister(&entry)
	select {
	case <-notify:
		if err := ep.LastError(); err != nil {
			ep.Close()
			if n.isClosed() {
				return nil, net.ErrClosed
			}
			return nil, systemError("connect", err)
		}
		return newTCPConn(n, a.network, ep, queue, keepAlives(a.KeepAlive, a.KeepAliveConfig)), nil
	case <-ctx.Done():
		err = contextError(ctx)
	case <-n.done:
		err = net.ErrClosed
	}
	ep.Close()
	return nil, err
}

func (a *attempt) udp(ctx context.Context, remote netip.AddrPort) (*UDPConn, error) {
	if !remote.Addr().IsValid() {
		return nil, errMissingRemote
	}
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	return a.Net.openUDP(a.network, a.local, a.Net.self(remote))
}

// one connects to remote over the network of a, TCP or UDP.
func (a *attempt) one(ctx context.Context, remote netip.AddrPort) (net.Conn, error) {
	if a.network[0] == 'u' {
		c, err := a.udp(ctx, remote)
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: a.network, Source: udpAddr(a.local), Addr: udpAddr(remote), Err: err}
		}
		return c, nil
	}
	c, err := a.tcp(ctx, remote)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: a.network, Source: tcpAddr(a.local), Addr: tcpAddr(remote), Err: err}
	}
	return c, nil
}

// broadcast is the address of all hosts of a network.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// self returns the address to. If the IP address in to is unspecified, self returns an address of the Net with the same port
// instead, because package net connects to the host itself in that case.
func (n *Net) self(to netip.AddrPort) netip.AddrPort {
	if to.Addr().IsUnspecified() {
		for _, own := range n.addrs {
			if own.Is4() == to.Addr().Is4() {
				return netip.AddrPortFrom(own, to.Port())
			}
		}
	}
	return to
}

func unmap(a netip.AddrPort) netip.AddrPort {
	if !a.Addr().IsValid() {
		return a
	}
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
