package packet

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestOuterTOS(t *testing.T) {
	for ecn, want := range []uint8{ecnNotECT: ecnNotECT, ecnECT1: ecnECT1, ecnECT0: ecnECT0, ecnCE: ecnECT0} {
		if got := OuterTOS(uint8(ecn)); got != want {
			t.Errorf("OuterTOS of the inner ECN %d is %d, want %d", ecn, got, want)
		}
	}
}

// ecnTable[outer][inner] is the ECN field after decapsulation. It is figure 4 of RFC 6040, except that a packet with CE in the
// outer header and not-ECT in the inner header is delivered and counted.
var ecnTable = [4][4]uint8{
	ecnNotECT: {ecnNotECT: ecnNotECT, ecnECT1: ecnECT1, ecnECT0: ecnECT0, ecnCE: ecnCE},
	ecnECT0:   {ecnNotECT: ecnNotECT, ecnECT1: ecnECT1, ecnECT0: ecnECT0, ecnCE: ecnCE},
	ecnECT1:   {ecnNotECT: ecnNotECT, ecnECT1: ecnECT1, ecnECT0: ecnECT1, ecnCE: ecnCE},
	ecnCE:     {ecnNotECT: ecnNotECT, ecnECT1: ecnCE, ecnECT0: ecnCE, ecnCE: ecnCE},
}

func TestDecapsulateECN(t *testing.T) {
	for outer := range 256 { // the outer DSCP does not matter
		for inner := range 256 { // the inner DSCP does not change
			for _, id := range []uint16{0, 1, 0x7fff, 0xfffe, 0xffff, 0xbaff} { // each gives another checksum, some with carries
				p := ipv4(60, 60)
				p[1] = byte(inner)
				binary.BigEndian.PutUint16(p[4:], id)
				binary.BigEndian.PutUint16(p[10:], slowSum(p[:10], p[12:20]))
				want := bytes.Clone(p)
				want[1] = byte(inner)&^3 | ecnTable[outer&3][inner&3]
				binary.BigEndian.PutUint16(want[10:], slowSum(want[:10], want[12:20]))
				mismatch := DecapsulateECN(uint8(outer), p)
				if !bytes.Equal(p, want) {
					t.Fatalf("outer %#x, inner %#x: IPv4 header\n%x, want\n%x", outer, inner, p[:20], want[:20])
				}
				if wantMismatch := outer&3 == ecnCE && inner&3 == ecnNotECT; mismatch != wantMismatch {
					t.Fatalf("outer %#x, inner %#x: the mismatch is reported: %v, want it only for CE outside not-ECT", outer, inner, mismatch)
				}
			}
			p := ipv6(60, 60)
			binary.BigEndian.PutUint16(p, 6<<12|uint16(inner)<<4|0xa)
			want := bytes.Clone(p)
			binary.BigEndian.PutUint16(want, 6<<12|uint16(inner&^3|int(ecnTable[outer&3][inner&3]))<<4|0xa)
			mismatch := DecapsulateECN(uint8(outer), p)
			if !bytes.Equal(p, want) || mismatch != (outer&3 == ecnCE && inner&3 == ecnNotECT) {
				t.Fatalf("outer %#x, inner %#x: IPv6 header %x, want %x; the mismatch is reported: %v", outer, inner, p[:2], want[:2], mismatch)
			}
		}
	}
}

// TestDecapsulateECNKeepsErrors checks that a wrong header checksum stays wrong.
func TestDecapsulateECNKeepsErrors(t *testing.T) {
	for wrong := 1; wrong < 65535; wrong += 97 {
		p := ipv4(20, 20)
		p[1] = ecnECT0
		sum := slowSum(p[:10], p[12:20])
		binary.BigEndian.PutUint16(p[10:], uint16((int(sum)+wrong)%65535))
		DecapsulateECN(ecnCE, p)
		if slowSum(p[:10], p[12:20]) == binary.BigEndian.Uint16(p[10:]) {
			t.Fatalf("DecapsulateECN corrected a checksum that was wrong by %d", wrong)
		}
	}
}
