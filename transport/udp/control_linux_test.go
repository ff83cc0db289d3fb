package udp

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

// controlMessage returns one control message in the form in which the kernel writes it.
func controlMessage(level, kind int, data []byte) []byte {
	var b controlBuffer
	copy(putMessage(b.bytes(), level, kind, len(data)), data)
	return b.bytes()[:unix.CmsgSpace(len(data))]
}

func native(values ...uint32) []byte {
	var b []byte
	for _, v := range values {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

func TestParseControl(t *testing.T) {
	info4 := append(native(7), 192, 0, 2, 5, 198, 51, 100, 9)
	addr6 := netip.MustParseAddr("2001:db8::5").As16()
	local6 := netip.MustParseAddr("fe80::5").As16()
	group6 := netip.MustParseAddr("ff02::1").As16()
	for _, c := range []struct {
		name string
		in   [][]byte
		want control
	}{
		{"nothing", nil, control{}},
		{"IPv4", [][]byte{
			controlMessage(unix.IPPROTO_UDP, unix.UDP_GRO, native(1452)),
			controlMessage(unix.IPPROTO_IP, unix.IP_PKTINFO, info4),
			controlMessage(unix.IPPROTO_IP, unix.IP_TOS, []byte{0x8a}),
		}, control{local: netip.MustParseAddr("192.0.2.5"), ifindex: 7, tos: 0x8a, size: 1452}},
		{"IPv6", [][]byte{
			controlMessage(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, append(addr6[:], native(9)...)),
			controlMessage(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, native(3)),
		}, control{local: netip.AddrFrom16(addr6), ifindex: 9, tos: 3}},
		{"unknown ones between", [][]byte{
			controlMessage(unix.SOL_SOCKET, unix.SCM_TIMESTAMP, make([]byte, 16)),
			controlMessage(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, native(2)),
			controlMessage(unix.SOL_SOCKET, unix.SCM_RIGHTS, nil),
		}, control{tos: 2}},
		{"too short", [][]byte{
			controlMessage(unix.IPPROTO_UDP, unix.UDP_GRO, []byte{1, 2}),
			controlMessage(unix.IPPROTO_IP, unix.IP_PKTINFO, info4[:11]),
			controlMessage(unix.IPPROTO_IP, unix.IP_TOS, nil),
			controlMessage(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, addr6[:]),
		}, control{}},
		{"negative size", [][]byte{controlMessage(unix.IPPROTO_UDP, unix.UDP_GRO, native(1<<31))}, control{size: -1 << 31}},
		{"group", [][]byte{controlMessage(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, append(group6[:], native(9)...))}, control{ifindex: 9}},
		{"damaged", [][]byte{controlMessage(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, native(2)), make([]byte, unix.SizeofCmsghdr)},
			control{tos: 2, malformed: true}},
	} {
		var b controlBuffer
		at := b.bytes()[:0]
		for _, m := range c.in {
			at = append(at, m...)
		}
		if got := parseControl(at); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
	c := control{local: netip.AddrFrom16(local6), ifindex: 4}
	if a, i := c.source(); a != c.local || i != 4 {
		t.Errorf("the source is %v with interface %d, want the link-local address with interface 4", a, i)
	}
}

// TestPutControl checks that parseControl can read the messages that putControl writes. The kernel uses the same form in both
// directions.
func TestPutControl(t *testing.T) {
	for _, c := range []struct {
		f    family
		e    wireguard.Endpoint
		tos  uint8
		want control
	}{
		{ipv4, wireguard.Endpoint{}, 0, control{}},
		{ipv4, wireguard.Endpoint{Source: netip.MustParseAddr("192.0.2.1")}, 0, control{local: netip.MustParseAddr("192.0.2.1")}},
		{ipv4, wireguard.Endpoint{Source: netip.MustParseAddr("::ffff:192.0.2.1"), Interface: 2}, 0, control{local: netip.MustParseAddr("192.0.2.1"), ifindex: 2}},
		{ipv4, wireguard.Endpoint{Interface: 2}, 0, control{ifindex: 2}},
		{ipv4, wireguard.Endpoint{Source: netip.IPv6Loopback()}, 0, control{}},
		{ipv6, wireguard.Endpoint{Source: netip.IPv6Loopback(), Interface: 3}, 0x88, control{local: netip.IPv6Loopback(), ifindex: 3, tos: 0x88}},
		{ipv6, wireguard.Endpoint{Interface: 3}, 0, control{ifindex: 3}},
		{ipv6, wireguard.Endpoint{Source: netip.MustParseAddr("192.0.2.1")}, 1, control{tos: 1}},
	} {
		var b controlBuffer
		for i := range b {
			b[i] = 1<<64 - 1 // putControl must overwrite this
		}
		n := putControl(b.bytes(), c.f, &c.e, c.tos)
		if got := parseControl(b.bytes()[:n]); got != c.want {
			t.Errorf("%v, source %v, interface %d, type of service %#x: got %+v, want the same values", c.f, c.e.Source, c.e.Interface, c.tos, got)
		}
	}
}

func FuzzParseControl(f *testing.F) {
	f.Add(controlMessage(unix.IPPROTO_UDP, unix.UDP_GRO, native(1452)))
	f.Add(controlMessage(unix.IPPROTO_IP, unix.IP_PKTINFO, make([]byte, unix.SizeofInet4Pktinfo)))
	f.Add(controlMessage(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, make([]byte, unix.SizeofInet6Pktinfo)))
	f.Add(controlMessage(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, native(1)))
	f.Fuzz(func(t *testing.T, in []byte) {
		var b controlBuffer
		n := copy(b.bytes(), in)
		c := parseControl(b.bytes()[:n])
		if c.local.IsValid() && (c.local.IsUnspecified() || c.local.IsMulticast() || c.local.Is4In6()) {
			t.Errorf("parseControl returned %v, from which no answer can be sent", c.local)
		}
		// parseControl must not read anything after a damaged message. So there must be a prefix of the messages for which
		// parseControl returns the same result, except for malformed.
		if c.malformed {
			for cut := range n + 1 {
				d := parseControl(b.bytes()[:cut])
				if d.malformed = true; d == c {
					return
				}
			}
			t.Error("parseControl read on after a damaged message: no prefix of the messages gives the same result")
		}
	})
}
