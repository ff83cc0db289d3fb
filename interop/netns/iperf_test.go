//go:build linux

package netns

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/netlab"
)

// iperf runs an iperf3 client on h and a server on g, whose address is to.
func (h *host) iperf(g *host, to netip.Addr, options string) netlab.Report {
	h.t.Helper()
	r, err := h.Iperf(g.Host, to, options)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// TestBulk sends bulk traffic over both outer and both inner families: TCP with one connection in each direction, TCP with four
// connections, and UDP. iperf3 stops counting when its sender has finished, so its byte count omits packets that are still in
// flight. At 10 Mbit/s, which any machine reaches, most UDP packets must arrive.
//
//	a ══ v0 ── v0 ══ b     newPair
func TestBulk(t *testing.T) {
	for _, outer := range []netip.Addr{outerB4, outerB6} {
		t.Run(fmt.Sprint(outer), func(t *testing.T) {
			p := newPair(t)
			p.meet(outer)
			p.bulk()
		})
	}
}

// TestBulkInFragments sends bulk traffic through a tunnel with an MTU of 9000 over a cable with an MTU of 1500. The message of a
// large packet is larger than the path's MTU, so the daemon sends it alone, in fragments, and not together with other messages in
// one call (UDP_SEGMENT).
func TestBulkInFragments(t *testing.T) {
	notKernelLike(t, "it sends messages together although they are larger than the path's MTU, so that each send fails with EMSGSIZE and TCP stalls")
	for _, outer := range []netip.Addr{outerB4, outerB6} {
		t.Run(fmt.Sprint(outer), func(t *testing.T) {
			p := newPair(t)
			p.meet(outer)
			p.setMTU(9000)
			p.bulk()
		})
	}
}

// bulk runs TCP and UDP traffic over both inner families. See TestBulk.
func (p pair) bulk() {
	t := p.a.t
	t.Helper()
	const size = 24 << 20
	for _, inner := range []netip.Addr{innerB4, innerB6} {
		for _, options := range []string{"", "-R", "-P 4"} {
			r := p.a.iperf(p.b.host, inner, fmt.Sprintf("-n %d %s", size, options))
			if r.Received.Bytes < size/4 {
				t.Errorf("%v %s: %.0f of %d bytes arrived, want at least a quarter", inner, options, r.Received.Bytes, size)
			}
		}
		r := p.a.iperf(p.b.host, inner, "-u -b 10M -l 1200 -n 512K")
		if r.Packets < 400 || r.Lost > r.Packets/2 {
			t.Errorf("%v: at 10 Mbit/s, %.0f of %.0f packets were lost, want at least 400 packets and at most half of them lost", inner, r.Lost, r.Packets)
		}
	}
}

// TestLossyCable checks that TCP and the handshake succeed over a cable that loses 2 % of the datagrams in each direction, and
// over one that loses 10 %.
func TestLossyCable(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.meet(outerB4)
	for _, percent := range []int{2, 10} {
		for _, w := range []*wg{p.a, p.b} {
			w.run("nft flush ruleset")
			w.nft(fmt.Sprintf("add rule inet t in udp dport 51820 numgen random mod 100 < %d drop", percent))
		}
		if r := p.a.iperf(p.b.host, innerB4, "-n 1M"); r.Received.Bytes < 50<<10 {
			t.Errorf("%d %% loss: %.0f bytes of 1 MiB arrived before the sender had finished, want at least 50 KiB", percent, r.Received.Bytes)
		}
	}
}

// TestFlood sends UDP packets faster than the tunnel can carry them. The excess packets are lost, and the tunnel must still work.
func TestFlood(t *testing.T) {
	p := newPair(t)
	p.meet(outerB4)
	for _, size := range []int{64, 1392} {
		r := p.a.iperf(p.b.host, innerB4, fmt.Sprintf("-u -b 0 -l %d -t 1", size))
		if r.Packets < 1000 || r.Lost == r.Packets {
			t.Errorf("with a payload of %d bytes, iperf3 sent %.0f packets, of which %.0f were lost; want at least 1000, and not all of them lost", size, r.Packets, r.Lost)
		}
		p.a.ping(innerB4, 3)
		p.b.ping(innerA6, 3)
	}
}
