package wireguard

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

// ipv4 and ipv6 are packets of n bytes whose headers say that they have length bytes.
func ipv4(n, length int) []byte {
	p := packet4(max(n, ipv4Header), here, netip.MustParseAddr("10.9.8.7"))
	binary.BigEndian.PutUint16(p[2:], uint16(length))
	return p[:n:n]
}

func ipv6(n, length int) []byte {
	p := packet6(max(n, ipv6Header), here6, netip.MustParseAddr("fd00::987"))
	binary.BigEndian.PutUint16(p[4:], uint16(length-ipv6Header))
	return p[:n:n]
}

func version(v byte, p []byte) []byte {
	p[0] = v<<4 | p[0]&15
	return p
}

func TestUnpad(t *testing.T) {
	for _, c := range []struct {
		name string
		p    []byte
		want int // length without padding; 0: refused
	}{
		{"nothing", nil, 0},
		{"one byte", []byte{0x45}, 0},
		{"IPv4, exact", ipv4(100, 100), 100},
		{"IPv4, padded", ipv4(112, 100), 100},
		{"IPv4, a header and no more", ipv4(20, 20), 20},
		{"IPv4, header cut", ipv4(19, 19), 0},
		{"IPv4, longer than it is by one", ipv4(100, 101), 0},
		{"IPv4, longest", ipv4(100, 65535), 0},
		{"IPv4, longest and whole", ipv4(65535, 65535), 65535},
		{"IPv4, shorter than a header", ipv4(100, 19), 0},
		{"IPv4, length zero", ipv4(100, 0), 0},
		{"IPv6, exact", ipv6(100, 100), 100},
		{"IPv6, padded", ipv6(112, 100), 100},
		{"IPv6, a header and no more", ipv6(40, 40), 40},
		{"IPv6, header cut", ipv6(39, 40), 0},
		{"IPv6, longer than it is by one", ipv6(100, 101), 0},
		{"IPv6, payload of 65535: 40 more than 16 bits hold", ipv6(100, 65535+40), 0},
		{"IPv6, payload of 65496: 65536 in all", ipv6(100, 65536), 0},
		{"IPv6, payload of 65535 and whole", ipv6(65535+40, 65535+40), 65535 + 40},
		{"IPv6, payload of 65535 in 65535 bytes", ipv6(65535, 65535+40), 0},
		{"version 0", version(0, ipv4(100, 100)), 0},
		{"version 5", version(5, ipv4(100, 100)), 0},
		{"version 7", version(7, ipv6(100, 100)), 0},
		{"version 15", version(15, ipv6(100, 100)), 0},
		{"IPv6 that says IPv4", version(4, ipv6(100, 100)), 0}, // its length is at another place
	} {
		packet, src, ok := unpad(c.p)
		if ok != (c.want != 0) || len(packet) != c.want {
			t.Errorf("%s: %d bytes, ok %v, want %d", c.name, len(packet), ok, c.want)
			continue
		}
		if !ok {
			continue
		}
		if cap(packet) != len(packet) || &packet[0] != &c.p[0] {
			t.Errorf("%s: the packet is not in place, or reaches beyond its length", c.name)
		}
		if want := map[byte]netip.Addr{4: here, 6: here6}[c.p[0]>>4]; src != want {
			t.Errorf("%s: it comes from %v, want %v", c.name, src, want)
		}
	}
}

// A packet that carries a data message by UDP says of which session; a later fragment and any other packet do not.
func TestCarriedSession(t *testing.T) {
	const index = 0x01020304
	message := append(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, typeData), index), make([]byte, 24)...)
	datagram := append(make([]byte, 8), message...)
	packet4 := func(header, protocol, fragment int) []byte {
		p := append(make([]byte, header), datagram...)
		p[0], p[9] = byte(4<<4|header/4), byte(protocol)
		binary.BigEndian.PutUint16(p[6:], uint16(fragment))
		return p
	}
	packet6 := func(next int, extension ...byte) []byte {
		p := slices.Concat(make([]byte, 40), extension, datagram)
		p[0], p[6] = 6<<4, byte(next)
		return p
	}
	const moreFragments = 0x2000
	for _, c := range []struct {
		name string
		p    []byte
		ok   bool
	}{
		{"nothing", nil, false},
		{"IPv4", packet4(20, 17, 0), true},
		{"IPv4 with options", packet4(60, 17, 0), true},
		{"IPv4, first fragment", packet4(20, 17, moreFragments), true},
		{"IPv4, later fragment", packet4(20, 17, moreFragments|1), false},
		{"IPv4, TCP", packet4(20, 6, 0), false},
		{"IPv4, as long as the message's header", packet4(20, 17, 0)[:44], true},
		{"IPv4, cut in the message's header", packet4(20, 17, 0)[:43], false},
		{"IPv4, cut behind its options", packet4(60, 17, 0)[:60], false},
		{"IPv6", packet6(17), true},
		{"IPv6, first fragment", packet6(44, 17, 0, 0, 1, 0, 0, 0, 0), true},
		{"IPv6, later fragment", packet6(44, 17, 0, 0, 9, 0, 0, 0, 0), false},
		{"IPv6, first fragment of TCP", packet6(44, 6, 0, 0, 1, 0, 0, 0, 0), false},
		{"IPv6, first fragment, cut", packet6(44, 17, 0, 0, 1, 0, 0, 0, 0)[:71], false},
		{"IPv6, TCP", packet6(6), false},
		{"IPv6, cut", packet6(17)[:63], false},
		{"version 5", version(5, packet4(20, 17, 0)), false},
	} {
		if got, ok := carriedSession(c.p); ok != c.ok || ok && got != index {
			t.Errorf("%s: %#x, %v; want %v", c.name, got, ok, c.ok)
		}
	}
	initiation := packet4(20, 17, 0)
	initiation[28] = 1
	if _, ok := carriedSession(initiation); ok {
		t.Error("an initiation is taken for a data message")
	}
}

func TestDestination(t *testing.T) {
	for _, c := range []struct {
		name string
		p    []byte
		want string
	}{
		{"nothing", nil, ""},
		{"IPv4", ipv4(20, 20), "10.9.8.7"},
		{"IPv4, cut", ipv4(19, 20), ""},
		{"IPv6", ipv6(40, 40), "fd00::987"},
		{"IPv6, cut", ipv6(39, 40), ""},
		{"IPv6, as long as an IPv4 header", ipv6(20, 40), ""},
		{"version 0", version(0, ipv4(100, 100)), ""},
		{"version 5", version(5, ipv6(100, 100)), ""},
	} {
		dst, _, ok := destination(c.p)
		if ok != (c.want != "") || ok && dst != netip.MustParseAddr(c.want) {
			t.Errorf("%s: %v, %v, want %q", c.name, dst, ok, c.want)
		}
	}
	for tos := range 256 {
		p := ipv4(20, 20)
		p[1] = byte(tos)
		if _, ecn, _ := destination(p); ecn != byte(tos&3) {
			t.Fatalf("IPv4 with TOS %#x has ECN %d", tos, ecn)
		}
		p = ipv6(40, 40)
		binary.BigEndian.PutUint16(p, 6<<12|uint16(tos)<<4|0xf)
		if _, ecn, _ := destination(p); ecn != byte(tos&3) {
			t.Fatalf("IPv6 with traffic class %#x has ECN %d", tos, ecn)
		}
	}
}

func TestOuterTOS(t *testing.T) {
	for ecn, want := range []uint8{ecnNotECT: ecnNotECT, ecnECT1: ecnECT1, ecnECT0: ecnECT0, ecnCE: ecnECT0} {
		if got := outerTOS(uint8(ecn)); got != want {
			t.Errorf("ECN %d inside is %d outside, want %d", ecn, got, want)
		}
	}
}

// ecnTable is RFC 6040, figure 4, but that CE outside on not-ECT inside is delivered and counted: what comes out, by the
// outer and the inner bits.
var ecnTable = [4][4]uint8{
	ecnNotECT: {ecnNotECT: ecnNotECT, ecnECT1: ecnECT1, ecnECT0: ecnECT0, ecnCE: ecnCE},
	ecnECT0:   {ecnNotECT: ecnNotECT, ecnECT1: ecnECT1, ecnECT0: ecnECT0, ecnCE: ecnCE},
	ecnECT1:   {ecnNotECT: ecnNotECT, ecnECT1: ecnECT1, ecnECT0: ecnECT1, ecnCE: ecnCE},
	ecnCE:     {ecnNotECT: ecnNotECT, ecnECT1: ecnCE, ecnECT0: ecnCE, ecnCE: ecnCE},
}

// slowChecksum is the checksum of an IPv4 header of 20 bytes, from nothing.
func slowChecksum(p []byte) uint16 {
	sum := 0
	for i := 0; i < 20; i += 2 {
		if i != 10 {
			sum += int(p[i])*256 + int(p[i+1])
		}
	}
	return uint16(65535 - (sum%65535+65535)%65535) // ones' complement arithmetic is modulo 65535
}

func TestDecapsulateECN(t *testing.T) {
	for outer := range 256 { // DSCP outside does not matter
		for inner := range 256 { // DSCP inside stays
			for _, id := range []uint16{0, 1, 0x7fff, 0xfffe, 0xffff, 0xbaff} { // other sums, carries among them
				p := ipv4(60, 60)
				p[1] = byte(inner)
				binary.BigEndian.PutUint16(p[4:], id)
				binary.BigEndian.PutUint16(p[10:], slowChecksum(p))
				want := bytes.Clone(p)
				want[1] = byte(inner)&^3 | ecnTable[outer&3][inner&3]
				binary.BigEndian.PutUint16(want[10:], slowChecksum(want))
				mismatch := decapsulateECN(uint8(outer), p)
				if !bytes.Equal(p, want) {
					t.Fatalf("outer %#x, inner %#x: IPv4 header\n%x, want\n%x", outer, inner, p[:20], want[:20])
				}
				if wantMismatch := outer&3 == ecnCE && inner&3 == ecnNotECT; mismatch != wantMismatch {
					t.Fatalf("outer %#x, inner %#x: counted %v", outer, inner, mismatch)
				}
			}
			p := ipv6(60, 60)
			binary.BigEndian.PutUint16(p, 6<<12|uint16(inner)<<4|0xa)
			want := bytes.Clone(p)
			binary.BigEndian.PutUint16(want, 6<<12|uint16(inner&^3|int(ecnTable[outer&3][inner&3]))<<4|0xa)
			mismatch := decapsulateECN(uint8(outer), p)
			if !bytes.Equal(p, want) || mismatch != (outer&3 == ecnCE && inner&3 == ecnNotECT) {
				t.Fatalf("outer %#x, inner %#x: IPv6 header %x, want %x; counted %v", outer, inner, p[:2], want[:2], mismatch)
			}
		}
	}
}

// TestMendChecksumKeepsErrors: a header whose checksum was wrong stays wrong by as much.
func TestMendChecksumKeepsErrors(t *testing.T) {
	for wrong := 1; wrong < 65535; wrong += 97 {
		p := ipv4(20, 20)
		p[1] = ecnECT0
		sum := slowChecksum(p)
		binary.BigEndian.PutUint16(p[10:], uint16((int(sum)+wrong)%65535))
		decapsulateECN(ecnCE, p)
		if slowChecksum(p) == binary.BigEndian.Uint16(p[10:]) {
			t.Fatalf("a checksum that was wrong by %d was made right", wrong)
		}
	}
}

func TestSum16(t *testing.T) {
	for _, c := range []struct {
		b    []byte
		want uint16
	}{
		{nil, 0}, {[]byte{1}, 0x100}, {[]byte{1, 2}, 0x102}, {[]byte{1, 2, 3}, 0x402},
		{[]byte{0xff, 0xff, 0, 1}, 1}, {bytes.Repeat([]byte{0xff}, 131072), 0xffff},
		{[]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, 0xddf2}, // RFC 1071, section 3
	} {
		if got := sum16(0, c.b); got != c.want {
			t.Errorf("the sum of %d bytes is %#x, want %#x", len(c.b), got, c.want)
		}
	}
	if got := sum16(0x2ffff, []byte{0, 1}); got != 3 { // 0xffff + 2 + 1, carried round
		t.Errorf("a sum carried on is %#x, want 3", got)
	}
}
