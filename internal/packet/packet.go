// Package packet reads, writes, cuts and joins the IP packets inside a tunnel, and answers them with ICMP errors. It has the
// module's only implementation of the Internet checksum. Its functions do not lock, wait, read a clock or do I/O.
package packet

import (
	"encoding/binary"
	"net/netip"
)

// These are offsets of fields from the start of their header.
const (
	IP4Length, IP4ID, IP4Fragment, IP4TTL, IP4Protocol, IP4Checksum, IP4Addresses = 2, 4, 6, 8, 9, 10, 12
	IP6Length, IP6Next, IP6HopLimit, IP6Addresses                                 = 4, 6, 7, 8

	TCPSeq, TCPAck, TCPOffset, TCPFlags, TCPWindow, TCPChecksum, TCPUrgent = 4, 8, 12, 13, 14, 16, 18

	UDPLength, UDPChecksum = 4, 6
)

// These are lengths of headers in bytes, without options. MaxHeaders is the length of the longest IP and TCP header
// together.
const (
	IP4Header, IP6Header, TCPHeader, UDPHeader = 20, 40, 20, 8

	MaxHeaders = 60 + 60
)

// These are protocol numbers, TCP flags, and IPv4's don't-fragment bit and the mask of its fragment offset.
const (
	ICMP, TCP, UDP, ip6Fragment, ICMP6 = 1, 6, 17, 44, 58

	FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80

	dontFragment, fragmentOffset = 0x4000, 0x1fff
)

// Sender returns the part of the IP packet p that says who sent it: the source of an IPv4 packet, or the first 64 bits of the
// source of an IPv6 packet. It returns nil if p is too short for that. The result is part of p.
func Sender(p []byte) []byte {
	switch {
	case len(p) >= IP4Header && p[0]>>4 == 4:
		return p[IP4Addresses:][:4]
	case len(p) >= IP6Header && p[0]>>4 == 6:
		return p[IP6Addresses:][:8]
	}
	return nil
}

// Destination returns the destination address of the IP packet p, and its ECN bits. ok is false if p is not an IP
// packet or is shorter than its header.
func Destination(p []byte) (dst netip.Addr, ecn uint8, ok bool) {
	switch {
	case len(p) >= IP4Header && p[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(p[16:20])), p[1] & ECNMask, true
	case len(p) >= IP6Header && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[24:40])), p[1] >> 4 & ECNMask, true
	}
	return dst, 0, false
}

// MayFragment reports whether a router may cut the IP packet p into fragments. MayFragment returns false for IPv6.
func MayFragment(p []byte) bool {
	return p[0]>>4 == 4 && binary.BigEndian.Uint16(p[IP4Fragment:])&dontFragment == 0
}

// Unpad cuts p, the content of a data message, to the length that the IP header gives, and returns the packet's source
// address. ok is false if p is not an IP packet or is shorter than that length.
func Unpad(p []byte) (packet []byte, src netip.Addr, ok bool) {
	switch {
	case len(p) >= IP4Header && p[0]>>4 == 4:
		n := int(binary.BigEndian.Uint16(p[IP4Length:]))
		if n < IP4Header || n > len(p) {
			return nil, src, false
		}
		return p[:n:n], netip.AddrFrom4([4]byte(p[12:16])), true
	case len(p) >= IP6Header && p[0]>>4 == 6:
		n := IP6Header + int(binary.BigEndian.Uint16(p[IP6Length:]))
		if n > len(p) {
			return nil, src, false
		}
		return p[:n:n], netip.AddrFrom16([16]byte(p[8:24])), true
	}
	return nil, src, false
}

// CarriedSession returns the receiver's index in the WireGuard data message that the IP packet p, or its first
// fragment, carries over UDP. ok is false for any other packet.
func CarriedSession(p []byte) (index uint32, ok bool) {
	const data, dataHeader = 4, 16
	l4 := 0
	switch {
	case len(p) >= IP4Header && p[0]>>4 == 4:
		if p[IP4Protocol] != UDP || binary.BigEndian.Uint16(p[IP4Fragment:])&fragmentOffset != 0 {
			return 0, false
		}
		l4 = int(p[0]&15) * 4
	case len(p) >= IP6Header+8 && p[0]>>4 == 6:
		next := p[IP6Next]
		if l4 = IP6Header; next == ip6Fragment && binary.BigEndian.Uint16(p[l4+2:])>>3 == 0 {
			next, l4 = p[l4], l4+8
		}
		if next != UDP {
			return 0, false
		}
	default:
		return 0, false
	}
	if len(p) < l4+UDPHeader+dataHeader {
		return 0, false
	}
	m := p[l4+UDPHeader:]
	return binary.LittleEndian.Uint32(m[4:]), binary.LittleEndian.Uint32(m) == data
}

// TCPEnd returns the offset in b at which the TCP header that begins at l3 ends. ok reports whether b holds the whole header.
func TCPEnd(b []byte, l3 int) (l4 int, ok bool) {
	if len(b) < l3+TCPHeader {
		return 0, false
	}
	l4 = l3 + int(b[l3+TCPOffset]>>4)*4
	return l4, l4 >= l3+TCPHeader && l4 <= len(b)
}

// PutIP writes the IP header of a packet of n bytes, header included, to the front of b, and returns the header's length. The
// header's bytes of b must be zero beforehand. src and dst must both be IPv4 addresses or both be IPv6 addresses. The hop limit is
// 64.
func PutIP(b []byte, n int, src, dst netip.Addr, proto, tos uint8) (l3 int) {
	const hops = 64
	if dst.Is4() {
		from, to := src.As4(), dst.As4()
		b[0], b[1], b[IP4TTL], b[IP4Protocol] = 0x45, tos, hops, proto
		copy(b[12:], from[:])
		copy(b[16:], to[:])
		setLength(b, n)
		binary.BigEndian.PutUint16(b[IP4Checksum:], ^Sum(b[:IP4Header], 0))
		return IP4Header
	}
	from, to := src.As16(), dst.As16()
	b[0], b[1], b[IP6Next], b[IP6HopLimit] = 0x60|tos>>4, tos<<4, proto, hops
	copy(b[8:], from[:])
	copy(b[24:], to[:])
	setLength(b, n)
	return IP6Header
}

// PutUDP writes the IP and UDP headers of a datagram with payload to h, whose length is that of these headers for the family
// of src and dst.
//
//	IPv4   45 tos length:2 | id:2 frag:2 | ttl 17 sum:2 | src:4 | dst:4
//	IPv6   6 tc flow | length:2 17 hops | src:16 | dst:16
//	UDP    sport:2 dport:2 | length:2 sum:2
func PutUDP(h []byte, src, dst netip.AddrPort, tos uint8, payload []byte) {
	clear(h)
	l3 := PutIP(h, len(h)+len(payload), src.Addr(), dst.Addr(), UDP, tos)
	udp, length := h[l3:], len(h)-l3+len(payload)
	binary.BigEndian.PutUint16(udp, src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[UDPLength:], uint16(length))
	sum := ^Sum(payload, Sum(udp, PseudoSum(h, length)))
	if sum == 0 {
		sum = 0xffff // RFC 768: "If the computed checksum is zero, it is transmitted as all ones"
	}
	binary.BigEndian.PutUint16(udp[UDPChecksum:], sum)
}

// setLength writes the length of a packet of n bytes into its IP header.
func setLength(ip []byte, n int) {
	if ip[0]>>4 == 4 {
		binary.BigEndian.PutUint16(ip[IP4Length:], uint16(n))
	} else {
		binary.BigEndian.PutUint16(ip[IP6Length:], uint16(n-IP6Header))
	}
}
