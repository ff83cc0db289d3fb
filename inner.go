package wireguard

import (
	"encoding/binary"
	"net/netip"
)

// What the device reads of the IP packets inside the tunnel: addresses, length and ECN, and whether one is its own message.

const (
	ipv4Header = 20
	ipv6Header = 40

	ecnMask   = 3
	ecnNotECT = 0
	ecnECT1   = 1
	ecnECT0   = 2
	ecnCE     = 3
)

// destination is where the IP packet p is to go, and its ECN bits. ok is false if p is no IP packet or shorter than
// its header.
func destination(p []byte) (dst netip.Addr, ecn uint8, ok bool) {
	switch {
	case len(p) >= ipv4Header && p[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(p[16:20])), p[1] & ecnMask, true
	case len(p) >= ipv6Header && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[24:40])), p[1] >> 4 & ecnMask, true
	}
	return dst, 0, false
}

// carriedSession is the index in the data message that p carries by UDP. ok is false if it carries none. A first fragment
// is enough.
func carriedSession(p []byte) (index uint32, ok bool) {
	const protocolUDP, udpHeader = 17, 8
	switch {
	case len(p) >= ipv4Header && p[0]>>4 == 4:
		n := int(p[0]&0xf) * 4
		if p[9] != protocolUDP || binary.BigEndian.Uint16(p[6:])&0x1fff != 0 || len(p) < n+udpHeader+messageHeader {
			return 0, false
		}
		p = p[n+udpHeader:]
	case len(p) >= ipv6Header+udpHeader+messageHeader && p[0]>>4 == 6:
		const fragment, fragmentHeader = 44, 8
		switch next := p[6]; {
		case next == protocolUDP:
			p = p[ipv6Header+udpHeader:]
		case next == fragment && p[ipv6Header] == protocolUDP && binary.BigEndian.Uint16(p[ipv6Header+2:])>>3 == 0 &&
			len(p) >= ipv6Header+fragmentHeader+udpHeader+messageHeader:
			p = p[ipv6Header+fragmentHeader+udpHeader:]
		default:
			return 0, false
		}
	default:
		return 0, false
	}
	return binary.LittleEndian.Uint32(p[4:]), binary.LittleEndian.Uint32(p) == typeData
}

// unpad cuts the padding off p, which came out of a data message, by the length that its own header tells, and returns
// where it says that it comes from. ok is false if p is no IP packet, or is longer than what came.
func unpad(p []byte) (packet []byte, src netip.Addr, ok bool) {
	switch {
	case len(p) >= ipv4Header && p[0]>>4 == 4:
		n := int(binary.BigEndian.Uint16(p[2:]))
		if n < ipv4Header || n > len(p) {
			return nil, src, false
		}
		return p[:n:n], netip.AddrFrom4([4]byte(p[12:16])), true
	case len(p) >= ipv6Header && p[0]>>4 == 6:
		n := ipv6Header + int(binary.BigEndian.Uint16(p[4:]))
		if n > len(p) {
			return nil, src, false
		}
		return p[:n:n], netip.AddrFrom16([16]byte(p[8:24])), true
	}
	return nil, src, false
}

// outerTOS is the type of service of the outer packet for a packet with the given ECN bits: the same bits, so that
// congestion on the way is marked and not dropped, but never a mark already set; DSCP 0 (RFC 6040, compatibility mode
// for CE, as Linux does it).
func outerTOS(ecn uint8) uint8 {
	if ecn == ecnCE {
		return ecnECT0
	}
	return ecn
}

// decapsulateECN carries a mark on the outer packet over to the inner one, packet (RFC 6040, section 4.2). mismatch
// says that there was congestion, and the inner packet cannot tell of it.
func decapsulateECN(outer uint8, packet []byte) (mismatch bool) {
	outer &= ecnMask
	if outer != ecnCE && outer != ecnECT1 {
		return false
	}
	v4 := packet[0]>>4 == 4
	inner := packet[1] & ecnMask
	if !v4 {
		inner = packet[1] >> 4 & ecnMask
	}
	switch {
	case inner == ecnNotECT:
		return outer == ecnCE
	case outer == ecnECT1 && inner != ecnECT0, inner == ecnCE:
		return false
	case v4:
		old := binary.BigEndian.Uint16(packet)
		packet[1] = packet[1]&^ecnMask | outer
		mendChecksum(packet[10:12], old, binary.BigEndian.Uint16(packet))
	default:
		packet[1] = packet[1]&^(ecnMask<<4) | outer<<4
	}
	return false
}

// mendChecksum updates an Internet checksum after one 16-bit word of what it covers changed (RFC 1624, equation 3).
func mendChecksum(sum []byte, old, new uint16) {
	s := uint32(^binary.BigEndian.Uint16(sum)) + uint32(^old) + uint32(new)
	s = s&0xffff + s>>16
	s = s&0xffff + s>>16
	binary.BigEndian.PutUint16(sum, ^uint16(s))
}
