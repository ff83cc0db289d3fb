// Package sockets has functions for servers that relay connections and datagrams. These functions do what the interfaces of package
// net cannot: read and write datagrams without allocations, wait without a buffer, and close with a reset.
package sockets

import (
	"net"
	"net/netip"
)

// Datagrams is a socket whose methods take and return addresses without allocations, as those of *net.UDPConn and
// *netstack.UDPConn do.
type Datagrams interface {
	net.PacketConn
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
}

// DatagramsOf returns c as Datagrams, and adds the methods that c lacks. An added method returns the zero netip.AddrPort for an
// address that is not a *net.UDPAddr.
func DatagramsOf(c net.PacketConn) Datagrams {
	if d, ok := c.(Datagrams); ok {
		return d
	}
	return anyPacketConn{c}
}

type anyPacketConn struct{ net.PacketConn }

func (c anyPacketConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, from, err := c.ReadFrom(b)
	if u, ok := from.(*net.UDPAddr); ok {
		return n, u.AddrPort(), err
	}
	return n, netip.AddrPort{}, err
}

func (c anyPacketConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	return c.WriteTo(b, net.UDPAddrFromAddrPort(to))
}

// Waiter returns a function that waits until the socket c has a datagram to read, so that the reader of c needs no buffer while it
// waits. This works for a *net.UDPConn on Unix, and for a socket with the method WaitReadable, such as *netstack.UDPConn. For other
// sockets the function returns at once.
func Waiter(c any) func() error {
	if a, ok := c.(anyPacketConn); ok {
		c = a.PacketConn
	}
	switch c := c.(type) {
	case *net.UDPConn:
		return hostWaiter(c)
	case interface{ WaitReadable() error }:
		return c.WaitReadable
	}
	return noWait
}

func noWait() error { return nil }

// Abort closes a connection with a reset if it can, so that the other side does not mistake the close for the regular end of the
// data.
func Abort(c interface{ Close() error }) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close()
}
