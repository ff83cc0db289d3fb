package netstack

import (
	"net/netip"
	"sync"
	"syscall"
)

// places holds where a Net listens. Listeners use SO_REUSEADDR, so that a program can listen again on a port that connections
// still use. With SO_REUSEADDR, gVisor permits one listener on a single address and another one on all addresses. Linux
// refuses the second one, and so does places. The zero value is ready.
type places struct {
	sync.Mutex                    // held while a listener is made; taken before Net.life
	taken      map[uint16][]place // by port
}

// A place is what one listener listens on.
type place struct {
	netip.AddrPort      // an invalid Addr means all addresses
	ip4, ip6       bool // the families; both only for all addresses
}

// overlaps reports whether one connection could reach both p and q, which have the same port.
func (p place) overlaps(q place) bool {
	all := !p.Addr().IsValid() || !q.Addr().IsValid()
	return (p.ip4 && q.ip4 || p.ip6 && q.ip6) && (all || p.Addr() == q.Addr())
}

// take adds p. The places are locked.
func (ps *places) take(p place) error {
	for _, q := range ps.taken[p.Port()] {
		if p.overlaps(q) {
			where := "all addresses"
			if q.Addr().IsValid() {
				where = q.Addr().String()
			}
			return refused("bind", syscall.EADDRINUSE, "another listener has this port on "+where+"; close it, or use another port")
		}
	}
	if ps.taken == nil {
		ps.taken = make(map[uint16][]place)
	}
	ps.taken[p.Port()] = append(ps.taken[p.Port()], p)
	return nil
}

// free removes p. The places are locked.
func (ps *places) free(p place) {
	left := ps.taken[p.Port()]
	for i, q := range left {
		if q == p {
			left = append(left[:i], left[i+1:]...)
			break
		}
	}
	if ps.taken[p.Port()] = left; len(left) == 0 {
		delete(ps.taken, p.Port())
	}
}
