//go:build linux

package netns

import (
	"testing"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// TestDefaultRouteByMark sets a default route through the tunnel as wg-quick does. The daemon's datagrams carry a mark, and use
// the main table. Packets without the mark use the main table too, except its default route. If no other route matches, they use
// a second table, whose default route is the tunnel. When the test removes the mark, the daemon's own datagrams are routed into
// the tunnel and do not reach b. When the test sets the mark again, they reach b again.
//
//	a ══ v0 192.0.2.1 ── lan 192.0.2.254 router wan 198.51.100.1 ── v0 198.51.100.2 ══ b, lo 203.0.113.1
//	     2001:db8::1        2001:db8::fe            2001:db8:1::1      2001:db8:1::2      2001:db8:cafe::1
func TestDefaultRouteByMark(t *testing.T) {
	t.Parallel()
	a, r, b := newHost(t), newHost(t), newHost(t)
	a.cable("v0", outerA, r, "lan", "192.0.2.254/24 2001:db8::fe/64")
	r.cable("wan", "198.51.100.1/24 2001:db8:1::1/64", b, "v0", "198.51.100.2/24 2001:db8:1::2/64")
	b.addresses("lo", "203.0.113.1/32 2001:db8:cafe::1/128")
	r.sysctl("net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1")
	a.run("ip route add default via 192.0.2.254")
	a.run("ip -6 route add default via 2001:db8::fe")
	b.run("ip route add default via 198.51.100.1")
	b.run("ip -6 route add default via 2001:db8:1::1")

	p := pair{newWG(a, innerA), newWG(b, innerB)}
	p.introduce()
	p.a.peer(p.b, "allowed-ips 0.0.0.0/0,::/0")
	p.a.set("fwmark 51820")
	a.sysctl("net/ipv4/conf/all/src_valid_mark=1")
	for _, ip := range []string{"ip -4", "ip -6"} {
		a.run("%s route add default dev %s table 51820", ip, p.a.name)
		a.run("%s rule add not fwmark 51820 table 51820", ip)
		a.run("%s rule add table main suppress_prefixlength 0", ip)
	}
	for _, outer := range []string{"198.51.100.2", "2001:db8:1::2"} {
		t.Run(outer, func(t *testing.T) {
			if outer != "198.51.100.2" {
				notKernelLike(t, "an endpoint that changes its family loses packets; see TestEndpointChangesFamily")
			}
			p.meet(addr(outer))
			p.a.ping(addr("203.0.113.1"), 3)
			p.a.ping(addr("2001:db8:cafe::1"), 3)
			p.a.ping(addr("192.0.2.254"), 1) // goes over the cable, because the main table has a route to it
		})
	}
	notKernelLike(t, "without the mark its packets go round in the tunnel without end; see TestLoopWithSession")
	p.a.set("fwmark 0")
	before := p.a.traffic().txPackets
	p.a.noPing("the daemon's packets have no mark and are routed into the tunnel", addr("203.0.113.1"))
	if n := p.a.traffic().txPackets - before; n > 10 {
		t.Errorf("the interface carried %d packets after one was sent, want at most 10", n)
	}
	p.a.set("fwmark 51820")
	testkit.Eventually(t, "the tunnel works again with the mark", func() bool { return p.a.reaches(addr("203.0.113.1")) })
}
