package udp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

// A source is kept when routes change and the one to the peer still leads out by the same interface, and let go once when it
// leads by another; the source that the peer reaches then is kept again.
func TestSourceFollowsTheRoute(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	b := Bind{}
	s, err := b.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := s.(*Socket).paths[ipv4].(*linuxPath)
	r := p.routes
	if r == nil {
		t.Skip("this host lets no namespace use netlink")
	}
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	to := loopback(ipv4)
	check := func(why string, kept bool) {
		t.Helper()
		e := wireguard.EndpointOf(netip.AddrPortFrom(to, 9))
		e.Source = to
		if r.check(&e, p.raw); e.Source.IsValid() != kept {
			t.Errorf("%s: the source is kept: %v, want %v", why, !kept, kept)
		}
		if got := r.via[to].ifindex; got != uint32(lo.Index) {
			t.Errorf("%s: the route leads by interface %d, want %d", why, got, lo.Index)
		}
	}
	check("the peer is new", true)
	before := r.changes.Load()
	changeAddress(t, unix.RTM_NEWADDR, netip.MustParseAddr("198.51.100.1")) // brings a route
	for start := time.Now(); r.changes.Load() == before; time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatal("a new route is not noticed")
		}
	}
	check("another route changed", true)
	for range 3 {
		r.via[to] = way{uint32(lo.Index) + 1, r.changes.Load() - 1} // as if it had been another interface before the change
		check("the route leads by another interface now", false)
		check("the peer reached the new source", true)
	}
	if got := outgoing(r.ask, netip.MustParseAddr("203.0.113.1"), 0); got != 0 {
		t.Errorf("an address without a route is reached by interface %d", got)
	}
	for range 2 {
		s.Close()
		check("the socket is closed", true)
	}
}
