//go:build linux

package netns

import (
	"fmt"
	"testing"

	"github.com/seed-86b749af/wireguard"
)

// TestSourceFilter checks that the daemon accepts a packet from a peer only if it would send packets for the packet's source
// address to the same peer. The peer with the longest prefix that contains the address is the one to which the daemon sends. The
// daemon learns a peer's new endpoint from a refused packet too, because the message that carries the packet is authentic.
//
//	a ══ v0 ── v0 ══ b     newPair; a also has a peer c, which does not exist
func TestSourceFilter(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	c := wireguard.NewPrivateKey().Public()
	p.a.peer(p.b, "allowed-ips 10.0.0.0/24,fd00::/64")
	p.meet(outerB4)
	p.a.ping(innerB4, 1)
	p.b.ping(innerA4, 1)
	p.b.ping(innerA6, 1)

	p.a.set("peer %v allowed-ips %v/32,%v/128", c, innerB4, innerB6)
	p.b.set("listen-port 9997")
	p.b.noPing("b's address belongs to another peer", innerA4)
	p.b.noPing("b's address belongs to another peer", innerA6)
	p.a.wantEndpoint(p.b, fmt.Sprintf("%v:9997", outerB4), "the refused packet is authentic, so it shows where b is")
	p.a.noPing("the more specific prefix has no endpoint", innerB4)

	p.a.set("peer %v remove", c)
	p.b.ping(innerA4, 1)
	p.b.ping(innerA6, 1)
	p.a.ping(innerB4, 1)
}

// TestPrefixMoves checks that a prefix belongs to only one peer: the peer to which it was assigned last.
func TestPrefixMoves(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	c := wireguard.NewPrivateKey().Public()
	p.meet(outerB4)
	p.a.ping(innerB4, 1)
	p.a.set("peer %v allowed-ips %v/32", c, innerB4)
	if got, want := p.a.status(p.b).allowed, innerB6.String()+"/128"; got != want {
		t.Errorf("b's allowed IPs are %s, want %s, because the IPv4 prefix belongs to c now", got, want)
	}
	p.a.noPing("the address belongs to c", innerB4)
	p.a.ping(innerB6, 1)
	p.a.peer(p.b, "allowed-ips %v/32,%v/128", innerB4, innerB6)
	p.a.ping(innerB4, 1)
}

// TestNoPeerForDestination routes packets for two foreign addresses to the interface. They must not arrive while no peer has their
// prefix, and must arrive when b's allowed IPs are 0.0.0.0/0 and ::/0.
func TestNoPeerForDestination(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet(outerB4)
	p.b.addresses("lo", "203.0.113.1/32 2001:db8:cafe::1/128")
	p.a.run("ip route add 203.0.113.0/24 dev %s", p.a.name)
	p.a.run("ip route add 2001:db8:cafe::/48 dev %s", p.a.name)
	far4, far6 := addr("203.0.113.1"), addr("2001:db8:cafe::1")
	p.a.noPing("no peer has the address", far4)
	p.a.noPing("no peer has the address", far6)
	p.a.peer(p.b, "allowed-ips 0.0.0.0/0,::/0")
	p.a.ping(far4, 2)
	p.a.ping(far6, 2)
}
