package udp

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"runtime"

	"github.com/seed-86b749af/wireguard"
)

// A Socket has several sockets per family so that several cores receive at the same time:
//
//	first: bound alone, so that a port in use is an error
//	others: bound beside it with SO_REUSEPORT; the first one gets that option only when it is bound
//	select: a filter gives each flow one of them (group_linux.go)
//
// A flow is the datagrams from one address and port. It stays on one socket, and so in order.

const (
	maxReceivers = 256 // per family

	// manyCores is the number of cores from which there are several receivers by default.
	manyCores = 4
)

// receivers returns how many sockets per family Listen is to open.
func (b *Bind) receivers() (int, error) {
	switch {
	case b.Receivers < 0 || b.Receivers > maxReceivers:
		return 0, fmt.Errorf("udp: Bind.Receivers is %d: want 1 to %d, or 0 to decide by the number of cores", b.Receivers, maxReceivers)
	case !hasGroups:
		return 1, nil
	case b.Receivers == 0:
		return receiversFor(runtime.GOMAXPROCS(0)), nil
	}
	return b.Receivers, nil
}

// receiversFor returns the default number of sockets per family. For small packets the kernel's half of receiving takes
// about as long as the device's half, so half of the cores receive.
func receiversFor(cores int) int {
	if cores < manyCores {
		return 1
	}
	return min(cores/2, maxReceivers)
}

// join opens the other sockets of the family f, whose first one is open.
func (s *Socket) join(f family) error {
	first := s.paths[f]
	if s.bind.count == 1 {
		return nil
	}
	was, err := first.socket().reuse(true)
	if err != nil {
		if s.bind.Receivers == 0 {
			return nil // the host does not have this option
		}
		return err
	}
	if was && s.bind.Receivers == 0 {
		return nil // Bind.Control shares the port, and the program chooses with which sockets
	}
	b := *s.bind
	b.beside = first
	for n := 1; n < s.bind.count; n++ {
		p, err := b.open(f, s.port)
		if err != nil {
			return err
		}
		s.others[f] = append(s.others[f], p)
	}
	if !was {
		first.socket().spread(len(s.others[f]) + 1) // if that fails, the kernel spreads by its own hash, over all sockets on the port
	}
	return nil
}

// all returns the paths of both families.
func (s *Socket) all() iter.Seq2[family, path] {
	return func(yield func(family, path) bool) {
		for f, p := range s.paths {
			if p != nil && !yield(family(f), p) {
				return
			}
			for _, p := range s.others[f] {
				if !yield(family(f), p) {
					return
				}
			}
		}
	}
}

// sender chooses the path of the family f that is to send a list of trains. first is the destination of the list's first
// train of that family. Goroutines that send to different places use different sockets, because each socket has counters that
// its senders share.
func (s *Socket) sender(f family, first netip.AddrPort) path {
	others := s.others[f]
	if len(others) == 0 {
		return s.paths[f]
	}
	a := first.Addr().As16()
	h := binary.LittleEndian.Uint64(a[:]) ^ binary.LittleEndian.Uint64(a[8:]) ^ uint64(first.Port())
	if i := h * 0x9e3779b97f4a7c15 >> 32 % uint64(len(others)+1); i > 0 {
		return others[i-1]
	}
	return s.paths[f]
}

// Receivers returns the receivers: those of IPv4, then those of IPv6, with one for each socket.
func (s *Socket) Receivers() []wireguard.Receiver {
	var rs []wireguard.Receiver
	for _, p := range s.all() {
		rs = append(rs, p)
	}
	return rs
}
