package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// leastMTU4 and leastMTU6 are the smallest path MTUs, in bytes, that a Net accepts from an ICMP error. gVisor accepts any MTU.
// The code in believe.go drops errors that were forged by a host that does not see the connection. But a host that sees the
// connection can still choose the MTU. With an MTU of 0, that host would make gVisor cut the segments to a few bytes each.
const (
	leastMTU4 = 552 // the default of Linux's net.ipv4.route.min_pmtu
	// RFC 8201, section 4: "A node MUST NOT reduce its estimate of the Path MTU below the IPv6 minimum link MTU."
	leastMTU6 = header.IPv6MinimumMTU
	icmpRest  = header.ICMPv4MinimumSize    // bytes of an ICMP header with its second word, which carries the MTU
	icmpSum   = header.ICMPv6ChecksumOffset // the same offset as in ICMPv4
)

// raiseMTU changes a packet p that is an ICMP error "packet too big". If its MTU is too small, raiseMTU raises the MTU to
// leastMTU4 or leastMTU6, and updates the checksum. It does not change other packets. p may be a fragment, or have extension
// headers.
//
// ok is false if p is too short to contain all headers up to the second word of the ICMP header. RFC 7112, section 5, lets a host
// drop first fragments that do not contain all headers.
func raiseMTU(p []byte) (ok bool) {
	if p[0]>>4 == 4 {
		l3 := int(p[0]&15) * 4
		if p[ip4Protocol] != protoICMP4 || binary.BigEndian.Uint16(p[ip4Fragment:])&0x1fff != 0 {
			return true
		}
		if len(p) < l3+icmpRest {
			return false
		}
		icmp := header.ICMPv4(p[l3:])
		if icmp.Type() == header.ICMPv4DstUnreachable && icmp.Code() == header.ICMPv4FragmentationNeeded && icmp.MTU() < leastMTU4 {
			put16(icmp[6:], icmp[icmpSum:], leastMTU4)
		}
		return true
	}
	at, next, ok := upper6(p)
	if !ok || next != protoICMP6 {
		return ok
	}
	if len(p) < at+icmpRest {
		return false
	}
	icmp := header.ICMPv6(p[at:])
	if icmp.Type() == header.ICMPv6PacketTooBig && icmp.MTU() < leastMTU6 {
		put16(icmp[4:], icmp[icmpSum:], 0)
		put16(icmp[6:], icmp[icmpSum:], leastMTU6)
	}
	return true
}

// upper6 finds the offset at which the upper-layer header of the IPv6 packet p begins, and the protocol of that header. A
// fragment other than the first has no upper-layer header; for it, proto is the number of the fragment header. ok is false if p
// is too short.
func upper6(p []byte) (at int, proto uint8, ok bool) {
	at, proto = header.IPv6MinimumSize, p[ip6Next]
	for {
		switch proto {
		case ip6HopByHop, ip6Routing, ip6Destination, ip6Fragments:
		default:
			return at, proto, true
		}
		if len(p) < at+8 {
			return at, proto, false
		}
		size := 8
		if proto != ip6Fragments {
			size += 8 * int(p[at+1])
		} else if binary.BigEndian.Uint16(p[at+2:])>>3 != 0 {
			return at, proto, true
		}
		at, proto = at+size, p[at]
	}
}
