package packet

import (
	"encoding/binary"
	"math/bits"
)

// Sum returns the Internet checksum of b (RFC 1071), not complemented, and added to initial. Like gVisor's function, it adds 8
// bytes at a time with carry. But it has two chains of additions, which the processor computes in parallel.
//
// Sum adds in little-endian order and swaps the bytes of the result. RFC 1071, section 2(B): "the sum of 16-bit integers can be
// computed in either byte order".
func Sum(b []byte, initial uint16) uint16 {
	x, y := uint64(bits.ReverseBytes16(initial)), uint64(0)
	for len(b) >= 64 {
		p := b[:64]
		// A chain that begins without a carry cannot end with all ones and a carry, so adding the last carry causes no further
		// carry.
		var c, d uint64
		x, c = bits.Add64(x, binary.LittleEndian.Uint64(p[0:]), 0)
		x, c = bits.Add64(x, binary.LittleEndian.Uint64(p[8:]), c)
		x, c = bits.Add64(x, binary.LittleEndian.Uint64(p[16:]), c)
		x, c = bits.Add64(x, binary.LittleEndian.Uint64(p[24:]), c)
		x += c
		y, d = bits.Add64(y, binary.LittleEndian.Uint64(p[32:]), 0)
		y, d = bits.Add64(y, binary.LittleEndian.Uint64(p[40:]), d)
		y, d = bits.Add64(y, binary.LittleEndian.Uint64(p[48:]), d)
		y, d = bits.Add64(y, binary.LittleEndian.Uint64(p[56:]), d)
		y += d
		b = b[64:]
	}
	x, c := bits.Add64(x, y, 0)
	x += c
	if len(b) >= 32 {
		x, c = bits.Add64(x, binary.LittleEndian.Uint64(b[0:]), 0)
		x, c = bits.Add64(x, binary.LittleEndian.Uint64(b[8:]), c)
		x, c = bits.Add64(x, binary.LittleEndian.Uint64(b[16:]), c)
		x, c = bits.Add64(x, binary.LittleEndian.Uint64(b[24:]), c)
		x += c
		b = b[32:]
	}
	for len(b) >= 8 {
		x, c = bits.Add64(x, binary.LittleEndian.Uint64(b), 0)
		x += c
		b = b[8:]
	}
	x = x>>32 + x&0xffffffff // now there is room for carries
	if len(b) >= 4 {
		x += uint64(binary.LittleEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		x += uint64(binary.LittleEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		x += uint64(b[0])
	}
	x = x>>32 + x&0xffffffff
	x = x>>16 + x&0xffff
	x = x>>16 + x&0xffff
	x = x>>16 + x&0xffff
	return bits.ReverseBytes16(uint16(x))
}

// Add returns the sum of two checksums that are not complemented.
func Add(x, y uint16) uint16 {
	s := uint32(x) + uint32(y)
	return uint16(s + s>>16)
}

// PseudoSum is the sum of the pseudo-header of a TCP segment or UDP datagram of n bytes. ip is the IP header in front of the
// segment or datagram, from which PseudoSum takes the addresses and the protocol.
func PseudoSum(ip []byte, n int) uint16 {
	if ip[0]>>4 == 4 {
		return Sum(ip[IP4Addresses:IP4Header], Add(uint16(ip[IP4Protocol]), uint16(n)))
	}
	return Sum(ip[IP6Addresses:IP6Header], Add(uint16(ip[IP6Next]), uint16(n)))
}

// TransportSum is the sum of the pseudo-header of the IP packet p and of everything behind its IP header, which has l3 bytes. The
// sum is 0xffff if the transport checksum is right.
func TransportSum(p []byte, l3 int) uint16 { return Sum(p[l3:], PseudoSum(p, len(p)-l3)) }
