package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

var (
	here     = netip.MustParseAddr("10.255.0.1")
	here6    = netip.MustParseAddr("fd00::1")
	nowhere  = netip.MustParseAddr("203.0.113.9")
	nowhere6 = netip.MustParseAddr("2001:db8::9")
)

func TestUnreachableIPv4(t *testing.T) {
	for _, n := range []int{20, 21, 28, 100, 547, 548, 549, 1420, 65535} {
		p := packetOf(n, here, nowhere)
		padded := append(bytes.Clone(p), 1, 2, 3)
		r := Unreachable(padded[:min(len(padded), 65535)])
		quoted := min(n, 576-20-8)
		if len(r) != 28+quoted {
			t.Fatalf("the ICMP error about a packet of %d bytes has %d bytes, want %d", n, len(r), 28+quoted)
		}
		if r[0] != 0x45 || r[9] != 1 || int(binary.BigEndian.Uint16(r[2:])) != len(r) || r[8] == 0 {
			t.Errorf("the IPv4 header of the ICMP error is %x, with a wrong version, protocol, length or TTL", r[:20])
		}
		if !bytes.Equal(r[12:16], nowhere.AsSlice()) || !bytes.Equal(r[16:20], here.AsSlice()) {
			t.Errorf("the ICMP error goes from %x to %x, want from the packet's destination to its source", r[12:16], r[16:20])
		}
		if r[20] != 3 || r[21] != 1 || binary.BigEndian.Uint32(r[24:]) != 0 {
			t.Errorf("ICMP type %d, code %d, want 3, 1: host unreachable", r[20], r[21])
		}
		if !bytes.Equal(r[28:], p[:quoted]) {
			t.Error("the ICMP error does not quote the beginning of the packet")
		}
		if slowSum(r[:20]) != 0 || slowSum(r[20:]) != 0 {
			t.Errorf("the ICMP error about a packet of %d bytes has a wrong checksum", n)
		}
		if q, src, ok := Unpad(r); !ok || len(q) != len(r) || src != nowhere {
			t.Error("Unpad does not accept the ICMP error as a packet")
		}
	}
}

func TestUnreachableIPv6(t *testing.T) {
	for _, n := range []int{40, 41, 100, 1231, 1232, 1233, 1420, 65535} {
		p := packetOf(n, here6, nowhere6)
		r := Unreachable(p)
		quoted := min(n, 1280-40-8)
		if len(r) != 48+quoted {
			t.Fatalf("the ICMP error about a packet of %d bytes has %d bytes, want %d", n, len(r), 48+quoted)
		}
		if r[0] != 0x60 || r[6] != 58 || int(binary.BigEndian.Uint16(r[4:])) != len(r)-40 || r[7] == 0 {
			t.Errorf("the IPv6 header of the ICMP error begins with %x, with a wrong version, protocol, length or hop limit", r[:8])
		}
		if !bytes.Equal(r[8:24], nowhere6.AsSlice()) || !bytes.Equal(r[24:40], here6.AsSlice()) {
			t.Error("the ICMP error does not go from the packet's destination to its source")
		}
		if r[40] != 1 || r[41] != 3 || binary.BigEndian.Uint32(r[44:]) != 0 {
			t.Errorf("ICMPv6 type %d, code %d, want 1, 3: address unreachable", r[40], r[41])
		}
		if !bytes.Equal(r[48:], p[:quoted]) {
			t.Error("the ICMP error does not quote the beginning of the packet")
		}
		if slowSum(r[8:40], []byte{byte((len(r) - 40) >> 8), byte(len(r) - 40), 0, 58}, r[40:]) != 0 {
			t.Errorf("the ICMPv6 error about a packet of %d bytes has a wrong checksum", n)
		}
	}
}

// TestUnreachableAddresses checks that Unreachable returns no error about a packet whose source or destination is not a single
// host.
func TestUnreachableAddresses(t *testing.T) {
	for _, c := range []struct {
		addr string
		host bool
	}{
		{"10.0.0.1", true}, {"223.255.255.255", true}, {"169.254.1.1", true}, {"0.0.0.0", false}, {"255.255.255.255", false},
		{"224.0.0.1", false}, {"239.255.255.255", false}, {"127.0.0.1", false}, {"127.255.255.255", false},
		{"2001:db8::1", true}, {"fe80::1", true}, {"fd00::1", true}, {"::", false}, {"::1", false}, {"ff02::1", false}, {"ff0e::1", false},
	} {
		a := netip.MustParseAddr(c.addr)
		var to, from []byte
		if a.Is4() {
			to, from = packetOf(100, here, a), packetOf(100, a, nowhere)
		} else {
			to, from = packetOf(100, here6, a), packetOf(100, a, nowhere6)
		}
		if got := Unreachable(to) != nil; got != c.host {
			t.Errorf("packet to %s: answered %v, want %v", a, got, c.host)
		}
		if got := Unreachable(from) != nil; got != c.host {
			t.Errorf("packet from %s: answered %v, want %v", a, got, c.host)
		}
	}
}

// TestUnreachableExceptionsIPv4 checks that Unreachable returns no error about the packets that RFC 1122, section 3.2.2, excepts.
func TestUnreachableExceptionsIPv4(t *testing.T) {
	fragment := func(flags uint16) []byte {
		p := packetOf(100, here, nowhere)
		binary.BigEndian.PutUint16(p[6:], flags)
		return p
	}
	icmp := func(kind byte, header int) []byte {
		p := packetOf(100, here, nowhere)
		p[0], p[9] = 0x40|byte(header/4), 1
		p[header] = kind
		return p
	}
	for _, c := range []struct {
		name string
		p    []byte
		want bool
	}{
		{"first fragment", fragment(1 << 13), true},
		{"not to be fragmented", fragment(1 << 14), true},
		{"later fragment", fragment(1), false},
		{"last fragment", fragment(0x1fff), false},
		{"later fragment, more to come", fragment(1<<13 | 185), false},
		{"header of less than 20 bytes", version(4, append([]byte{0x44}, packetOf(100, here, nowhere)[1:]...)), false},
		{"header longer than the packet", append([]byte{0x46}, ipv4(20, 20)[1:]...), false},
		{"header with options", append([]byte{0x4f}, packetOf(100, here, nowhere)[1:]...), true},
		{"ICMP without a type", icmpOf(ipv4(20, 20)), false},
		{"no IP", []byte("hello"), false},
		{"cut", packetOf(100, here, nowhere)[:99], false},
	} {
		if got := Unreachable(c.p) != nil; got != c.want {
			t.Errorf("%s: answered %v, want %v", c.name, got, c.want)
		}
	}
	queries := map[int]bool{0: true, 8: true, 13: true, 14: true, 15: true, 16: true, 17: true, 18: true}
	for kind := range 256 {
		for _, header := range []int{20, 24, 60} {
			if got := Unreachable(icmp(byte(kind), header)) != nil; got != queries[kind] {
				t.Errorf("ICMP type %d: answered %v, want %v: an error must not cause an error", kind, got, queries[kind])
			}
		}
	}
}

func icmpOf(p []byte) []byte {
	p[9] = 1
	return p
}

// TestUnreachableExceptionsIPv6 checks that Unreachable returns no error about packets for which RFC 4443, section 2.4, forbids
// one, even if they have extension headers.
func TestUnreachableExceptionsIPv6(t *testing.T) {
	// chain makes a packet from headers of the given types and the bytes that follow the headers.
	type header struct {
		kind byte
		b    []byte // chain sets the first byte to the type of the next header
	}
	options := header{60, make([]byte, 8)}
	long := header{0, append([]byte{0, 2}, make([]byte, 22)...)}
	routing := header{43, make([]byte, 8)}
	first := header{44, []byte{0, 0, 0, 1, 9, 9, 9, 9}}  // offset 0, and more fragments follow
	atomic := header{44, []byte{0, 0, 0, 0, 9, 9, 9, 9}} // offset 0, and no other fragment
	later := header{44, []byte{0, 0, 0, 8, 9, 9, 9, 9}}  // offset 8
	lastest := header{44, []byte{0, 0, 0xff, 0xf8, 9, 9, 9, 9}}
	chain := func(last byte, rest []byte, hs ...header) []byte {
		p := packetOf(40, here6, nowhere6)
		next := 6 // the offset of the type of the next header
		for _, h := range hs {
			p[next] = h.kind
			next = len(p)
			p = append(p, h.b...)
		}
		p[next] = last
		p = append(p, rest...)
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		return p
	}
	errorMessage, echo, udp := []byte{1, 3, 0, 0}, []byte{128, 0, 0, 0}, []byte{1, 2, 3, 4}
	for _, c := range []struct {
		name string
		p    []byte
		want bool
	}{
		{"UDP", chain(17, udp), true},
		{"TCP behind options", chain(6, udp, long, options, routing), true},
		{"ICMPv6 error", chain(58, errorMessage), false},
		{"ICMPv6 echo", chain(58, echo), true},
		{"ICMPv6 echo behind options", chain(58, echo, long, options), true},
		{"ICMPv6 error behind options", chain(58, errorMessage, long, options, routing), false},
		{"ICMPv6 error behind a routing header", chain(58, errorMessage, routing), false},
		{"ICMPv6 error in a first fragment", chain(58, errorMessage, first), false},
		{"UDP in a first fragment", chain(17, udp, first), true},
		{"UDP in the only fragment", chain(17, udp, atomic), true},
		{"later fragment", chain(17, udp, later), false},
		{"last fragment", chain(17, udp, lastest), false},
		{"later fragment behind options", chain(17, udp, options, later), false},
		{"ICMPv6 without a type", chain(58, nil), false},
		{"options cut", chain(60, []byte{17, 0, 0}), false},
		{"options longer than the packet", chain(60, []byte{17, 200, 0, 0, 0, 0, 0, 0}), true}, // the bytes behind belong to UDP
		{"options longer than the packet, and ICMPv6", chain(60, []byte{58, 200, 0, 0, 0, 0, 0, 0}), false},
		{"fragment header cut", chain(44, []byte{17, 0, 0, 0, 0, 0, 0}), false},
		{"nothing more", chain(59, nil), true},
		{"too many headers to tell", chain(17, udp, options, options, options, options, options, options, options, options), false},
		{"cut", packetOf(100, here6, nowhere6)[:99], false},
	} {
		if got := Unreachable(c.p) != nil; got != c.want {
			t.Errorf("%s: answered %v, want %v", c.name, got, c.want)
		}
	}
	for kind := range 256 {
		if got := Unreachable(chain(58, []byte{byte(kind), 0, 0, 0})) != nil; got != (kind >= 128) {
			t.Errorf("ICMPv6 type %d: answered %v, want an answer exactly for types from 128, which are not errors", kind, got)
		}
	}
}

// TestUnreachableLeavesPacket checks that the packet does not change, because it is in a batch that the caller still uses.
func TestUnreachableLeavesPacket(t *testing.T) {
	p := packetOf(1420, here, nowhere)
	before := bytes.Clone(p)
	r := Unreachable(p)
	if !bytes.Equal(p, before) {
		t.Error("the packet was changed")
	}
	clear(p)
	if !bytes.Equal(r[28:48], before[:20]) {
		t.Error("the ICMP error shares memory with the packet")
	}
}

// TestTooBig checks that the error equals that of Unreachable, except for its type, its code and the MTU that it reports (RFC
// 1191, section 4; RFC 4443, section 3.2).
func TestTooBig(t *testing.T) {
	for _, c := range []struct {
		p          []byte
		kind, code byte
		l3         int
	}{{packetOf(1420, here, nowhere), 3, 4, 20}, {packetOf(1420, here6, nowhere6), 2, 0, 40}} {
		r, want := TooBig(c.p, 1300), Unreachable(c.p)
		icmp := want[c.l3:]
		icmp[0], icmp[1] = c.kind, c.code
		binary.BigEndian.PutUint32(icmp[4:], 1300)
		copy(icmp[2:4], r[c.l3+2:])
		if !bytes.Equal(r, want) {
			t.Errorf("TooBig returned %x, want %x", r, want)
		}
		pseudo := [][]byte{r[c.l3:]}
		if c.l3 == 40 {
			pseudo = append(pseudo, r[8:40], []byte{byte(len(icmp) >> 8), byte(len(icmp)), 0, 58})
		}
		if slowSum(pseudo...) != 0 {
			t.Errorf("the checksum of %x is wrong", r)
		}
	}
	p := packetOf(1420, here, nowhere)
	if !MayFragment(p) {
		t.Error("MayFragment returned false for an IPv4 packet without DF")
	}
	p[6] = 0x40
	if MayFragment(p) || MayFragment(packetOf(1420, here6, nowhere6)) {
		t.Error("MayFragment returned true for an IPv4 packet with DF or an IPv6 packet")
	}
	binary.BigEndian.PutUint16(p[6:], 1)
	if TooBig(p, 1300) != nil {
		t.Error("TooBig answered a later fragment")
	}
}
