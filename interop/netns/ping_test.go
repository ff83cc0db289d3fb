//go:build linux

package netns

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/seed-86b749af/wireguard"
)

// TestInsideAndOutside checks that the tunnel carries IPv4 and IPv6 over both outer families, in both directions. The first
// packet must wait for the handshake and not be lost. One endpoint is a link-local address, whose zone the daemon must keep.
//
//	a ══ v0 ── v0 ══ b     newPair
func TestInsideAndOutside(t *testing.T) {
	t.Parallel()
	for _, outer := range []netip.Addr{outerB4, outerB6, netip.MustParseAddr("fe80::2%v0")} {
		t.Run(fmt.Sprint(outer), func(t *testing.T) {
			p := newPair(t)
			p.a.addresses("v0", "fe80::1/64")
			p.b.addresses("v0", "fe80::2/64")
			p.meet(outer)
			p.a.ping(innerB4, 20)
			p.a.ping(innerB6, 20)
			p.b.ping(innerA4, 20)
			p.b.ping(innerA6, 20)
		})
	}
}

// TestEndpointChangesFamily checks that no packet is lost when an endpoint changes between IPv4 and IPv6.
func TestEndpointChangesFamily(t *testing.T) {
	t.Parallel()
	notKernelLike(t, "the first packets after the change go to the first four bytes of the new address: "+
		"it fills in an address from its pool before it sets the address's length")
	p := newPair(t)
	for _, outer := range []netip.Addr{outerB4, outerB6, outerB4, outerB6} {
		p.meet(outer)
		p.a.ping(innerB4, 20)
		p.b.ping(innerA6, 20)
	}
}

// TestPresharedKey checks that two peers with different preshared keys get no session, and that they get one with the same key.
func TestPresharedKey(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	psk := wireguard.NewPresharedKey().Text()
	p.a.feed(psk, "wg set %s peer %v preshared-key /dev/stdin", p.a.name, p.b.key.Public())
	p.meet(outerB4)
	p.a.noPing("only one side has the preshared key", innerB4)
	p.a.peer(p.b, "remove") // otherwise the next attempt waits for five seconds
	p.introduce()
	p.a.feed(psk, "wg set %s peer %v preshared-key /dev/stdin", p.a.name, p.b.key.Public())
	p.b.feed(psk, "wg set %s peer %v preshared-key /dev/stdin", p.b.name, p.a.key.Public())
	p.meet(outerB4)
	p.a.ping(innerB4, 3)
}
