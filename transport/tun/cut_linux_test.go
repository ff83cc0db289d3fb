//go:build linux && !android

package tun

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// cutAll returns the packets into which a cutter divides p, in as many batches as it needs. The parameter before is the number of
// other packets that the first batch already contains.
func cutAll(t *testing.T, h virtio, p []byte, before int) (out [][]byte, ok bool) {
	b := new(wireguard.Batch)
	for range before {
		b.Append([]byte("xyz"))
	}
	var c cutter
	if !c.begin(h, p) {
		return nil, false
	}
	for rounds := 0; ; rounds++ {
		done := c.into(b)
		for i := range b.Len() {
			if i >= before || rounds > 0 {
				out = append(out, bytes.Clone(b.Packet(i)))
			}
		}
		if done != !c.pending() {
			t.Fatalf("into returned %v and pending returned %v, want opposite values", done, c.pending())
		}
		if done {
			b.Reset()
			return out, true
		}
		if rounds > 0 && b.Len() == 0 {
			t.Fatal("the cutter put no packet into an empty batch")
		}
		b.Reset()
	}
}

// FuzzCut checks that a cutter makes the same segments of a packet as a simple, slow implementation (shape.split).
func FuzzCut(f *testing.F) {
	f.Add(int64(1), false, false, uint8(3), uint16(1368), uint16(60000), uint8(0), true)
	f.Add(int64(2), true, false, uint8(3), uint16(1348), uint16(61000), uint8(90), true)
	f.Add(int64(3), false, false, uint8(0), uint16(1), uint16(300), uint8(127), true)
	f.Add(int64(4), false, true, uint8(0), uint16(1392), uint16(60000), uint8(128), true)
	f.Add(int64(5), true, true, uint8(0), uint16(1372), uint16(3000), uint8(1), false)
	f.Add(int64(6), true, true, uint8(2), uint16(100), uint16(3000), uint8(1), true)
	f.Add(int64(7), false, false, uint8(3), uint16(0), uint16(40), uint8(0), true)
	f.Add(int64(8), true, true, uint8(0), uint16(0), uint16(9), uint8(0), true)
	f.Add(int64(9), true, false, uint8(0), uint16(0), uint16(0), uint8(0), false)
	f.Fuzz(func(t *testing.T, seed int64, v6, udp bool, words uint8, size, n uint16, before uint8, sums bool) {
		p, s := newPacket(rand.New(rand.NewSource(seed)), v6, udp, int(words%11), int(n)%(65535-140))
		want := [][]byte{p}
		h := virtio{size: size}
		if size > 0 {
			h.gso = gsoTCP4
			if v6 {
				h.gso = gsoTCP6
			}
			if udp {
				h.gso = gsoUDP
			}
			if least := (len(p) - s.l4) / 500; int(h.size) < least {
				h.size = uint16(least) // at most about 500 segments
			}
			want = s.split(p, int(h.size))
			if !udp && p[s.l3+13]&0x80 != 0 {
				h.gso |= gsoECN
			}
		}
		in := bytes.Clone(p)
		if extended := v6 && s.l3 > 40; sums || extended && size > 0 {
			h.flags, h.start, h.offset = needsSum, uint16(s.l3), uint16(s.sumAt()-s.l3)
			s.partial(in)
		}
		got, ok := cutAll(t, h, in, int(before)%129)
		if !ok {
			t.Fatal("the cutter refused a valid packet")
		}
		if len(got) != len(want) {
			t.Fatalf("the cutter made %d segments, want %d", len(got), len(want))
		}
		for i := range want {
			if got := got[i]; !bytes.Equal(got, want[i]) {
				// In TCP, the checksums 0 and 0xffff are equivalent.
				if at := s.sumAt(); udp || binary.BigEndian.Uint16(got[at:]) != 0xffff || binary.BigEndian.Uint16(want[i][at:]) != 0 ||
					!bytes.Equal(got[:at], want[i][:at]) || !bytes.Equal(got[at+2:], want[i][at+2:]) {
					t.Fatalf("segment %d of %d is\n%x\nwant\n%x", i, len(want), got, want[i])
				}
			}
		}
	})
}

// FuzzCutHostile checks that a cutter neither panics nor changes its input, whatever the packet and the virtio header contain.
// Other programs can make the packets and headers that the kernel passes on.
func FuzzCutHostile(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			p, s := newPacket(rand.New(rand.NewSource(1)), v6, udp, 0, 300)
			f.Add(uint8(needsSum), uint8(gsoTCP4), uint16(100), uint16(s.l3), uint16(s.sumAt()-s.l3), p)
			f.Add(uint8(needsSum), uint8(gsoTCP6), uint16(100), uint16(s.l3), uint16(s.sumAt()-s.l3), p)
			f.Add(uint8(0), uint8(gsoUDP), uint16(1), uint16(0), uint16(0), p)
			f.Add(uint8(needsSum), uint8(gsoNone), uint16(1), uint16(299), uint16(50), p)
		}
	}
	f.Fuzz(func(t *testing.T, flags, gso uint8, size, start, offset uint16, p []byte) {
		in := bytes.Clone(p)
		out, ok := cutAll(t, virtio{flags: flags, gso: gso, size: size, start: start, offset: offset}, in, 0)
		if ok && len(out) == 0 {
			t.Error("the cutter accepted a packet and made no segment of it")
		}
		if !bytes.Equal(p, in) {
			t.Error("the cutter changed its input")
		}
	})
}

// TestCutRefusesHugeSegments checks that a cutter refuses a packet with a segment that is too large for an IP packet. Such a
// segment fits into no batch, so the cutter could never finish.
func TestCutRefusesHugeSegments(t *testing.T) {
	const most = 65535
	for _, total := range []int{most, most + 1, most + packet.IP6Header} {
		p := make([]byte, total)
		p[0], p[packet.IP6Next], p[packet.IP6Header+packet.TCPOffset] = 6<<4, packet.TCP, 5<<4
		out, ok := cutAll(t, virtio{flags: needsSum, gso: gsoTCP6, size: most, start: packet.IP6Header, offset: packet.TCPChecksum}, p, 0)
		if ok != (total <= most) || ok && len(out[0]) != total {
			t.Errorf("%d bytes in one segment: the cutter accepted the packet: %v, want this only up to 65535 bytes", total, ok)
		}
	}
}

// TestCutAllocates checks that cutting a packet does not allocate.
func TestCutAllocates(t *testing.T) {
	if testkit.Race {
		t.Skip("under the race detector, sync.Pool drops objects at random")
	}
	for _, udp := range []bool{false, true} {
		p, s := newPacket(rand.New(rand.NewSource(1)), false, udp, 0, 60000)
		h := virtio{flags: needsSum, gso: gsoTCP4, size: 1300, start: uint16(s.l3), offset: uint16(s.sumAt() - s.l3)}
		if udp {
			h.gso = gsoUDP
		}
		s.partial(p)
		b := new(wireguard.Batch)
		var c cutter
		if n := testing.AllocsPerRun(100, func() {
			b.Reset()
			if !c.begin(h, p) || !c.into(b) {
				t.Fatal("the cutter refused a valid packet or did not finish it")
			}
		}); n != 0 {
			t.Errorf("cutting a packet of 47 segments allocates %v times, want 0", n)
		}
	}
}

func BenchmarkCut(b *testing.B) {
	p, s := newPacket(rand.New(rand.NewSource(1)), false, false, 3, 60000)
	h := virtio{flags: needsSum, gso: gsoTCP4, size: 1368, start: uint16(s.l3), offset: uint16(s.sumAt() - s.l3)}
	batch := new(wireguard.Batch)
	var c cutter
	b.SetBytes(60000)
	for b.Loop() {
		batch.Reset()
		c.begin(h, p)
		c.into(batch)
	}
}
