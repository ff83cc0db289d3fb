package layout

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// kernelPadding is Linux's calculate_skb_padding: it returns how many zeros follow a packet of n bytes. No subtraction wraps
// round, because the variable last is at most mtu.
func kernelPadding(n, mtu uint) uint {
	align := func(n uint) uint { return (n + 15) / 16 * 16 }
	if mtu == 0 {
		return align(n) - n
	}
	last := n
	if last > mtu {
		last = n % mtu
	}
	return min(mtu, align(last)) - last
}

func TestPadTable(t *testing.T) {
	for _, c := range []struct{ mtu, n, want int }{
		{0, 0, 0}, {0, 1, 16}, {0, 15, 16}, {0, 16, 16}, {0, 17, 32}, {0, 1420, 1424}, {0, 65535, 65536},
		{1420, 1, 16}, {1420, 1408, 1408}, {1420, 1409, 1420}, {1420, 1419, 1420}, {1420, 1420, 1420},
		{1420, 1421, 1436}, {1420, 2840, 2840}, {1420, 2839, 2840}, {1420, 2841, 2856}, // above the MTU: padded by the remainder
		{1280, 1279, 1280}, {1280, 1280, 1280}, {1280, 1281, 1296}, {1280, 20, 32},
		{9000, 8999, 9000}, {9000, 8992, 8992}, {9000, 9000, 9000}, {9000, 9001, 9016}, {9000, 1420, 1424},
		{1, 1, 1}, {1, 40, 40}, {15, 14, 15}, {16, 1, 16},
	} {
		if got := Pad(c.n, c.mtu); got != c.want {
			t.Errorf("a packet of %d bytes with MTU %d is padded to %d, want %d", c.n, c.mtu, got, c.want)
		}
	}
}

func TestPadLikeKernel(t *testing.T) {
	for _, mtu := range []int{0, 1, 15, 16, 17, 576, 1280, 1412, 1420, 1500, 9000, 65535, 1 << 20} {
		for n := 1; n <= 65535; n++ {
			got := Pad(n, mtu)
			if want := n + int(kernelPadding(uint(n), uint(mtu))); got != want {
				t.Fatalf("a packet of %d bytes with MTU %d is padded to %d, want %d", n, mtu, got, want)
			}
			if got < n || got > n+MaxPadding || mtu > 0 && n <= mtu && got > mtu {
				t.Fatalf("a packet of %d bytes with MTU %d is padded to %d, which is less than the packet, beyond the MTU, or too much", n, mtu, got)
			}
		}
	}
	if Pad(20, -1) != 32 {
		t.Error("a negative MTU limits the padding")
	}
}

// A packed describes a train: the number of its messages, their size, the size of the last message, and the TOS.
type packed struct {
	n, size, last int
	tos           uint8
}

// packSizes packs messages of the given sizes as one run, each behind headroom bytes, and returns the trains.
func packSizes(t rapid.TB, headroom int, sizes []int, tos []uint8) (got []packed) {
	var l Load
	var r Run
	l.Use(headroom)
	defer l.Free()
	for i, size := range sizes {
		n := size - headroom - Overhead
		if !l.Fits(n) {
			t.Fatalf("message %d does not fit", i)
		}
		l.Place(n, Pad(n, 0)).TOS = tos[i%len(tos)]
		l.Add(&r, i)
	}
	if r.Apart {
		t.Fatal("the only run is marked as having gaps between its messages")
	}
	at := 0
	for i := r.First; i != None; {
		var p packed
		var data []byte
		data, p.size, p.tos, i = l.Train(&r, i)
		if &data[0] != &l.slab[at] || cap(data) != len(data) {
			t.Fatalf("train %d does not begin where the previous train ends", len(got))
		}
		at += len(data)
		p.n = (len(data) + p.size - 1) / p.size
		p.last = len(data) - (p.n-1)*p.size
		got = append(got, p)
	}
	if at != l.end {
		t.Fatalf("%d of %d bytes are in the %d trains, want all", at, l.end, len(got))
	}
	return got
}

func TestTrains(t *testing.T) {
	repeat := func(n, size int) []int { return slices.Repeat([]int{size}, n) }
	none := []uint8{0}
	for _, c := range []struct {
		name  string
		sizes []int
		tos   []uint8
		want  []packed
	}{
		{"one", []int{1456}, none, []packed{{1, 1456, 1456, 0}}},
		{"equal", repeat(3, 1456), none, []packed{{3, 1456, 1456, 0}}},
		{"last one smaller", []int{1456, 1456, 96}, none, []packed{{3, 1456, 96, 0}}},
		{"smaller one ends it", []int{1456, 96, 1456}, none, []packed{{2, 1456, 96, 0}, {1, 1456, 1456, 0}}},
		{"larger one begins another", []int{96, 1456}, none, []packed{{1, 96, 96, 0}, {1, 1456, 1456, 0}}},
		{"smaller ones", []int{1456, 96, 96}, none, []packed{{2, 1456, 96, 0}, {1, 96, 96, 0}}},
		{"64 messages", repeat(65, 96), none, []packed{{64, 96, 96, 0}, {1, 96, 96, 0}}},
		{"128 messages", repeat(128, 48), none, []packed{{64, 48, 48, 0}, {64, 48, 48, 0}}},
		{"the 64th smaller", append(repeat(63, 96), 48, 48), none, []packed{{64, 96, 48, 0}, {1, 48, 48, 0}}},
		// 45 messages of 1,456 bytes take 65,520 bytes: one message more than fits into 65,507 bytes.
		{"65,507 bytes", repeat(45, 1456), none, []packed{{44, 1456, 1456, 0}, {1, 1456, 1456, 0}}},
		{"65,507 bytes, the last one smaller", append(repeat(44, 1456), 1440), none, []packed{{45, 1456, 1440, 0}}},
		{"larger than any datagram", []int{65552, 65552}, none, []packed{{1, 65552, 65552, 0}, {1, 65552, 65552, 0}}},
		{"TOS changes", repeat(4, 96), []uint8{0, 0, 2, 0}, []packed{{2, 96, 96, 0}, {1, 96, 96, 2}, {1, 96, 96, 0}}},
	} {
		if got := packSizes(t, 0, c.sizes, c.tos); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
	if got, want := packSizes(t, 16, repeat(45, 1456), none), []packed{{44, 1456, 1456, 0}, {1, 1456, 1456, 0}}; !slices.Equal(got, want) {
		t.Errorf("65,507 bytes with headroom: got %v, want %v", got, want)
	}
}

// TestTrainsProperties checks the limits of all trains, and that no train could also include the message after it.
func TestTrainsProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		headroom := rapid.SampledFrom([]int{0, 0, 10, 64}).Draw(t, "headroom")
		sizes := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) int {
			return headroom + rapid.SampledFrom([]int{48, 64, 96, 1440, 1456, 9040, 32784}).Draw(t, "size")
		}), 1, 128).Draw(t, "sizes")
		sum := 0
		for i, size := range sizes {
			if sum+size+MaxPadding > Size {
				sizes = sizes[:i]
				break
			}
			sum += size
		}
		tos := rapid.SliceOfN(rapid.SampledFrom([]uint8{0, 0, 0, 2}), 1, 128).Draw(t, "TOS")
		i := 0
		for _, p := range packSizes(t, headroom, sizes, tos) {
			bytes := (p.n-1)*p.size + p.last
			if p.n > 64 || p.n > 1 && bytes > 65507 || p.last > p.size {
				t.Fatalf("a train has %d messages and %d bytes, more than a train may have, or a last message that is too large: %+v", p.n, bytes, p)
			}
			for j := i; j < i+p.n; j++ {
				want := p.size
				if j == i+p.n-1 {
					want = p.last
				}
				if sizes[j] != want || tos[j%len(tos)] != p.tos {
					t.Fatalf("message %d has %d bytes, which does not fit its train %+v, or another TOS", j, sizes[j], p)
				}
			}
			i += p.n
			if i < len(sizes) && p.last == p.size && p.n < 64 && sizes[i] <= p.size && tos[i%len(tos)] == p.tos && bytes+sizes[i] <= 65507 {
				t.Fatalf("message %d would have fitted into the previous train", i)
			}
		}
		if i != len(sizes) {
			t.Fatalf("%d of %d messages are in trains, want all", i, len(sizes))
		}
	})
}

func TestConstants(t *testing.T) {
	if maxTrainBytes != 65535-20-8 || maxTrainMessages != 64 {
		t.Error("the limits of a train are not UDP_MAX_SEGMENTS messages and the largest UDP payload over IPv4")
	}
}

// TestRunsApart checks that a run with gaps between its packets is sealed into the second slab, without gaps and without the
// packets that were removed.
func TestRunsApart(t *testing.T) {
	const headroom = 8
	var l Load
	l.Use(headroom)
	defer l.Free()
	runs := []*Run{{Number: 0}, {Number: 1}}
	for i := range 8 {
		l.Put(runs[i%2], []byte{byte(i), byte(i), byte(i)}, 16, uint8(i%2))
	}
	if !runs[0].Apart || !runs[1].Apart {
		t.Fatal("a run with other packets between its packets is not marked as having gaps")
	}
	l.Remove(runs[1], func(pkt []byte) bool { return pkt[0] == 1 || pkt[0] == 5 })
	end := 0
	for n, want := range [][]byte{{0, 2, 4, 6}, {3, 7}} {
		r := runs[n]
		if r.N != len(want) || r.Size != len(want)*48 {
			t.Fatalf("run %d has %d packets and %d bytes, want %d packets", n, r.N, r.Size, len(want))
		}
		begin := end
		end = l.LayOut(r, end)
		nth := 0
		for i := r.First; i != None; i = l.Messages[i].Next {
			m := &l.Messages[i]
			message, padded := l.Sealing(r, m)
			if int(m.Nth) != nth || int(m.Run) != n || padded[0] != want[nth] || len(padded) != 16 || padded[3] != 0 {
				t.Errorf("run %d, message %d is %+v with the packet %x, want the next packet of the run with its padding", n, nth, m, padded)
			}
			if len(message) != 48 || &message[0] != &l.second[begin+headroom+nth*(48+headroom)] {
				t.Errorf("run %d: message %d does not follow the previous message in the second slab", n, nth)
			}
			nth++
		}
		data, size, tos, next := l.Train(r, r.First)
		if len(data) != end-begin || size != 48+headroom || int(tos) != n || next != None {
			t.Errorf("run %d: Train returned %d bytes, message size %d, TOS %d, next message %d; want one train with the whole run", n, len(data), size, tos, next)
		}
	}
	if got := l.Messages[1].Run; got != None {
		t.Errorf("a removed packet still belongs to run %d", got)
	}
	var other Load
	other.Use(0)
	defer other.Free()
	if !other.Takes(runs[0]) || other.Takes(&Run{N: 1, Size: Size + 1}) || other.Takes(&Run{N: MaxPackets + 1}) {
		t.Error("Takes refused a run that fits, or accepted one that does not fit")
	}
}
