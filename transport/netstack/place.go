package netstack

import (
	"net/netip"
	"sync"
	"syscall"
)

// places records the addresses and ports on which the listeners of a Net listen. Listeners use SO_REUSEADDR, so that a program
// can listen again on a port that connections still use. With SO_REUSEADDR, gVisor permits one listener on a single address and
// another one on all addresses, with the same port. Linux refuses the second listener, and so does places. The zero value is
// ready.
type places struct {
	sync.Mutex                    // held while a listener is made; locked before Net.life
	taken      map[uint16][]place // by port
}

// A place is the address, the port and the families of one listener.
type place struct {
	netip.AddrPort      // an invalid Addr means all addresses
	ip4, ip6       bool // the families; both are true only for a listener on all addresses
}

// overlaps reports whether one connection could be for the listeners of both p and q. p and q must have the same port.
func (p place) overlaps(q place) bool {
	all := !p.Addr().IsValid() || !q.Addr().IsValid()
	return (p.ip4 && q.ip4 || p.ip6 && q.ip6) && (all || p.Addr() == q.Addr())
}

// take adds p, or returns an error if p overlaps another place. The caller has locked ps.
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

// free removes p. The caller has locked ps.
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
