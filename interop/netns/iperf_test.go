//go:build linux

package netns

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/netlab"
)

// iperf runs iperf3 from h to a server on g.
func (h *host) iperf(g *host, to netip.Addr, options string) netlab.Report {
	h.t.Helper()
	r, err := h.Iperf(g.Host, to, options)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// Bulk traffic uses TCP with one and four connections, in both directions, and UDP. It covers both outer and both inner families.
// iperf3 stops counting when its sender has finished, so the figure omits packets still in flight. At a rate that any host
// reaches, most UDP packets arrive.
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

// Bulk traffic also works with an MTU of 9000 over a cable with 1500. The message of a large packet does not fit the path, so it
// leaves as fragments and not as a train of datagrams.
func TestBulkInFragments(t *testing.T) {
	notKernelLike(t, "its trains are larger than the path's MTU allows and fail with EMSGSIZE for ever: TCP stands still")
	for _, outer := range []netip.Addr{outerB4, outerB6} {
		t.Run(fmt.Sprint(outer), func(t *testing.T) {
			p := newPair(t)
			p.meet(outer)
			p.setMTU(9000)
			p.bulk()
		})
	}
}

// bulk runs traffic of each kind.
func (p pair) bulk() {
	t := p.a.t
	t.Helper()
	const size = 24 << 20
	for _, inner := range []netip.Addr{innerB4, innerB6} {
		for _, options := range []string{"", "-R", "-P 4"} {
			r := p.a.iperf(p.b.host, inner, fmt.Sprintf("-n %d %s", size, options))
			if r.Received.Bytes < size/4 {
				t.Errorf("%v %s: %.0f bytes arrived of %d", inner, options, r.Received.Bytes, size)
			}
		}
		r := p.a.iperf(p.b.host, inner, "-u -b 10M -l 1200 -n 512K")
		if r.Packets < 400 || r.Lost > r.Packets/2 {
			t.Errorf("%v: %.0f of %.0f packets lost at 10 Mbit/s", inner, r.Lost, r.Packets)
		}
	}
}

// TCP and the handshake succeed over a cable that loses 2 % of the datagrams in each direction, and over one that loses every
// tenth.
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
			t.Errorf("%d %% loss: %.0f bytes arrived of a mebibyte before the sender was through", percent, r.Received.Bytes)
		}
	}
}

// UDP at full speed is faster than the tunnel. The excess packets are lost, and the tunnel still works.
func TestFlood(t *testing.T) {
	p := newPair(t)
	p.meet(outerB4)
	for _, size := range []int{64, 1392} {
		r := p.a.iperf(p.b.host, innerB4, fmt.Sprintf("-u -b 0 -l %d -t 1", size))
		if r.Packets < 1000 || r.Lost == r.Packets {
			t.Errorf("%d bytes: %.0f packets, of which %.0f lost", size, r.Packets, r.Lost)
		}
		p.a.ping(innerB4, 3)
		p.b.ping(innerA6, 3)
	}
}
