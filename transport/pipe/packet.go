package pipe

import (
	"encoding/binary"
	"net/netip"
)

const (
	protocolUDP = 17
	hopLimit    = 64
)

// UDPPacket is a whole IP packet with a UDP datagram in it, IPv4 or IPv6 as its addresses are, with right checksums: what a
// test sends through a Tunnel. Src and dst must be of one family, and payload at most 65507 bytes; it panics otherwise.
// Payload is copied.
func UDPPacket(src, dst netip.AddrPort, payload []byte) []byte {
	if src.Addr().Is4() != dst.Addr().Is4() || !src.IsValid() || !dst.IsValid() {
		panic("pipe: UDPPacket: want two addresses of one family")
	}
	if len(payload) > maxDatagram {
		panic("pipe: UDPPacket: more than 65507 bytes")
	}
	h := headers(dst.Addr())
	p := make([]byte, h, h+len(payload))
	putHeaders(p, src, dst, 0, payload)
	return append(p, payload...)
}

// putHeaders writes the IP and UDP headers of a datagram, as many bytes as headers says.
//
//	IPv4   45 tos length:2 | id:2 frag:2 | ttl 17 sum:2 | src:4 | dst:4
//	IPv6   6 tc flow | length:2 17 hops | src:16 | dst:16
//	UDP    sport:2 dport:2 | length:2 sum:2
func putHeaders(h []byte, src, dst netip.AddrPort, tos uint8, payload []byte) {
	clear(h)
	udp := h[len(h)-8:]
	length := 8 + len(payload)
	if dst.Addr().Is4() {
		from, to := src.Addr().As4(), dst.Addr().As4()
		h[0], h[1], h[8], h[9] = 0x45, tos, hopLimit, protocolUDP
		binary.BigEndian.PutUint16(h[2:], uint16(20+length))
		copy(h[12:], from[:])
		copy(h[16:], to[:])
		binary.BigEndian.PutUint16(h[10:], ^fold(sum(0, h[:20])))
	} else {
		from, to := src.Addr().As16(), dst.Addr().As16()
		h[0], h[1], h[6], h[7] = 0x60|tos>>4, tos<<4, protocolUDP, hopLimit
		binary.BigEndian.PutUint16(h[4:], uint16(length))
		copy(h[8:], from[:])
		copy(h[24:], to[:])
	}
	binary.BigEndian.PutUint16(udp, src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(length))
	pseudo := sum(uint32(length)+protocolUDP, src.Addr().AsSlice())
	check := ^fold(sum(sum(sum(pseudo, dst.Addr().AsSlice()), udp), payload))
	if check == 0 {
		check = 0xffff // zero would say that there is no checksum (RFC 768)
	}
	binary.BigEndian.PutUint16(udp[6:], check)
}

// sum adds up 16-bit words, as the Internet checksum does (RFC 1071); an odd last byte counts as one with a zero behind.
func sum(s uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
