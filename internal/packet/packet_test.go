package packet

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"go/parser"
	"go/token"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// packetOf returns an IP packet of n bytes from src to dst. The packet's header says that it carries UDP.
func packetOf(n int, src, dst netip.Addr) []byte {
	p := make([]byte, n)
	for i := PutIP(p, n, src, dst, UDP, 0); i < n; i++ {
		p[i] = byte(i)
	}
	return p
}

// ipv4 and ipv6 return packets of n bytes. The headers give the length of the packet as length.
func ipv4(n, length int) []byte {
	p := packetOf(max(n, IP4Header), here, netip.MustParseAddr("10.9.8.7"))
	binary.BigEndian.PutUint16(p[2:], uint16(length))
	return p[:n:n]
}

func ipv6(n, length int) []byte {
	p := packetOf(max(n, IP6Header), here6, netip.MustParseAddr("fd00::987"))
	binary.BigEndian.PutUint16(p[4:], uint16(length-IP6Header))
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
		want int // length without padding; 0 means refused
	}{
		{"nothing", nil, 0},
		{"one byte", []byte{0x45}, 0},
		{"IPv4, exact", ipv4(100, 100), 100},
		{"IPv4, padded", ipv4(112, 100), 100},
		{"IPv4, only a header", ipv4(20, 20), 20},
		{"IPv4, header cut", ipv4(19, 19), 0},
		{"IPv4, length field too large by one", ipv4(100, 101), 0},
		{"IPv4, largest length field", ipv4(100, 65535), 0},
		{"IPv4, largest length field and whole", ipv4(65535, 65535), 65535},
		{"IPv4, shorter than a header", ipv4(100, 19), 0},
		{"IPv4, length zero", ipv4(100, 0), 0},
		{"IPv6, exact", ipv6(100, 100), 100},
		{"IPv6, padded", ipv6(112, 100), 100},
		{"IPv6, only a header", ipv6(40, 40), 40},
		{"IPv6, header cut", ipv6(39, 40), 0},
		{"IPv6, length field too large by one", ipv6(100, 101), 0},
		{"IPv6, payload of 65535: 40 more than 16 bits hold", ipv6(100, 65535+40), 0},
		{"IPv6, payload of 65496: 65536 in all", ipv6(100, 65536), 0},
		{"IPv6, payload of 65535 and whole", ipv6(65535+40, 65535+40), 65535 + 40},
		{"IPv6, payload of 65535 in 65535 bytes", ipv6(65535, 65535+40), 0},
		{"version 0", version(0, ipv4(100, 100)), 0},
		{"version 5", version(5, ipv4(100, 100)), 0},
		{"version 7", version(7, ipv6(100, 100)), 0},
		{"version 15", version(15, ipv6(100, 100)), 0},
		{"IPv6 that says IPv4", version(4, ipv6(100, 100)), 0}, // IPv4 has its length at another offset
	} {
		packet, src, ok := Unpad(c.p)
		if ok != (c.want != 0) || len(packet) != c.want {
			t.Errorf("%s: Unpad returned %d bytes, ok %v; want %d bytes", c.name, len(packet), ok, c.want)
			continue
		}
		if !ok {
			continue
		}
		if cap(packet) != len(packet) || &packet[0] != &c.p[0] {
			t.Errorf("%s: Unpad returned a copy, or a slice with spare capacity", c.name)
		}
		if want := map[byte]netip.Addr{4: here, 6: here6}[c.p[0]>>4]; src != want {
			t.Errorf("%s: Unpad returned the source %v, want %v", c.name, src, want)
		}
	}
}

// TestCarriedSession checks that a data message over UDP gives the index of its session. A fragment other than the first and any
// other packet give none.
func TestCarriedSession(t *testing.T) {
	const index = 0x01020304
	message := append(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 4), index), make([]byte, 24)...)
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
		if got, ok := CarriedSession(c.p); ok != c.ok || ok && got != index {
			t.Errorf("%s: CarriedSession returned %#x, %v; want %v", c.name, got, ok, c.ok)
		}
	}
	initiation := packet4(20, 17, 0)
	initiation[28] = 1
	if _, ok := CarriedSession(initiation); ok {
		t.Error("CarriedSession took an initiation for a data message")
	}
	reserved := packet4(20, 17, 0)
	reserved[29] = 1
	if _, ok := CarriedSession(reserved); ok {
		t.Error("CarriedSession took a message whose reserved bytes are not zero for a data message")
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
		dst, _, ok := Destination(c.p)
		if ok != (c.want != "") || ok && dst != netip.MustParseAddr(c.want) {
			t.Errorf("%s: Destination returned %v, %v; want %q", c.name, dst, ok, c.want)
		}
	}
	for tos := range 256 {
		p := ipv4(20, 20)
		p[1] = byte(tos)
		if _, ecn, _ := Destination(p); ecn != byte(tos&3) {
			t.Fatalf("Destination of an IPv4 packet with TOS %#x returned ECN %d", tos, ecn)
		}
		p = ipv6(40, 40)
		binary.BigEndian.PutUint16(p, 6<<12|uint16(tos)<<4|0xf)
		if _, ecn, _ := Destination(p); ecn != byte(tos&3) {
			t.Fatalf("Destination of an IPv6 packet with traffic class %#x returned ECN %d", tos, ecn)
		}
	}
}

// TestPutIP checks that the other functions of this package understand the header, and that each byte of it is right.
func TestPutIP(t *testing.T) {
	b := make([]byte, 60)
	if l3 := PutIP(b, 1000, here, nowhere, TCP, 0xb9); l3 != 20 {
		t.Errorf("the IPv4 header has %d bytes, want 20", l3)
	}
	if want := "45b903e8000000004006"; hex.EncodeToString(b[:10]) != want {
		t.Errorf("the IPv4 header begins with %x, want %s", b[:10], want)
	}
	if slowSum(b[:20]) != 0 || b[20] != 0 || netip.AddrFrom4([4]byte(b[12:])) != here || netip.AddrFrom4([4]byte(b[16:])) != nowhere {
		t.Errorf("the IPv4 header %x has a wrong checksum or address, or is too long", b[:21])
	}
	clear(b)
	if l3 := PutIP(b, 1000, here6, nowhere6, TCP, 0xb9); l3 != 40 {
		t.Errorf("the IPv6 header has %d bytes, want 40", l3)
	}
	if want := "6b90000003c00640"; hex.EncodeToString(b[:8]) != want {
		t.Errorf("the IPv6 header begins with %x, want %s", b[:8], want)
	}
	if netip.AddrFrom16([16]byte(b[8:])) != here6 || netip.AddrFrom16([16]byte(b[24:])) != nowhere6 || b[40] != 0 {
		t.Errorf("the IPv6 header %x has a wrong address, or is too long", b[:41])
	}
}

func TestPutUDP(t *testing.T) {
	for name, test := range map[string]struct {
		src, dst netip.Addr
		l3       int
	}{"IPv4": {here, nowhere, 20}, "IPv6": {here6, nowhere6, 40}} {
		p := append(bytes.Repeat([]byte{0xff}, test.l3+8), "odd"...)
		PutUDP(p[:test.l3+8], netip.AddrPortFrom(test.src, 7000), netip.AddrPortFrom(test.dst, 53), 0xb9, p[test.l3+8:])
		if got, src, ok := Unpad(p); !ok || len(got) != len(p) || src != test.src {
			t.Errorf("%s: %x is not a packet of %d bytes from %v", name, p, len(p), test.src)
		}
		if want := "1b580035000b"; hex.EncodeToString(p[test.l3:test.l3+6]) != want || TransportSum(p, test.l3) != 0xffff {
			t.Errorf("%s: the UDP header is %x, want %s and a correct checksum", name, p[test.l3:test.l3+8], want)
		}
		h, payload := p[:test.l3+8], make([]byte, 2)
		for word := range 1 << 16 { // some payloads make the checksum zero
			binary.BigEndian.PutUint16(payload, uint16(word))
			PutUDP(h, netip.AddrPortFrom(test.src, 7000), netip.AddrPortFrom(test.dst, 53), 0, payload)
			if h[test.l3+UDPChecksum] == 0 && h[test.l3+UDPChecksum+1] == 0 {
				t.Fatalf("%s: the payload %x got the checksum 0, which would mean that there is no checksum", name, payload)
			}
		}
	}
}

// FuzzPacket checks Destination, CarriedSession, Unreachable, Unpad and DecapsulateECN with arbitrary packets from inside the
// tunnel.
func FuzzPacket(f *testing.F) {
	f.Add(packetOf(20, here, nowhere), uint8(3))
	f.Add(packetOf(100, here6, nowhere6), uint8(2))
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 0, 44, 64}, make([]byte, 40)...), uint8(1))
	f.Fuzz(func(t *testing.T, p []byte, tos uint8) {
		_, _, whole := Destination(p)
		if index, ok := CarriedSession(p); ok && !bytes.Contains(p, append([]byte{4, 0, 0, 0}, binary.LittleEndian.AppendUint32(nil, index)...)) {
			t.Fatalf("%x does not contain a message of session %#x, but CarriedSession found one", p, index)
		}
		if reply := Unreachable(p); reply != nil {
			q, src, ok := Unpad(reply)
			if dst, _, _ := Destination(p); !ok || len(q) != len(reply) || src != dst {
				t.Fatalf("the ICMP error %x is not an IP packet from %v", reply, dst)
			}
			if Unreachable(reply) != nil {
				t.Fatalf("Unreachable answered the ICMP error %x", reply)
			}
		}
		inner, _, ok := Unpad(p)
		if !ok {
			return
		}
		if len(inner) > len(p) || !whole {
			t.Fatal("Unpad returned more bytes than it got, or a packet without a destination")
		}
		l3 := IP6Header
		if inner[0]>>4 == 4 {
			l3 = IP4Header
		}
		right := inner[0]>>4 == 6 || slowSum(inner[:l3]) == 0
		DecapsulateECN(tos, inner)
		if right != (inner[0]>>4 == 6 || slowSum(inner[:l3]) == 0) {
			t.Fatalf("DecapsulateECN changed whether the header checksum of %x is correct; it was before: %v", inner[:l3], right)
		}
	})
}

// FuzzSegments cuts TCP packets into segments and joins the segments. The result must have the same payload.
func FuzzSegments(f *testing.F) {
	for _, a := range [][2]netip.Addr{{here, nowhere}, {here6, nowhere6}} {
		p := packetOf(500, a[0], a[1])
		l3 := PutIP(make([]byte, 40), 0, a[0], a[1], 0, 0)
		clear(p[:l3])
		PutIP(p, len(p), a[0], a[1], TCP, 0)
		p[l3+TCPOffset], p[l3+TCPFlags] = 5<<4, ACK
		f.Add(p, uint16(100))
		f.Add(p, uint16(1))
	}
	f.Fuzz(func(t *testing.T, p []byte, size uint16) {
		p, _, ok := Unpad(p)
		if !ok {
			return
		}
		l3, proto := IP6Header, p[IP6Next]
		if p[0]>>4 == 4 {
			l3, proto = max(IP4Header, int(p[0]&15)*4), p[IP4Protocol]
		}
		l4, ok := TCPEnd(p, l3)
		if !ok || proto != TCP {
			return
		}
		if l4 < l3+TCPHeader || l4 > len(p) {
			t.Fatalf("TCPEnd of a packet of %d bytes with an IP header of %d bytes returned %d, which is out of bounds", len(p), l3, l4)
		}
		payload := p[l4:]
		n := (len(payload) + int(size) - 1) / max(1, int(size))
		var x Template
		if size == 0 || n < 2 || n > maxSegments || len(p) > maxMerged || !x.Set(p[:l4], l3, false, PseudoSum(p, 0)) {
			return
		}
		var c Coalescer
		var got joined
		for i, at := 0, 0; at < len(payload); i, at = i+1, at+int(size) {
			part := payload[at:min(at+int(size), len(payload))]
			s := append(make([]byte, l4), part...)
			x.Put(s, i, at, i == n-1, Sum(part, 0))
			if TransportSum(s, l3) != 0xffff || p[0]>>4 == 4 && Sum(s[:l3], 0) != 0xffff {
				t.Fatalf("segment %d has a wrong checksum: %x", i, s)
			}
			c.Add(&got, s, l3, l4, false, false)
		}
		c.Flush(&got)
		if !bytes.Equal(got.payload, payload) {
			t.Fatalf("after cutting into %d segments and joining, the payload %x is %x", n, payload, got.payload)
		}
		if p[l3+TCPFlags]&^PSH == ACK && (p[0]>>4 == 6 || l3 == IP4Header) && got.packets != 1 {
			t.Fatalf("%d segments were joined into %d packets, want 1", n, got.packets)
		}
	})
}

// A joined is a Sink that collects the payload of all packets, in order.
type joined struct {
	payload []byte
	packets int
}

func (j *joined) Single(p []byte, l4 int) {
	j.payload = append(j.payload, p[l4:]...)
	j.packets++
}

func (j *joined) Merged(r *Run) {
	j.packets++
	for _, p := range r.Packets {
		j.payload = append(j.payload, p[r.L4:]...)
	}
}

// TestPure checks that the package imports only packages that neither lock, wait, read a clock nor do I/O.
func TestPure(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if !slices.Contains([]string{`"bytes"`, `"encoding/binary"`, `"math/bits"`, `"net/netip"`}, i.Path.Value) {
				t.Errorf("%s imports %s, which is not in the list of allowed packages", name, i.Path.Value)
			}
		}
	}
}

func TestSender(t *testing.T) {
	a4, a6 := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd12:3456:789a:bcde::1")
	four, six := make([]byte, IP4Header), make([]byte, IP6Header)
	PutIP(four, len(four), a4, a4.Next(), UDP, 0)
	PutIP(six, len(six), a6, a6.Next(), UDP, 0)
	for _, c := range []struct {
		p    []byte
		want string
	}{
		{four, "\x0a\x01\x02\x03"},
		{six, "\xfd\x12\x34\x56\x78\x9a\xbc\xde"},
		{four[:IP4Header-1], ""},
		{six[:IP6Header-1], ""},
		{make([]byte, 100), ""},
	} {
		if got := string(Sender(c.p)); got != c.want {
			t.Errorf("the sender of %x is %x, want %x", c.p, got, c.want)
		}
	}
}
