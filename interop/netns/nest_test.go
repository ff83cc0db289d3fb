//go:build linux

package netns

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// TestTunnelInTunnel makes a second tunnel whose endpoints are addresses inside the first tunnel of the same hosts. The MTU of
// the second tunnel is 80 bytes smaller, so that its messages fit into the packets of the first tunnel.
//
//	a: wg ══ wg ══ v0 ── v0 ══ wg ══ wg :b     newPair, and inside it a second pair with 10.1.0.0/24 and fd01::/64
func TestTunnelInTunnel(t *testing.T) {
	t.Parallel()
	for _, endpoint := range []netip.Addr{innerB4, innerB6} {
		t.Run(fmt.Sprint(endpoint), func(t *testing.T) {
			p := newPair(t)
			p.meet(outerB4)
			const port = defaultPort + 1
			q := pair{
				newWGAt(p.a.host, port, "10.1.0.1/24 fd01::1/64"),
				newWGAt(p.b.host, port, "10.1.0.2/24 fd01::2/64"),
			}
			q.setMTU(1420 - 80)
			q.a.peer(q.b, "allowed-ips 10.1.0.2/32,fd01::2/128 endpoint %v", netip.AddrPortFrom(endpoint, port))
			q.b.peer(q.a, "allowed-ips 10.1.0.1/32,fd01::1/128")
			q.a.ping(addr("10.1.0.2"), 10, "-s", "1312", "-M", "do")
			q.b.ping(addr("fd01::1"), 10, "-s", "1292", "-M", "do")
		})
	}
}

// TestLoopWithoutSession sets a peer's endpoint to an address that is routed into the interface itself. Such a peer cannot get a
// session: the initiations to it are packets that wait for this same session. One packet must not become several packets.
func TestLoopWithoutSession(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet(innerB4)
	p.a.noPing("the endpoint is inside the tunnel", innerB4)
	before := p.a.traffic().txPackets
	time.Sleep(time.Second)
	if n := p.a.traffic().txPackets - before; n > 4 {
		t.Errorf("the interface carried %d packets in a second in which nobody sent one, want at most 4", n)
	}
}

// TestLoopWithSession sets a peer's endpoint to an address that is routed into the interface itself, while the peer has a session.
// Then each message comes back to the interface as a packet that is larger than the packet inside it. If a message exceeds the MTU,
// it comes back as two fragments. The daemon must not encrypt and send such a packet again. The kernel's module never sends over a
// route that leads into its own interface.
func TestLoopWithSession(t *testing.T) {
	t.Parallel()
	notKernelLike(t, "each message comes back to the tunnel, grows, and is cut in two, without end")
	p := newPair(t)
	for _, c := range []struct{ outer, inner netip.Addr }{{outerB4, innerB4}, {outerB6, innerB6}} {
		p.meet(c.outer)
		p.a.ping(innerB4, 1)
		p.meet(c.inner)
		before := p.a.traffic().txPackets
		p.a.noPing("the endpoint is inside the tunnel", innerB4)
		p.a.noPing("the endpoint is inside the tunnel", innerB6, "-s", "1372")
		time.Sleep(200 * time.Millisecond)
		if n := p.a.traffic().txPackets - before; n > 10 {
			t.Errorf("the interface carried %d packets after two were sent, want at most 10", n)
		}
		p.meet(c.outer)
		p.a.ping(innerB4, 3)
	}
}
