package netstack

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// want fails the test unless the holes in h are exactly the bytes that have not arrived, between the sequence number first+acked
// and the last byte that has arrived.
func (h *holes) want(t *testing.T, first uint32, acked int, arrived []bool) {
	t.Helper()
	end := acked
	for i := acked; i < len(arrived); i++ {
		if arrived[i] {
			end = i + 1
		}
	}
	if got := int(h.end - first); got != end {
		t.Fatalf("the field end is %d bytes after the first byte, want %d", got, end)
	}
	missing, at := int64(0), acked
	for _, g := range h.list {
		from, to := int(g.from-first), int(g.to-first)
		for ; at < to; at++ {
			if arrived[at] == (at >= from) {
				t.Fatalf("byte %d has arrived: %t; this contradicts the holes %v", at, arrived[at], h.list)
			}
		}
		missing += int64(to - from)
	}
	for ; at < end; at++ {
		if !arrived[at] {
			t.Fatalf("byte %d is missing, but it is not in the holes %v", at, h.list)
		}
	}
	if missing != h.missing {
		t.Fatalf("the holes have %d bytes, but the field missing is %d", missing, h.missing)
	}
}

// TestHoles lets ranges of bytes arrive at random, and checks the holes. The sequence numbers wrap around.
func TestHoles(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		first := -uint32(r.IntN(600))
		h, arrived, acked := holes{end: first}, make([]bool, 600), 0
		for range 150 {
			if r.IntN(4) == 0 {
				acked += r.IntN(12)
				for i := range min(acked, len(arrived)) {
					arrived[i] = true
				}
				for acked = min(acked, len(arrived)); acked < len(arrived) && arrived[acked]; acked++ {
				}
				h.acknowledge(first+uint32(acked), time.Time{}, 0)
			} else if from := acked + 1 + r.IntN(200); from < len(arrived) {
				to := min(from+1+r.IntN(40), len(arrived))
				for i := from; i < to; i++ {
					arrived[i] = true
				}
				h.arrived(first+uint32(from), first+uint32(to), time.Time{}, 0)
			}
			h.want(t, first, acked, arrived)
		}
	}
}

// TestHolesBound checks that the holes and the count of missing bytes stay correct when the list is full.
func TestHolesBound(t *testing.T) {
	h := holes{}
	for i := range uint32(2 * maxHoles) {
		h.arrived(10*i+5, 10*i+6, time.Time{}, 0)
	}
	if len(h.list) != maxHoles || h.end != 10*(maxHoles-1)+6 {
		t.Errorf("the list has %d holes and ends at %d, want %d holes and the end of the last one", len(h.list), h.end, maxHoles)
	}
	n := 0
	h.lost(time.Now(), 0, 0, 2, func(g *hole) bool {
		n += int(g.to - g.from)
		return true
	})
	if n != 2 || len(h.list) != maxHoles {
		t.Errorf("with a full list, lost passed %d bytes to its callback and left %d holes, want 2 and %d", n, len(h.list), maxHoles)
	}
	before := h.missing
	if h.arrived(2, 3, time.Time{}, 0); len(h.list) != maxHoles || h.missing != before {
		t.Errorf("after a part of a hole arrived, there are %d holes with %d missing bytes, want %d and %d", len(h.list), h.missing, maxHoles, before)
	}
	h.acknowledge(100, time.Time{}, 0)
	if h.arrived(101, 102, time.Time{}, 0); h.list[0] != (hole{from: 100, to: 101}) {
		t.Errorf("the first hole is %v, want [100, 101)", h.list[0])
	}
}

// TestLostHoles checks when a hole counts as lost: when enough bytes after it have arrived, or after a round trip. The hole is lost
// again 5/4 of a round trip after its bytes were sent again. A hole with more bytes than may be sent is split.
func TestLostHoles(t *testing.T) {
	const trip, reordered = 40 * time.Millisecond, 3000
	begin := time.Now()
	h := holes{}
	lost := func(after time.Duration, n int64) (is []int) {
		now := begin.Add(after)
		h.lost(now, trip, reordered, n, func(g *hole) bool {
			g.again = now
			is = append(is, int(g.from), int(g.to))
			return true
		})
		return is
	}
	for _, c := range []struct {
		name     string
		from, to uint32 // the range that arrives
		after    time.Duration
		may      int64
		want     []int
	}{
		{"one segment after the first hole", 2000, 3000, 0, 1 << 20, nil},
		{"three segments after the first hole", 3000, 5000, time.Millisecond, 1 << 20, []int{0, 2000}},
		{"the first hole was sent again just now", 5000, 6000, 2 * time.Millisecond, 1 << 20, nil},
		{"a second hole", 9000, 13_000, 10 * time.Millisecond, 1000, []int{6000, 7000}},
		{"the rest of the second hole", 13_000, 13_100, 11 * time.Millisecond, 5000, []int{7000, 9000}},
		{"a third hole, not yet lost", 14_000, 14_100, 12 * time.Millisecond, 5000, nil},
		{"the first hole again", 14_100, 14_200, 51 * time.Millisecond, 5000, []int{0, 2000}},
		{"the third hole after a round trip, and the second one again", 14_200, 14_300, 62 * time.Millisecond, 5000, []int{6000, 7000, 7000, 9000, 13_100, 14_000}},
	} {
		if h.arrived(c.from, c.to, begin.Add(c.after), trip); !slices.Equal(lost(c.after, c.may), c.want) {
			t.Errorf("%s: the holes are %v, want lost to pass exactly the ranges %v to its callback", c.name, h.list, c.want)
		}
	}
	h.acknowledge(2000, begin.Add(60*time.Millisecond), trip)
	if h.early != 2000 {
		t.Errorf("%d bytes arrived before they could have been sent again, want 2,000", h.early)
	}
}
