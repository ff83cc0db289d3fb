package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"strconv"
	"testing"
)

// slowSum returns the checksum of all bytes in bs. It computes the checksum literally as RFC 1071 says: it adds one pair of bytes
// after the other. The result is 0 for bytes that include their own checksum.
func slowSum(bs ...[]byte) uint16 {
	b := bytes.Join(bs, nil)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	sum := 0
	for ; len(b) > 0; b = b[2:] {
		sum += int(b[0])<<8 | int(b[1])
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func wantSum(t *testing.T, b []byte, initial uint16) {
	t.Helper()
	if got, want := Sum(b, initial), ^slowSum([]byte{byte(initial >> 8), byte(initial)}, b); got != want {
		t.Fatalf("the sum of %d bytes with the initial value %#x is %#x, want %#x", len(b), initial, got, want)
	}
}

func TestSum(t *testing.T) {
	rnd := rand.New(rand.NewSource(1))
	for n := range 300 {
		b := make([]byte, n)
		rnd.Read(b)
		for _, b := range [][]byte{b, bytes.Repeat([]byte{0xff}, n), make([]byte, n)} {
			for _, initial := range []uint16{0, 1, 0xfffe, 0xffff, uint16(rnd.Uint32())} {
				wantSum(t, b, initial)
			}
		}
	}
	wantSum(t, bytes.Repeat([]byte{0xff}, 131072), 0xffff)
	// RFC 1071, section 3.
	if got := Sum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, 0); got != 0xddf2 {
		t.Errorf("the sum is %#x, want 0xddf2", got)
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint16(0), 2)
	f.Add(bytes.Repeat([]byte{0xff}, 200), uint16(0xffff), 66)
	f.Fuzz(func(t *testing.T, b []byte, initial uint16, at int) {
		wantSum(t, b, initial)
		at = max(0, min(at, len(b))) &^ 1 // a part of odd length would shift the bytes that follow
		if got, want := Add(Sum(b[:at], initial), Sum(b[at:], 0)), Sum(b, initial); got != want {
			t.Fatalf("the sum of two parts, the first of %d bytes, is %#x, want %#x", at, got, want)
		}
	})
}

func TestAdd(t *testing.T) {
	for _, x := range []struct{ a, b, want uint16 }{{1, 2, 3}, {0xffff, 1, 1}, {0xffff, 0xffff, 0xffff}, {0x8000, 0x8000, 1}} {
		if got := Add(x.a, x.b); got != x.want {
			t.Errorf("Add(%#x, %#x) is %#x, want %#x", x.a, x.b, got, x.want)
		}
	}
}

// TestTransportSum checks that the pseudo-header has the addresses, the length and the protocol (RFC 9293, section 3.1; RFC 8200,
// section 8.1).
func TestTransportSum(t *testing.T) {
	for _, p := range [][]byte{packetOf(77, here, nowhere), packetOf(77, here6, nowhere6)} {
		l3, addresses := IP4Header, p[12:20]
		if p[0]>>4 == 6 {
			l3, addresses = IP6Header, p[8:40]
		}
		pseudo := binary.BigEndian.AppendUint16(append(bytes.Clone(addresses), 0, UDP), uint16(77-l3))
		if got, want := PseudoSum(p[:l3:l3], 77-l3), ^slowSum(pseudo); got != want {
			t.Errorf("the sum of the pseudo-header %x is %#x, want %#x", pseudo, got, want)
		}
		if got, want := TransportSum(p, l3), ^slowSum(pseudo, p[l3:]); got != want {
			t.Errorf("the sum of %x is %#x, want %#x", p, got, want)
		}
	}
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 64, 1400} {
		p := make([]byte, n)
		rand.New(rand.NewSource(1)).Read(p)
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				Sum(p, 1)
			}
		})
	}
}
