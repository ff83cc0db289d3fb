package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// The least path MTU that a Net believes, in bytes. gVisor believes any MTU in an ICMP error. believe.go drops errors that were
// forged by a host that does not see the connection. A host that sees it can still choose the MTU. With an MTU of 0, it would cut
// the segments to a few bytes each.
const (
	leastMTU4 = 552                         // as Linux's net.ipv4.route.min_pmtu
	leastMTU6 = header.IPv6MinimumMTU       // RFC 8201, section 4: "A node MUST NOT reduce its estimate of the Path MTU below the IPv6 minimum link MTU."
	icmpRest  = header.ICMPv4MinimumSize    // an ICMP header with its second word, which carries the MTU
	icmpSum   = header.ICMPv6ChecksumOffset // also for ICMPv4
)

// raiseMTU raises the MTU of the ICMP error "packet too big" p to the least one, and keeps the checksum right. It leaves
// all other packets as they are. p may be a fragment, or have extension headers.
//
// ok is false if p hides from raiseMTU which protocol it carries, or a part of the ICMP header. RFC 7112, section 5, lets a host
// drop first fragments that do not hold all headers.
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

// upper6 finds where the header of the upper layer of the IPv6 packet p begins, and its protocol. For a fragment that is
// not the first one, which has no such header, proto is that of the fragment header. ok is false if p is too short.
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
