//go:build linux

package netns

import (
	"fmt"
	"net/netip"
	"testing"
)

// onBothFamilies runs a test for each outer family. It passes the outer address of b in that family, and the family's name in nft
// rules: ip or ip6.
func onBothFamilies(t *testing.T, test func(t *testing.T, outer netip.Addr, ip string)) {
	for ip, outer := range map[string]netip.Addr{"ip": outerB4, "ip6": outerB6} {
		t.Run(fmt.Sprint(outer), func(t *testing.T) { test(t, outer, ip) })
	}
}

// TestHandshakeClass checks that the outer headers of the handshake's messages carry the traffic class 0x88, which means DSCP AF41
// and not ECN-capable. Those of data messages must carry no DSCP.
//
//	a ══ v0 ── v0 ══ b     newPair; both hosts count the datagrams that arrive
func TestHandshakeClass(t *testing.T) {
	t.Parallel()
	notKernelLike(t, "it sets no DSCP")
	onBothFamilies(t, func(t *testing.T, outer netip.Addr, ip string) {
		p := newPair(t)
		p.b.nft("add rule inet t early udp length 156 " + ip + " dscp af41 " + ip + " ecn not-ect counter comment initiation")
		p.a.nft("add rule inet t early udp length 100 " + ip + " dscp af41 " + ip + " ecn not-ect counter comment response")
		p.b.nft("add rule inet t early udp length 136 " + ip + " dscp 0 counter comment data")
		p.meet(outer)
		p.a.ping(innerB4, 5, "-Q", "0xb8")
		if i, r, d := p.b.hits("initiation"), p.a.hits("response"), p.b.hits("data"); i != 1 || r != 1 || d != 5 {
			t.Errorf("%d initiations, %d responses and %d data messages have the expected traffic class, want 1, 1, 5", i, r, d)
		}
	})
}

// TestOuterMayBeFragmented checks that the outer packet does not have the flag "don't fragment" (DF), even if the inner packet
// has it.
func TestOuterMayBeFragmented(t *testing.T) {
	t.Parallel()
	notKernelLike(t, "it sends with DF")
	p := newPair(t)
	p.b.nft("add rule inet t early udp dport 51820 ip frag-off & 0x4000 != 0 counter comment df",
		"add rule inet t early udp dport 51820 counter comment total")
	p.meet(outerB4)
	p.a.ping(innerB4, 5, "-M", "do")
	if total, df := p.b.hits("total"), p.b.hits("df"); total != 6 || df != 0 {
		t.Errorf("%d datagrams, %d with DF; want 6, 0", total, df)
	}
}

// TestECN checks that ECN follows RFC 6040. The outer header carries the ECN mark of the inner header, except that CE becomes
// ECT(0). It does not carry the inner DSCP. If a router sets CE in the outer header, the receiver copies CE to the inner header
// only if the inner packet is ECN-capable.
//
//	a ══ v0 ── v0 ══ b     newPair; b sets CE in the datagrams that arrive, as a router would
func TestECN(t *testing.T) {
	t.Parallel()
	notKernelLike(t, "it does not carry ECN marks in either direction")
	onBothFamilies(t, func(t *testing.T, outer netip.Addr, ip string) {
		p := newPair(t)
		p.meet(outer)
		p.a.ping(innerB4, 1)
		p.b.nft(
			"add rule inet t early udp length 136 "+ip+" dscp 0 "+ip+" ecn not-ect counter comment none",
			"add rule inet t early udp length 136 "+ip+" dscp 0 "+ip+" ecn ect0 counter comment ect0",
			"add rule inet t early udp length 136 "+ip+" dscp 0 "+ip+" ecn ect1 counter comment ect1",
			"add rule inet t early udp length 136 "+ip+" ecn set ce",
			fmt.Sprintf("add rule inet t in iifname %s ip ecn ce counter comment inner4", p.b.name),
			fmt.Sprintf("add rule inet t in iifname %s ip6 ecn ce counter comment inner6", p.b.name),
			fmt.Sprintf("add rule inet t in iifname %s ip ecn not-ect counter comment plain4", p.b.name),
		)
		for tos, n := range map[string]int{"0xb8": 1, "0xb9": 2, "0xba": 3, "0xbb": 4} { // DSCP EF with each ECN mark
			p.a.ping(innerB4, n, "-Q", tos)
			p.a.ping(innerB6, n, "-Q", tos, "-s", "40") // 88 bytes, which padding makes as long as the IPv4 packets
		}
		for name, want := range map[string]int{
			"none": 2, "ect0": 2 * (3 + 4), "ect1": 2 * 2, // counted by the outer header
			"inner4": 2 + 3 + 4, "inner6": 2 + 3 + 4, "plain4": 1,
		} {
			if got := p.b.hits(name); got != want {
				t.Errorf("the rule %s counted %d packets, want %d", name, got, want)
			}
		}
	})
}
