package segment

import (
	"bytes"
	"math/rand"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

func TestSum(t *testing.T) {
	rnd := rand.New(rand.NewSource(1))
	ones := make([]byte, 300)
	for i := range ones {
		ones[i] = 0xff
	}
	for n := range 300 {
		b := make([]byte, n)
		rnd.Read(b)
		initial := uint16(rnd.Uint32())
		for _, x := range []struct {
			b       []byte
			initial uint16
		}{{b, 0}, {b, initial}, {b, 0xffff}, {ones[:n], 0}, {ones[:n], initial}, {ones[:n], 0xffff}, {make([]byte, n), 0}} {
			got, want := Sum(x.b, x.initial), checksum.Checksum(x.b, x.initial)
			if got != want && (got != 0xffff || want != 0) && (got != 0 || want != 0xffff) { // two names for nothing
				t.Fatalf("%d bytes, initially %#x: %#x, want %#x", n, x.initial, got, want)
			}
			if slow := ^slowSum(append([]byte{byte(x.initial >> 8), byte(x.initial)}, x.b...)); got != slow {
				t.Fatalf("%d bytes, initially %#x: %#x, by the letter %#x", n, x.initial, got, slow)
			}
		}
	}
}

func BenchmarkSum(b *testing.B) {
	p := make([]byte, 1400)
	rand.New(rand.NewSource(1)).Read(p)
	for name, sum := range map[string]func([]byte, uint16) uint16{"ours": Sum, "gvisor": checksum.Checksum} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				sum(p, 1)
			}
		})
	}
}

// slowSum is the checksum of b, by the letter of RFC 1071: pairs of bytes, one after the other.
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

// TestAdd lets a sum of two parts be that of the whole.
func TestAdd(t *testing.T) {
	for _, x := range []struct{ a, b, want uint16 }{{1, 2, 3}, {0xffff, 1, 1}, {0xffff, 0xffff, 0xffff}, {0x8000, 0x8000, 1}} {
		if got := Add(x.a, x.b); got != x.want {
			t.Errorf("Add(%#x, %#x) is %#x, want %#x", x.a, x.b, got, x.want)
		}
	}
}
