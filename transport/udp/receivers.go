package udp

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"runtime"

	"github.com/seed-86b749af/wireguard"
)

// A Socket can have several sockets per family, so that several cores receive at the same time:
//
//	first socket: it is bound alone, so that Listen fails if the port is in use
//	others: they are bound to the same port with SO_REUSEPORT; the first socket gets this option only after it is bound
//	selection: a filter in the kernel chooses the socket of each flow (group_linux.go)
//
// A flow consists of the datagrams from one address and port. All of them arrive at one socket, and so in order.

const (
	maxReceivers = 256 // maximum number of sockets per family

	// manyCores is the smallest number of cores with which a Socket has several receivers by default.
	manyCores = 4
)

// receivers returns how many sockets per family Listen opens.
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

// receiversFor returns the default number of sockets per family. If packets are small, the kernel needs about as much time as the
// device to process a received packet. So half of the cores receive, and the other half are left to the device.
func receiversFor(cores int) int {
	if cores < manyCores {
		return 1
	}
	return min(cores/2, maxReceivers)
}

// join opens the other sockets of the family f. The first one is already open.
func (s *Socket) join(f family) error {
	first := s.paths[f]
	if s.bind.count == 1 {
		return nil
	}
	was, err := first.socket().reuse(true)
	if err != nil {
		if s.bind.Receivers == 0 {
			return nil // the host does not have SO_REUSEPORT
		}
		return err
	}
	if was && s.bind.Receivers == 0 {
		return nil // Bind.Control has set SO_REUSEPORT, so the program itself decides which sockets share the port
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
		first.socket().spread(len(s.others[f]) + 1) // if this fails, the kernel spreads the flows over all sockets on the port
	}
	return nil
}

// all returns the paths of all sockets of both families.
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

// sender chooses the path of the family f that sends a list of trains. first is the destination of the list's first train of
// that family. Goroutines that send to different destinations mostly use different sockets, so that they seldom write to the
// counters of the same socket.
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

// Receivers returns one receiver for each socket of the system, first those for IPv4 and then those for IPv6.
func (s *Socket) Receivers() []wireguard.Receiver {
	var rs []wireguard.Receiver
	for _, p := range s.all() {
		rs = append(rs, p)
	}
	return rs
}
