//go:build linux

package netns

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// TestUnreachable checks that the daemon answers a packet with an ICMP error if no peer has its destination address, or if that
// peer has no endpoint. The sender is a program on the daemon's host, or on a host behind it. The daemon differs from the
// kernel's module in two points:
//
//   - The error's source is the packet's destination. The module uses an address of the host, because its error does not arrive
//     through an interface. Through a TUN, a packet from one of the host's own addresses is martian, and the kernel drops it.
//
//   - If the sender is on the daemon's host, the module makes the sender's system call fail (ENOKEY, EDESTADDRREQ). With a TUN,
//     the sender learns of the failure only from the ICMP error.
//
//     c v0 172.16.0.2, fd02::2 ── lan 172.16.0.1, fd02::1 :a ══ v0 ── v0 ══ b
func TestUnreachable(t *testing.T) {
	t.Parallel()
	notKernelLike(t, "it sends no ICMP errors")
	p := newPair(t)
	c := newHost(t)
	c.cable("v0", "172.16.0.2/24 fd02::2/64", p.a.host, "lan", "172.16.0.1/24 fd02::1/64")
	c.run("ip route add default via 172.16.0.1")
	c.run("ip -6 route add default via fd02::1")
	p.a.sysctl("net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1")
	p.a.set("peer %v allowed-ips 10.0.0.4/32,fd00::4/128", wireguard.NewPrivateKey().Public())
	for _, from := range []*host{p.a.host, c} {
		for _, q := range []struct{ why, to, want string }{
			{"no peer has the address", "10.0.0.5", "From 10.0.0.5 icmp_seq=1 Destination Host Unreachable"},
			{"no peer has the address", "fd00::5", "From fd00::5 icmp_seq=1 Destination unreachable: Address unreachable"},
			{"the peer has no endpoint", "10.0.0.4", "From 10.0.0.4 icmp_seq=1 Destination Host Unreachable"},
			{"the peer has no endpoint", "fd00::4", "From fd00::4 icmp_seq=1 Destination unreachable: Address unreachable"},
		} {
			if out := from.noPing(q.why, addr(q.to)); !strings.Contains(out, q.want) {
				t.Errorf("%s to %s (%s): want %q, got\n%s", from.Name, q.to, q.why, q.want, out)
			}
		}
	}
}

// TestUnreachableIsLimited checks that the daemon limits the number of ICMP errors: for a flood of packets, it sends far fewer
// errors than packets.
func TestUnreachableIsLimited(t *testing.T) {
	t.Parallel()
	notKernelLike(t, "it sends no ICMP errors")
	p := newPair(t)
	p.a.nft("add rule inet t in icmp type destination-unreachable counter comment errors")
	err := p.a.Do(func() error {
		c, err := net.ListenPacket("udp4", "10.0.0.1:0")
		if err != nil {
			return err
		}
		defer c.Close()
		for range 2000 {
			// The write fails if an ICMP error has arrived. Ignore that.
			c.WriteTo([]byte("flood"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.5:9")))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "an ICMP error arrives", func() bool { return p.a.hits("errors") > 0 })
	testkit.Eventually(t, "no further ICMP errors arrive", func() bool {
		before := p.a.hits("errors")
		time.Sleep(50 * time.Millisecond)
		return p.a.hits("errors") == before
	})
	if n, packets := p.a.hits("errors"), p.a.traffic().txPackets; packets < 500 || int64(n) > packets/2 {
		t.Errorf("%d ICMP errors arrived for %d packets, want at least 500 packets and at most half as many errors", n, packets)
	}
}
