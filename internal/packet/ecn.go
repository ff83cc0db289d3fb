package packet

import "encoding/binary"

// ECNMask selects the ECN bits of a type of service.
const ECNMask = 3

// These are the values of the ECN bits (RFC 3168).
const (
	ecnNotECT = iota
	ecnECT1
	ecnECT0
	ecnCE
)

// OuterTOS returns the type of service of the outer packet for an inner packet with the given ECN bits. The outer packet has the
// same bits, so that a congested router marks the packet instead of dropping it. The exception is CE, a congestion mark that is
// already set: the outer packet then has ECT(0). The DSCP is 0. (RFC 6040, compatibility mode for CE, as on Linux.)
func OuterTOS(ecn uint8) uint8 {
	if ecn == ecnCE {
		return ecnECT0
	}
	return ecn
}

// DecapsulateECN copies a congestion mark from the outer packet's type of service to the inner packet p (RFC 6040,
// section 4.2). mismatch is true if there was congestion and the inner packet cannot carry the mark.
func DecapsulateECN(outer uint8, p []byte) (mismatch bool) {
	outer &= ECNMask
	if outer != ecnCE && outer != ecnECT1 {
		return false
	}
	v4 := p[0]>>4 == 4
	inner := p[1] & ECNMask
	if !v4 {
		inner = p[1] >> 4 & ECNMask
	}
	switch {
	case inner == ecnNotECT:
		return outer == ecnCE
	case outer == ecnECT1 && inner != ecnECT0, inner == ecnCE:
		return false
	case v4:
		old, sum := binary.BigEndian.Uint16(p), p[IP4Checksum:]
		p[1] = p[1]&^ECNMask | outer
		// The update follows RFC 1624, equation 3. A wrong checksum stays wrong.
		binary.BigEndian.PutUint16(sum, ^Add(Add(^binary.BigEndian.Uint16(sum), ^old), binary.BigEndian.Uint16(p)))
	default:
		p[1] = p[1]&^(ECNMask<<4) | outer<<4
	}
	return false
}
