package pipe

import (
	"net/netip"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// UDPPacket returns an IP packet that contains a UDP datagram and correct checksums, for a test to send through a Tunnel. The
// packet is IPv4 or IPv6, like the addresses. UDPPacket panics if src or dst is invalid, if they are of different families, or
// if payload has more than 65507 bytes. It copies payload.
func UDPPacket(src, dst netip.AddrPort, payload []byte) []byte {
	if src.Addr().Is4() != dst.Addr().Is4() || !src.IsValid() || !dst.IsValid() {
		panic("pipe: UDPPacket: want two addresses of one family")
	}
	if len(payload) > maxDatagram {
		panic("pipe: UDPPacket: more than 65507 bytes")
	}
	h := headers(dst.Addr())
	p := make([]byte, h, h+len(payload))
	packet.PutUDP(p, src, dst, 0, payload)
	return append(p, payload...)
}
