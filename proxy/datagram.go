package proxy

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
)

// datagrams is a socket that names addresses without allocations, as *net.UDPConn and *netstack.UDPConn do.
type datagrams interface {
	net.PacketConn
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
}

// A datagramReader is the part of datagrams that reads. A dialed socket has it too.
type datagramReader interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
}

// datagramsOf adds the methods that c lacks.
func datagramsOf(c net.PacketConn) datagrams {
	if d, ok := c.(datagrams); ok {
		return d
	}
	return anyPacketConn{c}
}

type anyPacketConn struct{ net.PacketConn }

func (c anyPacketConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, from, err := c.ReadFrom(b)
	return n, addrPort(from), err
}

func (c anyPacketConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	return c.WriteTo(b, net.UDPAddrFromAddrPort(to))
}

// maxDatagram is the longest payload of UDP over IPv4, and one byte.
const maxDatagram = 65535 - 28 + 1

var datagramBuffers = sync.Pool{New: func() any { b := make([]byte, maxDatagram); return &b }}

// each calls take with each datagram of c until c is closed. take must not keep b.
func each(c datagramReader, take func(b []byte, from netip.AddrPort)) error {
	wait := waiter(c)
	for failures := 0; ; {
		if err := wait(); err != nil && final(err) {
			return err
		}
		b := datagramBuffers.Get().(*[]byte)
		n, from, err := c.ReadFromUDPAddrPort(*b)
		if err == nil {
			failures = 0
			take((*b)[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		}
		datagramBuffers.Put(b)
		// A socket reports ICMP errors as errors of its next read. It then goes on.
		if failures++; err != nil && (final(err) || failures > maxFailures) {
			return err
		}
	}
}

// maxFailures is how many reads in a row may fail. Each ICMP error fails one.
const maxFailures = 1000

// final reports whether no datagram can follow.
func final(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)
}

// waiter returns a function that waits until c has something to read, so that no buffer is held meanwhile. If c has no such
// method, the function returns at once.
func waiter(c datagramReader) func() error {
	var of any = c
	switch c := c.(type) {
	case anyPacketConn:
		of = c.PacketConn
	case connected:
		of = c.Conn
	}
	if u, ok := of.(*net.UDPConn); ok {
		return hostWaiter(u)
	}
	if w, ok := of.(interface{ WaitReadable() error }); ok {
		return w.WaitReadable
	}
	return noWait
}

func noWait() error { return nil }
