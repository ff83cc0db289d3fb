package wireguard

import (
	"encoding/binary"
	"net/netip"
)

const (
	protocolICMP   = 1
	protocolICMPv6 = 58

	maxICMPv4 = 576  // bytes of an error, at most (RFC 1812, section 4.3.2.3)
	maxICMPv6 = 1280 // (RFC 4443, section 2.4)
)

// unreachable makes the ICMP error that tells the sender of packet that its destination cannot be reached: host
// unreachable, or address unreachable for IPv6. It returns nil where no error may be sent: about ICMP errors, to or from
// what is not one host, about later fragments (RFC 1122, section 3.2.2; RFC 4443, section 2.4). The error's source is
// the packet's destination, since the tunnel itself has no address.
func unreachable(packet []byte) []byte {
	packet, src, ok := unpad(packet)
	if !ok {
		return nil
	}
	dst, _, _ := destination(packet)
	if !singleHost(src) || !singleHost(dst) {
		return nil
	}
	if src.Is4() {
		return unreachable4(packet, src, dst)
	}
	return unreachable6(packet, src, dst)
}

func singleHost(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func unreachable4(packet []byte, src, dst netip.Addr) []byte {
	header := int(packet[0]&15) * 4
	if header < ipv4Header || header > len(packet) || binary.BigEndian.Uint16(packet[6:])&0x1fff != 0 {
		return nil
	}
	if packet[9] == protocolICMP {
		if len(packet) <= header {
			return nil
		}
		switch packet[header] {
		case 0, 8, 13, 14, 15, 16, 17, 18: // queries and their answers
		default:
			return nil
		}
	}
	quoted := packet[:min(len(packet), maxICMPv4-ipv4Header-8)]
	r := make([]byte, ipv4Header+8+len(quoted))
	r[0], r[1], r[8], r[9] = 0x45, 0xc0, 64, protocolICMP
	binary.BigEndian.PutUint16(r[2:], uint16(len(r)))
	a, b := dst.As4(), src.As4()
	copy(r[12:], a[:])
	copy(r[16:], b[:])
	binary.BigEndian.PutUint16(r[10:], ^sum16(0, r[:ipv4Header]))
	icmp := r[ipv4Header:]
	icmp[0], icmp[1] = 3, 1 // destination unreachable, host
	copy(icmp[8:], quoted)
	binary.BigEndian.PutUint16(icmp[2:], ^sum16(0, icmp))
	return r
}

func unreachable6(packet []byte, src, dst netip.Addr) []byte {
	if !mayAnswer6(packet) {
		return nil
	}
	quoted := packet[:min(len(packet), maxICMPv6-ipv6Header-8)]
	r := make([]byte, ipv6Header+8+len(quoted))
	r[0], r[6], r[7] = 0x60, protocolICMPv6, 64
	binary.BigEndian.PutUint16(r[4:], uint16(len(r)-ipv6Header))
	a, b := dst.As16(), src.As16()
	copy(r[8:], a[:])
	copy(r[24:], b[:])
	icmp := r[ipv6Header:]
	icmp[0], icmp[1] = 1, 3 // destination unreachable, address
	copy(icmp[8:], quoted)
	pseudo := uint32(sum16(0, r[8:40])) + uint32(len(icmp)) + protocolICMPv6
	binary.BigEndian.PutUint16(icmp[2:], ^sum16(pseudo, icmp))
	return r
}

// mayAnswer6 walks the extension headers of an IPv6 packet: no later fragment and no ICMPv6 error is answered, nor what
// cannot be told from one.
func mayAnswer6(packet []byte) bool {
	next, at := packet[6], ipv6Header
	for range 8 {
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if at+8 > len(packet) {
				return false
			}
			next, at = packet[at], at+8+int(packet[at+1])*8
		case 44: // fragment
			if at+8 > len(packet) || binary.BigEndian.Uint16(packet[at+2:])&^7 != 0 {
				return false
			}
			next, at = packet[at], at+8
		case protocolICMPv6:
			return at < len(packet) && packet[at] >= 128
		default:
			return true
		}
	}
	return false
}

// sum16 is the Internet checksum's sum of b, not complemented.
func sum16(sum uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
