package proxy

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
)

// A datagramReader has the read method of sockets.Datagrams. The type connected has this method too.
type datagramReader interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
}

// maxDatagram is one byte more than the longest payload of UDP over IPv4.
const maxDatagram = 65535 - 28 + 1

var datagramBuffers = sync.Pool{New: func() any { b := make([]byte, maxDatagram); return &b }}

// maxFailures is how many reads in a row may fail. Each ICMP error makes one read fail.
const maxFailures = 1000

// each calls take with each datagram of c, until c is closed or more than maxFailures reads in a row fail. take must not keep b.
// wait returns when c has a datagram to read.
func each(c datagramReader, wait func() error, take func(b []byte, from netip.AddrPort)) error {
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
		if err == nil {
			continue
		}
		// A socket reports an ICMP error once, as the error of a read. Later reads succeed.
		if failures++; final(err) || failures > maxFailures {
			return err
		}
	}
}

// final reports whether err means that no datagram can follow.
func final(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)
}
