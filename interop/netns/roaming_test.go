//go:build linux

package netns

import (
	"fmt"
	"net/netip"
	"testing"
)

// TestRoaming changes first the port and then the address of b, over both families. When the next packet of b arrives, a must
// have the new endpoint, and must send to it from then on.
//
//	a ══ v0 ── v0 ══ b     newPair; b moves
func TestRoaming(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ at, from, other string }{
		{"192.0.2.2", "192.0.2.2/24", "192.0.2.22/24"},
		{"2001:db8::2", "2001:db8::2/64", "2001:db8::22/64"},
	} {
		t.Run(c.at, func(t *testing.T) {
			p := newPair(t)
			p.meet(netip.MustParseAddr(c.at))
			p.a.ping(innerB4, 1)

			p.b.set("listen-port 9999")
			p.b.ping(innerA4, 3)
			p.a.wantEndpoint(p.b, netip.AddrPortFrom(netip.MustParseAddr(c.at), 9999).String(), "b changed its port")
			p.a.ping(innerB6, 3)

			// Without this setting, the kernel would remove the new address together with the old one.
			p.b.sysctl("net/ipv4/conf/v0/promote_secondaries=1")
			p.b.addresses("v0", c.other)
			p.b.run("ip address del %s dev v0", c.from)
			p.b.ping(innerA6, 3)
			moved := netip.MustParsePrefix(c.other).Addr()
			p.a.wantEndpoint(p.b, netip.AddrPortFrom(moved, 9999).String(), "b changed its address")
			p.a.ping(innerB4, 3)
			if got := p.b.status(p.a).endpoint; got == "(none)" {
				t.Errorf("b has lost the endpoint of a: %s", got)
			}
		})
	}
}

// TestBothRoam changes the ports of a and b at once, so that neither can reach the other. When the test sets the new endpoint of
// b in a's configuration, both must reach each other again.
func TestBothRoam(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet(outerB4)
	p.a.ping(innerB4, 1)
	p.a.set("listen-port 1001")
	p.b.set("listen-port 1002")
	p.a.noPing("b has moved to another port", innerB4)
	p.b.noPing("a has moved to another port", innerA4)
	p.a.peer(p.b, "endpoint %v:1002", outerB4)
	p.a.ping(innerB4, 3)
	p.b.wantEndpoint(p.a, fmt.Sprintf("%v:1001", outerA4), "a has sent from this port")
	p.b.ping(innerA4, 3)
}

// TestForgeryMovesNothing checks that a forged datagram does not change an endpoint.
func TestForgeryMovesNothing(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet(outerB4)
	p.a.ping(innerB4, 1)
	p.a.addresses("v0", "192.0.2.11/24")
	var forged [][]byte
	for _, size := range []int{initiationSize, responseSize, 64, dataOverhead, 128} {
		datagram := make([]byte, size)
		datagram[0] = map[int]byte{initiationSize: 1, responseSize: 2, 64: 3}[size]
		if datagram[0] == 0 {
			datagram[0] = 4
		}
		forged = append(forged, datagram)
	}
	p.a.sendUDP("192.0.2.11:7777", netip.AddrPortFrom(outerB4, defaultPort).String(), forged...)
	p.b.ping(innerA4, 3)
	p.b.wantEndpoint(p.a, fmt.Sprintf("%v:%d", outerA4, defaultPort), "no authentic message came from another address")
}
