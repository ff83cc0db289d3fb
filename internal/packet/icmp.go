package packet

import (
	"encoding/binary"
	"net/netip"
)

// An ICMPError is a kind of ICMP error: its type and code for IPv4 and for IPv6.
type ICMPError struct{ type4, code4, type6, code6 uint8 }

// These are the errors that this module sends. Comments give the name for IPv4 first, and then the name for IPv6 if it differs.
var (
	NetUnreachable  = ICMPError{3, 0, 1, 0}  // net unreachable; no route to destination
	HostUnreachable = ICMPError{3, 1, 1, 3}  // host unreachable; address unreachable
	PortUnreachable = ICMPError{3, 3, 1, 4}  // port unreachable
	Prohibited      = ICMPError{3, 13, 1, 1} // communication administratively prohibited

	// ReassemblyTimeout says that fragments of a packet have not arrived in time.
	ReassemblyTimeout = ICMPError{11, 1, 3, 1}

	tooBig = ICMPError{3, 4, 2, 0} // fragmentation needed; packet too big
)

// About makes the ICMP error e about the packet p, to be sent to the sender of p. About returns nil if no error may be sent; see
// answer.
func (e ICMPError) About(p []byte) []byte { return e.answer(p, 0) }

// Unreachable makes the ICMP error that tells the sender of p that its destination cannot be reached, or returns nil; see
// answer.
func Unreachable(p []byte) []byte { return HostUnreachable.answer(p, 0) }

// TooBig makes the ICMP error that tells the sender of p that p is larger than mtu, the largest packet that can pass, or
// returns nil; see answer.
func TooBig(p []byte, mtu int) []byte { return tooBig.answer(p, uint32(mtu)) }

// answer makes an ICMP error about p. The error carries rest in bytes 4 to 7 of its ICMP header. answer returns nil if no error
// may be sent: if p is an ICMP error, if p's source or destination is not the address of a single host, or if p is a fragment
// other than the first (RFC 1122, section 3.2.2; RFC 4443, section 2.4). The error's source is the packet's destination, because
// the tunnel itself has no address.
func (e ICMPError) answer(p []byte, rest uint32) []byte {
	p, src, ok := Unpad(p)
	if !ok {
		return nil
	}
	dst, _, _ := Destination(p)
	if !singleHost(src) || !singleHost(dst) {
		return nil
	}
	// An error has at most 576 bytes (RFC 1812, section 4.3.2.3), or 1280 for IPv6 (RFC 4443, section 2.4).
	l3, most, proto, tos, kind, code, may := IP4Header, 576, uint8(ICMP), uint8(0xc0), e.type4, e.code4, mayAnswer4
	if src.Is6() {
		l3, most, proto, tos, kind, code, may = IP6Header, 1280, ICMP6, 0, e.type6, e.code6, mayAnswer6
	}
	if !may(p) {
		return nil
	}
	r := make([]byte, min(l3+8+len(p), most))
	PutIP(r, len(r), dst, src, proto, tos)
	icmp, sum := r[l3:], uint16(0)
	if proto == ICMP6 {
		sum = PseudoSum(r, len(icmp))
	}
	icmp[0], icmp[1] = kind, code
	binary.BigEndian.PutUint32(icmp[4:], rest)
	copy(icmp[8:], p)
	binary.BigEndian.PutUint16(icmp[2:], ^Sum(icmp, sum))
	return r
}

func singleHost(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// mayAnswer4 reports whether the IPv4 packet p may be answered with an ICMP error. It returns false for a fragment other than the
// first, for an ICMP message that is not a query or a reply to a query, and for a packet that is too short or too malformed to
// tell.
func mayAnswer4(p []byte) bool {
	l3 := int(p[0]&15) * 4
	if l3 < IP4Header || l3 > len(p) || binary.BigEndian.Uint16(p[IP4Fragment:])&fragmentOffset != 0 {
		return false
	}
	if p[IP4Protocol] != ICMP {
		return true
	}
	if l3 < len(p) {
		switch p[l3] {
		case 0, 8, 13, 14, 15, 16, 17, 18: // queries and their replies
			return true
		}
	}
	return false
}

// mayAnswer6 reports whether the IPv6 packet p may be answered with an ICMPv6 error. It returns false for a fragment other than
// the first, for an ICMPv6 error, and for a packet that is too short, or has too many extension headers, to tell. It looks
// behind up to seven extension headers.
func mayAnswer6(p []byte) bool {
	next, at := p[IP6Next], IP6Header
	for range 8 {
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if at+8 > len(p) {
				return false
			}
			next, at = p[at], at+8+int(p[at+1])*8
		case ip6Fragment:
			if at+8 > len(p) || binary.BigEndian.Uint16(p[at+2:])&^7 != 0 {
				return false
			}
			next, at = p[at], at+8
		case ICMP6:
			return at < len(p) && p[at] >= 128
		default:
			return true
		}
	}
	return false
}
