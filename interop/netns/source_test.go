//go:build linux

package netns

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// at returns the endpoint of a daemon that listens on defaultPort of the address a.
func at(a netip.Addr) string { return netip.AddrPortFrom(a, defaultPort).String() }

// TestReplyFromWhereItWasReached checks that the daemon sends from the address to which the peer sent. This holds even if the route
// would choose another source address, or if the address belongs to another interface. So the endpoint that the peer has for the
// daemon does not change.
//
//	a ══ v0 ── v0 ══ b     newPair; a has two more addresses on v0, and one of each family on lo
func TestReplyFromWhereItWasReached(t *testing.T) {
	t.Parallel()
	notKernelLike(t, "when it splits datagrams that UDP GRO has joined, it drops the address to which they were sent")
	for _, list := range [][]string{
		{"192.0.2.1", "192.0.2.11", "203.0.113.1"},
		{"2001:db8::1", "2001:db8::11", "2001:db8:cafe::1"},
	} {
		t.Run(list[0], func(t *testing.T) {
			p := newPair(t)
			p.a.addresses("v0", "192.0.2.11/24 2001:db8::11/64")
			p.a.addresses("lo", "203.0.113.1/32 2001:db8:cafe::1/128")
			p.b.run("ip route add 203.0.113.1/32 dev v0")
			p.b.run("ip route add 2001:db8:cafe::1/128 via 2001:db8::1")
			for _, reached := range append(list, list[0]) {
				p.b.peer(p.a, "endpoint %s", at(addr(reached)))
				p.b.ping(innerA4, 3)
				p.b.wantEndpoint(p.a, at(addr(reached)), "b reaches a at this address")
				p.b.ping(innerA6, 3)
			}
		})
	}
}

// TestSourceGone checks that the daemon stops using a source address that the host no longer has. The next packet must be sent
// from another address and not be lost.
//
//	a ══ v0 ── v0 ══ b     newPair; a's addresses change
func TestSourceGone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ endpoint, gone, kept string }{
		{"192.0.2.2", "192.0.2.1/24", "192.0.2.10/24"},
		{"2001:db8::2", "2001:db8::1/64", "2001:db8::10/64"},
	} {
		t.Run(c.endpoint, func(t *testing.T) {
			p := newPair(t)
			p.meet(addr(c.endpoint))
			p.a.ping(innerB4, 3)
			p.a.sysctl("net/ipv4/conf/v0/promote_secondaries=1")
			p.a.addresses("v0", c.kept)
			p.a.run("ip address del %s dev v0", c.gone)
			p.a.ping(innerB4, 3)
			p.b.wantEndpoint(p.a, at(netip.MustParsePrefix(c.kept).Addr()), "the other address is gone")
			p.b.ping(innerA6, 3)
		})
	}
}

// TestBetterRoute adds a better route to the peer through another interface. The daemon must then use the source address of that
// route.
//
//	a ══ v0 10.9.0.1 ── v0 10.9.0.2 ══ b
//	  ══ v1 10.9.0.3 ── v1 10.9.0.4 ══
func TestBetterRoute(t *testing.T) {
	t.Parallel()
	a, b := newHost(t), newHost(t)
	a.cable("v0", "10.9.0.1/24", b, "v0", "10.9.0.2/24")
	a.cable("v1", "10.9.0.3/24", b, "v1", "10.9.0.4/24")
	for _, h := range []*host{a, b} {
		h.sysctl("net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/v0/rp_filter=0", "net/ipv4/conf/v1/rp_filter=0")
	}
	for _, v := range []string{"v0", "v1"} {
		a.run("ip route flush dev %s", v)
	}
	a.run("ip route add 10.9.0.0/24 dev v0 src 10.9.0.1 metric 2")
	p := pair{newWG(a, innerA), newWG(b, innerB)}
	p.introduce()
	p.meet(addr("10.9.0.2"))
	p.a.ping(innerB4, 3)
	p.b.wantEndpoint(p.a, at(addr("10.9.0.1")), "the only route uses v0")
	a.run("ip route add 10.9.0.0/24 dev v1 src 10.9.0.3 metric 1")
	testkit.Eventually(t, fmt.Sprintf("a sends over the better route, so b has the endpoint %s", at(addr("10.9.0.3"))), func() bool {
		p.a.ping(innerB4, 3)
		return p.b.status(p.a).endpoint == at(addr("10.9.0.3"))
	})
	p.b.ping(innerA4, 3)
}
