package wireguard_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// These tests are about the IP packets inside the tunnel: their ECN bits, lengths and source addresses, and the ICMP errors with
// which a device answers packets that it cannot deliver to a peer.

// sumOK reports whether the Internet checksum over the concatenation of bs is correct.
func sumOK(bs ...[]byte) bool { return packet.Sum(bytes.Join(bs, nil), 0) == 0xffff }

// withECN returns a copy of the packet p with the ECN bits ecn and a correct header checksum.
func withECN(p []byte, ecn byte) []byte {
	p = bytes.Clone(p)
	if p[0]>>4 == 6 {
		p[1] = p[1]&^0x30 | ecn<<4
		return p
	}
	p[1] = p[1]&^3 | ecn
	binary.BigEndian.PutUint16(p[10:], 0)
	binary.BigEndian.PutUint16(p[10:], ^packet.Sum(p[:20], 0))
	return p
}

func (n *node) packet6(o *node, payload string) []byte {
	return pipe.UDPPacket(netip.AddrPortFrom(n.addr6, 7), netip.AddrPortFrom(o.addr6, 7), []byte(payload))
}

// The sender copies the ECN bits of the inner packet to the outer header, and the receiver combines the ECN bits of both, as
// Linux does (RFC 6040). The test covers each pair of an inner and an outer codepoint.
func TestECNBothWays(t *testing.T) {
	const notECT, ect1, ect0, ce = 0, 1, 2, 3
	names := [4]string{"not-ECT", "ECT(1)", "ECT(0)", "CE"}
	sent := [4]byte{notECT: notECT, ect1: ect1, ect0: ect0, ce: ect0} // the outer codepoint that is sent for each inner one
	delivered := [4][4]byte{                                          // first index: outer, second index: inner codepoint
		notECT: {notECT: notECT, ect1: ect1, ect0: ect0, ce: ce},
		ect1:   {notECT: notECT, ect1: ect1, ect0: ect1, ce: ce},
		ect0:   {notECT: notECT, ect1: ect1, ect0: ect0, ce: ce},
		ce:     {notECT: notECT, ect1: ce, ect0: ce, ce: ce},
	}
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		outer := byte(0)
		w.net.Filter(func(p *pipe.Packet) pipe.Verdict { p.TOS = outer; return pipe.Pass })
		mismatches := uint64(0)
		for _, plain := range [][]byte{a.packet(b, "payload"), a.packet6(b, "payload")} {
			for outer = range byte(4) {
				for inner := range byte(4) {
					name := fmt.Sprintf("IPv%d, %s inside, %s outside", plain[0]>>4, names[inner], names[outer])
					a.inject(withECN(plain, inner))
					if m := w.last("a data"); m.tos != sent[inner] {
						w.Fatalf("%s: sent with TOS %#x, want %#x and DSCP 0", name, m.tos, sent[inner])
					}
					got, want := b.tun.TryReceive(), withECN(plain, delivered[outer][inner])
					if !bytes.Equal(got, want) {
						w.Fatalf("%s: b delivered\n%x, want\n%x", name, got, want)
					}
					if outer == ce && inner == notECT {
						mismatches++
					}
					if n := b.Status().ECNMismatches; n != mismatches {
						w.Fatalf("%s: b counted %d ECN mismatches, want %d", name, n, mismatches)
					}
				}
			}
		}
		if mismatches != 2 {
			w.Fatalf("the test covered %d ECN mismatches, want 2: one for IPv4 and one for IPv6", mismatches)
		}
	})
}

// The device does not copy the DSCP of an inner packet to the outer header, and does not change the DSCP inside. Handshake
// messages have the TOS 0x88, and keepalives have the TOS 0.
func TestDSCPStaysInside(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		p := withECN(a.packet(b, "expedited"), 1)
		p[1] |= 46 << 2
		binary.BigEndian.PutUint16(p[10:], 0)
		binary.BigEndian.PutUint16(p[10:], ^uint16(46<<2)) // a wrong checksum, which must arrive unchanged
		a.inject(p)
		for kind, tos := range map[string]uint8{"a initiation": 0x88, "b response": 0x88, "a data": 1} {
			if m := w.last(kind); m.tos != tos {
				w.Fatalf("the message (%s) has TOS %#x, want %#x", kind, m.tos, tos)
			}
		}
		if got := b.tun.TryReceive(); !bytes.Equal(got, p) {
			w.Fatalf("b delivered\n%x, want\n%x", got, p)
		}
		w.advance(10 * time.Second)
		if m := w.last("b keepalive"); m.tos != 0 {
			w.Fatalf("a keepalive has TOS %#x, want 0", m.tos)
		}
		wireguard.ForceLoad(b.Device, true)
		a.restart()
		a.send(b, "x")
		if m := w.last("b cookie reply"); m.tos != 0x88 {
			w.Fatalf("a cookie reply has TOS %#x, want 0x88", m.tos)
		}
	})
}

// wantUnreachable asserts that n delivered exactly one packet to its tunnel, an ICMP error about the packet p.
func (n *node) wantUnreachable(p []byte, why string) {
	n.w.Helper()
	n.w.settle()
	r := n.tun.TryReceive()
	if r == nil {
		n.w.Fatalf("the device delivered no ICMP error: %s", why)
	}
	if more := n.tun.TryReceive(); more != nil {
		n.w.Fatalf("the device delivered a second ICMP error: %s: %x", why, more)
	}
	header, addresses, kind, code := 20, p[12:20], byte(3), byte(1) // type destination unreachable, code host (RFC 792)
	got := [][]byte{r[16:20], r[12:16]}                             // r's destination and source: p's source and destination
	sums := [][]byte{r[20:]}
	if p[0]>>4 == 6 {
		header, addresses, kind, code = 40, p[8:40], 1, 3 // type destination unreachable, code address (RFC 4443)
		got = [][]byte{r[24:40], r[8:24]}
		sums = [][]byte{r[8:40], {byte((len(r) - 40) >> 8), byte(len(r) - 40), 0, 58}, r[40:]}
	} else if !sumOK(r[:20]) {
		n.w.Fatalf("%s: the IPv4 header of the ICMP error has a wrong checksum", why)
	}
	if !bytes.Equal(bytes.Join(got, nil), addresses) {
		n.w.Fatalf("%s: the ICMP error has source %x and destination %x, want the packet's addresses, swapped", why, got[1], got[0])
	}
	if r[header] != kind || r[header+1] != code || !sumOK(sums...) {
		n.w.Fatalf("%s: the error has ICMP type %d and code %d, want %d and %d, and a correct checksum", why, r[header], r[header+1], kind, code)
	}
	if !bytes.HasPrefix(p, r[header+8:]) || len(r) == header+8 {
		n.w.Fatalf("%s: the ICMP error quotes %x, want a beginning of %x that is not empty", why, r[header+8:], p)
	}
}

// If a packet has no peer, or its peer has no endpoint, the device answers with an ICMP error, counts the drop, and begins no
// handshake.
func TestUnreachableEndToEnd(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.node("a"), w.nodeDown("b")
		a.knows(b, func(c *wireguard.PeerConfig) { c.Endpoint = wireguard.Endpoint{} })
		to, to6 := netip.MustParseAddrPort("10.99.0.1:9"), netip.MustParseAddrPort("[fd00:99::1]:9")
		from, from6 := netip.AddrPortFrom(a.addr, 7), netip.AddrPortFrom(a.addr6, 7)
		big := make([]byte, 1300)
		for name, p := range map[string][]byte{
			"no route":              pipe.UDPPacket(from, to, []byte("x")),
			"no route, large":       pipe.UDPPacket(from, to, big),
			"no route, IPv6":        pipe.UDPPacket(from6, to6, []byte("x")),
			"no route, IPv6, large": pipe.UDPPacket(from6, to6, big),
			"no endpoint":           a.packet(b, "x"),
			"no endpoint, IPv6":     a.packet6(b, "x"),
		} {
			a.inject(p)
			a.wantUnreachable(p, name)
		}
		a.wantDrops(wireguard.DropNoRoute, 4, "the device counts the packets that have no peer")
		a.wantDrops(wireguard.DropNoEndpoint, 2, "the device counts the packets whose peer has no endpoint")
		if n := a.status(b).Drops[wireguard.DropNoEndpoint]; n != 2 {
			w.Fatalf("the peer's status counts %d drops for a missing endpoint, want 2", n)
		}
		if s := a.status(b); s.Staged != 0 || s.NextReason != "" {
			w.Fatalf("the peer's status is %+v, want no staged packets and no deadline", s)
		}
		w.wantIdle(10*time.Minute, "a packet that cannot be sent causes no handshake")

		// The packets of one burst have different source addresses. Each sender gets an ICMP error.
		one := pipe.UDPPacket(netip.MustParseAddrPort("10.7.0.1:1"), netip.AddrPortFrom(b.addr, 7), nil)
		two := pipe.UDPPacket(netip.MustParseAddrPort("10.7.0.2:1"), netip.AddrPortFrom(b.addr, 7), nil)
		a.inject(one, two)
		for _, sender := range []byte{1, 2} {
			if r := a.tun.TryReceive(); r == nil || r[19] != sender {
				w.Fatalf("the device delivered no ICMP error to 10.7.0.%d, but %x", sender, r)
			}
		}
	})
}

// If RFC 1122 forbids an ICMP error about a packet, the device sends none, but it counts the drop.
func TestUnreachableExceptionsEndToEnd(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.node("a")
		edit := func(p []byte, change func(p []byte)) []byte { change(p); return p }
		from, to := netip.AddrPortFrom(a.addr, 7), netip.MustParseAddrPort("10.99.0.1:9")
		from6, to6 := netip.AddrPortFrom(a.addr6, 7), netip.MustParseAddrPort("[fd00:99::1]:9")
		v4 := func() []byte { return pipe.UDPPacket(from, to, make([]byte, 40)) }
		v6 := func() []byte { return pipe.UDPPacket(from6, to6, make([]byte, 40)) }
		silent, answered := map[string][]byte{}, map[string][]byte{}
		for _, kind := range []byte{3, 4, 5, 11, 12} {
			silent[fmt.Sprint("ICMP error ", kind)] = edit(v4(), func(p []byte) { p[9], p[20] = 1, kind })
		}
		for _, kind := range []byte{1, 2, 3, 4, 127} {
			silent[fmt.Sprint("ICMPv6 error ", kind)] = edit(v6(), func(p []byte) { p[6], p[40] = 58, kind })
		}
		silent["later fragment"] = edit(v4(), func(p []byte) { p[7] = 5 })
		silent["last fragment"] = edit(v4(), func(p []byte) { p[6] = 0x1f })
		silent["later fragment, IPv6"] = edit(v6(), func(p []byte) { p[6], p[40], p[43] = 44, 17, 8 })
		silent["ICMPv6 error in a first fragment"] = edit(v6(), func(p []byte) { p[6], p[40], p[42], p[43], p[48] = 44, 58, 0, 1, 1 })
		for _, dst := range []string{"224.0.0.1", "239.1.2.3", "255.255.255.255", "127.0.0.1", "0.0.0.0"} {
			silent["to "+dst] = pipe.UDPPacket(from, netip.AddrPortFrom(netip.MustParseAddr(dst), 9), nil)
		}
		for _, dst := range []string{"ff02::1", "ff0e::1", "::", "::1"} {
			silent["to "+dst] = pipe.UDPPacket(from6, netip.AddrPortFrom(netip.MustParseAddr(dst), 9), nil)
		}
		for _, src := range []string{"0.0.0.0", "224.0.0.1", "255.255.255.255", "127.0.0.1"} {
			silent["from "+src] = pipe.UDPPacket(netip.AddrPortFrom(netip.MustParseAddr(src), 9), to, nil)
		}
		for _, src := range []string{"::", "ff02::1", "::1"} {
			silent["from "+src] = pipe.UDPPacket(netip.AddrPortFrom(netip.MustParseAddr(src), 9), to6, nil)
		}
		answered["echo request"] = edit(v4(), func(p []byte) { p[9], p[20] = 1, 8 })
		answered["ICMPv6 echo request"] = edit(v6(), func(p []byte) { p[6], p[40] = 58, 128 })
		answered["first fragment"] = edit(v4(), func(p []byte) { p[6] = 0x20 })
		answered["first fragment, IPv6"] = edit(v6(), func(p []byte) { p[6], p[40], p[42], p[43] = 44, 17, 0, 1 })
		answered["link-local"] = pipe.UDPPacket(netip.MustParseAddrPort("169.254.1.1:1"), to, nil)

		for name, p := range silent {
			a.inject(p)
			if r := a.tun.TryReceive(); r != nil {
				w.Fatalf("%s: the device delivered the ICMP error %x, want none", name, r)
			}
		}
		for name, p := range answered {
			w.advance(time.Second)
			a.inject(p)
			a.wantUnreachable(p, name)
		}
		a.wantDrops(wireguard.DropNoRoute, uint64(len(silent)+len(answered)), "the device counts every dropped packet")
		w.want("", "a packet without a peer causes no message")
	})
}

// Like a router, the device limits the rate of the ICMP errors to each sender: 100 per second, in bursts of at most 20. It counts
// every dropped packet, even if no ICMP error is sent about it.
func TestUnreachableIsRateLimited(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.node("a")
		p := pipe.UDPPacket(netip.AddrPortFrom(a.addr, 7), netip.MustParseAddrPort("10.99.0.1:9"), nil)
		answers := func(burst int) (n int) {
			for range burst {
				a.inject(p)
			}
			for a.tun.TryReceive() != nil {
				n++
			}
			return n
		}
		for _, step := range []struct {
			after       time.Duration
			burst, want int
		}{{0, 100, 20}, {10*time.Millisecond - 1, 5, 0}, {1, 5, 1}, {100 * time.Millisecond, 50, 10}, {time.Hour, 100, 20}} {
			w.advance(step.after)
			if n := answers(step.burst); n != step.want {
				w.Fatalf("at %v: %d of %d packets got an ICMP error, want %d", w.now(), n, step.burst, step.want)
			}
		}
		a.wantDrops(wireguard.DropNoRoute, 260, "packets without an ICMP error are counted too")
	})
}

// One sender floods the device with packets that have no peer, and with packets that are larger than their peer's MTU. That uses
// up only this sender's own limit of ICMP errors: another IPv4 sender and an IPv6 sender still get both kinds of errors.
func TestUnreachableIsFair(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.node("a"), w.node("b")
		a.knows(b, func(c *wireguard.PeerConfig) { c.MTU = 1300 })
		greedy, other := netip.MustParseAddrPort("10.7.0.1:1"), netip.MustParseAddrPort("10.7.0.2:1")
		none, big := netip.MustParseAddrPort("10.99.0.1:9"), make([]byte, 1350)
		for range 1000 {
			whole := pipe.UDPPacket(greedy, netip.AddrPortFrom(b.addr, 7), big)
			whole[6] |= 0x40 // the flag "do not fragment"
			a.inject(pipe.UDPPacket(greedy, none, nil), whole)
		}
		n := 0
		for r := a.tun.TryReceive(); r != nil; r = a.tun.TryReceive() {
			if n++; r[19] != 1 {
				w.Fatalf("the device delivered an ICMP error to %v, want errors only to 10.7.0.1", r[16:20])
			}
		}
		if n != 20 {
			w.Fatalf("the greedy sender got %d ICMP errors, want 20", n)
		}
		p := pipe.UDPPacket(other, none, nil)
		a.inject(p)
		a.wantUnreachable(p, "another sender")
		p = pipe.UDPPacket(netip.MustParseAddrPort("[fd00:7::1]:1"), netip.MustParseAddrPort("[fd00:99::1]:9"), nil)
		a.inject(p)
		a.wantUnreachable(p, "a sender with IPv6")
		p = pipe.UDPPacket(other, netip.AddrPortFrom(b.addr, 7), big)
		p[6] |= 0x40
		a.inject(p)
		if r := a.tun.TryReceive(); r == nil || r[20] != 3 || r[21] != 4 || r[19] != 2 {
			w.Fatalf("the device delivered %x, want an ICMP error that tells the other sender that its packet is too big", r)
		}
	})
}

// A device drops a packet if the length in its IP header is larger than the packet, or if its IP version is unknown, even though
// the data message that contains the packet is authentic.
func TestInnerLength(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		length := func(p []byte, n uint16) []byte {
			if p[0]>>4 == 6 {
				binary.BigEndian.PutUint16(p[4:], n)
			} else {
				binary.BigEndian.PutUint16(p[2:], n)
			}
			return p
		}
		four := func() []byte { return a.packet(b, "0123456789") } // 38 bytes, padded to 48
		six := func() []byte { return a.packet6(b, "0123456789") } // 58 bytes, padded to 64
		refused := uint64(0)
		for _, test := range []struct {
			name string
			p    []byte
			want int // the size in bytes of the delivered packet; 0 means that the packet is dropped
		}{
			{"the correct length", four(), 38},
			{"a length that includes the padding, which the device cannot notice", length(four(), 48), 48},
			{"a length one byte beyond the padding", length(four(), 49), 0},
			{"a length of 65,535 bytes", length(four(), 65535), 0},
			{"a length shorter than the header", length(four(), 19), 0},
			{"a length of 0", length(four(), 0), 0},
			{"the length of the header alone", length(four(), 20), 20},
			{"IPv6, the correct length", six(), 58},
			{"IPv6, a length that includes the padding", length(six(), 24), 64},
			{"IPv6, a length one byte beyond the padding", length(six(), 25), 0},
			{"IPv6, a length that overflows 16 bits together with the header", length(six(), 65535), 0},
			{"IPv6, a length that is 2^16 together with the header", length(six(), 65536-40), 0},
			{"IPv6, the length of the header alone", length(six(), 0), 40},
		} {
			a.inject(test.p)
			got := b.tun.TryReceive()
			if len(got) != test.want {
				w.Fatalf("%s: %d bytes arrived, want %d", test.name, len(got), test.want)
			}
			if test.want == 0 {
				refused++
			}
			b.wantDrops(wireguard.DropInnerMalformed, refused, test.name)
		}
		a.send(b, "after all")
		b.wantArrived("the session still works", "after all")
	})
}

// A device finds the peers for source and destination addresses in the same table, by the longest prefix. If the prefixes of two
// peers are nested, a peer may send only from addresses whose longest matching prefix belongs to this peer.
func TestNestedPrefixesOfTwoPeers(t *testing.T) {
	inWorld(t, func(w *world) {
		hub, wide, narrow := w.node("hub"), w.node("wide"), w.node("narrow")
		prefix := func(s ...string) func(c *wireguard.PeerConfig) {
			return func(c *wireguard.PeerConfig) {
				c.AllowedIPs = nil
				for _, p := range s {
					c.AllowedIPs = append(c.AllowedIPs, netip.MustParsePrefix(p))
				}
			}
		}
		for _, n := range []*node{wide, narrow} {
			n.knows(hub, prefix("0.0.0.0/0", "::/0"))
		}
		hub.knows(wide, prefix("10.50.0.0/16", "fd50::/16"))
		hub.knows(narrow, prefix("10.50.7.0/24", "fd50:7::/32"))
		w.connect(wide, hub)
		w.connect(narrow, hub)
		from := func(n *node, src, dst string, arrives bool, why string) {
			w.Helper()
			before := hub.Status().Drops[wireguard.DropSourceNotAllowed]
			n.inject(pipe.UDPPacket(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), []byte(why)))
			var want []string
			if arrives {
				want = []string{why}
			} else {
				before++
			}
			hub.wantArrived(why, want...)
			hub.wantDrops(wireguard.DropSourceNotAllowed, before, why)
		}
		to := func(n *node, dst string) {
			w.Helper()
			a := netip.MustParseAddrPort(dst)
			src := hub.addr
			if a.Addr().Is6() {
				src = hub.addr6
			}
			hub.inject(pipe.UDPPacket(netip.AddrPortFrom(src, 1), a, []byte(dst)))
			n.wantArrived("the longest prefix wins", dst)
		}
		from(wide, "10.50.1.1:1", "10.0.0.1:1", true, "only wide has the source address")
		from(wide, "10.50.7.1:1", "10.0.0.1:1", false, "wide has the source address, but narrow has the longer prefix")
		from(narrow, "10.50.7.1:1", "10.0.0.1:1", true, "narrow has the source address")
		from(narrow, "10.50.8.1:1", "10.0.0.1:1", false, "only wide has the source address, not narrow")
		from(wide, "[fd50:1::1]:1", "[fd00::1]:1", true, "only wide has the source address, IPv6")
		from(wide, "[fd50:7::1]:1", "[fd00::1]:1", false, "narrow has the longer prefix, IPv6")
		from(narrow, "[fd50:7::1]:1", "[fd00::1]:1", true, "narrow has the source address, IPv6")
		from(narrow, "[fd50:8::1]:1", "[fd00::1]:1", false, "only wide has the source address, not narrow, IPv6")
		from(narrow, "203.0.113.1:1", "10.0.0.1:1", false, "no peer has the source address")
		to(wide, "10.50.1.1:1")
		to(narrow, "10.50.7.1:1")
		to(wide, "[fd50:1::1]:1")
		to(narrow, "[fd50:7::1]:1")

		// When narrow is removed, wide does not get back the prefix that narrow took from it.
		hub.knows(narrow, prefix("10.50.0.0/16")) // the prefix moves from wide to narrow, and narrow loses its other prefixes
		from(narrow, "10.50.1.1:1", "10.0.0.1:1", true, "the prefix belongs to the peer that was configured last")
		from(wide, "10.50.1.1:1", "10.0.0.1:1", false, "narrow has taken the prefix from wide")
		hub.RemovePeer(narrow.pub())
		from(wide, "10.50.1.1:1", "10.0.0.1:1", false, "removing narrow does not give the prefix back to wide")
	})
}

// If the Tunnel's queue is full, the device drops and counts the packets that do not fit. The goroutines that receive from the
// socket do not wait for the Tunnel (row 1 of the list decisions in coverage_test.go).
func TestFullSinkDrops(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		for range 1100 / 50 {
			a.send(b, numbered(0, 50)...)
		}
		b.wantDrops(wireguard.DropSinkFull, 1100-1024, "b's tunnel holds 1024 packets")
		b.send(a, "meanwhile")
		a.wantArrived("packets in the other direction still arrive", "meanwhile")
		if n := len(b.arrived()); n != 1024 {
			w.Fatalf("b delivered %d packets, want the 1024 that fit", n)
		}
		a.send(b, "room again")
		b.wantArrived("b's tunnel has room again", "room again")
	})
}
