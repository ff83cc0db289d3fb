package pipe

import (
	"encoding/binary"
	"net/netip"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// UDPPacket returns an IP packet with a UDP datagram in it and with right checksums, for a test to send through a
// Tunnel. The packet is IPv4 or IPv6, as the addresses are. It panics unless src and dst are of one family and payload
// has at most 65507 bytes. It copies payload.
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

// putHeaders fills h with the IP and UDP headers of a datagram. The length of h must be headers(dst.Addr()).
//
//	IPv4   45 tos length:2 | id:2 frag:2 | ttl 17 sum:2 | src:4 | dst:4
//	IPv6   6 tc flow | length:2 17 hops | src:16 | dst:16
//	UDP    sport:2 dport:2 | length:2 sum:2
func putHeaders(h []byte, src, dst netip.AddrPort, tos uint8, payload []byte) {
	clear(h)
	l3 := packet.PutIP(h, len(h)+len(payload), src.Addr(), dst.Addr(), packet.UDP, tos)
	udp, length := h[l3:], len(h)-l3+len(payload)
	binary.BigEndian.PutUint16(udp, src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[packet.UDPLength:], uint16(length))
	sum := ^packet.Sum(payload, packet.Sum(udp, packet.PseudoSum(h, length)))
	if sum == 0 {
		sum = 0xffff // zero would mean no checksum (RFC 768)
	}
	binary.BigEndian.PutUint16(udp[packet.UDPChecksum:], sum)
}
