//go:build linux

package netns

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// setMTU sets the MTU of both interfaces.
func (p pair) setMTU(mtu int) {
	p.a.t.Helper()
	for _, w := range []*wg{p.a, p.b} {
		w.run("ip link set %s mtu %d", w.name, mtu)
	}
}

// TestMTU sets the interfaces' MTU with "ip link". A packet as large as the MTU must pass in one piece, and a packet that is one
// byte larger must not. The cable's MTU is 1500, so a larger message is sent in fragments. This is possible because the outer
// packet does not have the flag "don't fragment". With the largest MTU of the test, the data message is the largest UDP datagram
// of the outer family.
//
//	a ══ v0 (1500) ── v0 (1500) ══ b     newPair
func TestMTU(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		outer netip.Addr
		mtu   []int
	}{
		{outerB4, []int{1420, 1280, 9000, 65507 - dataOverhead, 1420}},
		{outerB6, []int{1420, 1280, 9000, 65527 - dataOverhead, 1420}},
	} {
		t.Run(fmt.Sprint(c.outer), func(t *testing.T) {
			p := newPair(t)
			p.meet(c.outer)
			for _, mtu := range c.mtu {
				p.setMTU(mtu)
				testkit.Eventually(t, "both daemons know the new MTU", func() bool {
					_, err := p.a.tryPing(innerB4, time.Second/5, "-s", fmt.Sprint(mtu-28))
					return err == nil
				})
				p.a.ping(innerB4, 3, "-M", "do", "-s", fmt.Sprint(mtu-28))
				p.b.ping(innerA6, 3, "-M", "do", "-s", fmt.Sprint(mtu-48))
				p.a.fails("the packet is larger than the MTU", "ping -n -c 1 -W 0.2 -M do -s %d %v", mtu-27, innerB4)
				p.a.fails("the packet is larger than the MTU", "ping -n -c 1 -W 0.2 -M do -s %d %v", mtu-47, innerB6)
			}
		})
	}
}

// TestMTUBeyondDatagrams sets the MTU to 65535, which a TUN accepts. No datagram can carry so large a packet. The packet is lost,
// and the tunnel must still work.
func TestMTUBeyondDatagrams(t *testing.T) {
	t.Parallel()
	notKernelLike(t, "a packet of more than 65519 bytes from its TUN ends the daemon")
	p := newPair(t)
	p.meet(outerB4)
	p.setMTU(65535)
	p.a.ping(innerB4, 1)
	p.a.noPing("the message would be larger than a datagram", innerB4, "-s", "65507")
	p.a.ping(innerB4, 3, "-s", "65000")
}

// TestPadding checks that the daemon pads packets to a multiple of 16 bytes, but not beyond the MTU of the interface. The
// kernel's module also does not pad beyond the MTU of the packet's route. The daemon ignores that MTU, because a TUN does not
// report the route.
//
//	a ══ v0 ── v0 ══ b     newPair; b counts datagrams by their size
func TestPadding(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.b.nft(
		// nft's length includes the 8 bytes of the UDP header.
		fmt.Sprintf("add rule inet t in udp length %d counter comment padded", 8+sealed(100)),
		fmt.Sprintf("add rule inet t in udp length %d counter comment clamped", 8+dataOverhead+1305),
		fmt.Sprintf("add rule inet t in udp length %d counter comment route", 8+sealed(1299)),
	)
	p.meet(outerB4)
	p.a.ping(innerB4, 2, "-s", fmt.Sprint(100-28))
	p.setMTU(1305)
	p.a.ping(innerB4, 2, "-s", fmt.Sprint(1305-28))
	p.setMTU(1420)
	p.a.run("ip route add %v/32 dev %s mtu 1299", innerB4, p.a.name)
	p.a.ping(innerB4, 2, "-s", fmt.Sprint(1299-28), "-M", "want")
	for _, name := range []string{"padded", "clamped", "route"} {
		if got := p.b.hits(name); got != 2 {
			t.Errorf("%d datagrams match the rule %s, want 2", got, name)
		}
	}
}
