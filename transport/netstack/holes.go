package netstack

import (
	"slices"
	"time"
)

// holes are the bytes that a peer is missing, although later ones have arrived (RFC 2018). Each acknowledgement reports only the three
// newest ranges that have arrived, and holes remembers the others.
//
//	acknowledged       a hole        arrived       a hole     arrived         in flight
//	─────────────────┤             ├──────────────┤          ├───────────────┤───────────▶
//	                                                                        end
//
// Numbers of bytes wrap around, so they are compared by the sign of their difference. The zero value has end 0.
type holes struct {
	list    []hole // in order
	end     uint32 // the number after the last byte that has arrived
	missing int64  // bytes in list
	early   int64  // bytes that filled a hole before those that were sent again could have arrived; the owner takes them
}

// A hole has the bytes from the number from to the one before to.
type hole struct {
	from, to uint32
	since    time.Time // when later bytes arrived
	again    time.Time // when it was sent again last; zero if it was not
}

// maxHoles bounds list. When it is full, bytes beyond end count as in flight. They are sent again later, perhaps needlessly.
const maxHoles = 1024

func (h *holes) any() bool { return len(h.list) > 0 }

// acknowledge notes that all bytes before n have arrived.
func (h *holes) acknowledge(n uint32, now time.Time, trip time.Duration) {
	if len(h.list) > 0 {
		h.fill(h.list[0].from, n, now, trip)
	}
	if int32(n-h.end) > 0 {
		h.end = n
	}
}

// arrived notes that the bytes from the number from to the one before to have arrived.
func (h *holes) arrived(from, to uint32, now time.Time, trip time.Duration) {
	if int32(from-h.end) > 0 {
		if len(h.list) == maxHoles {
			return
		}
		h.list = append(h.list, hole{from: h.end, to: from, since: now})
		h.missing += int64(from - h.end)
		h.end = to
		return
	}
	h.fill(from, to, now, trip)
	if int32(to-h.end) > 0 {
		h.end = to
	}
}

// fill removes the bytes from the number from to the one before to from all holes.
func (h *holes) fill(from, to uint32, now time.Time, trip time.Duration) {
	first, _ := slices.BinarySearchFunc(h.list, from, func(g hole, n uint32) int {
		if int32(g.to-n) > 0 {
			return 1
		}
		return -1
	})
	last := first // the holes from first to last-1 are filled whole
	for last < len(h.list) && int32(h.list[last].from-to) < 0 {
		g := &h.list[last]
		start, end := g.from, g.to // of what is filled
		if int32(from-start) > 0 {
			start = from
		}
		if int32(to-end) < 0 {
			end = to
		}
		n := int64(end - start)
		h.missing -= n
		if !g.again.IsZero() && now.Sub(g.again) < trip/2 {
			h.early += n
		}
		switch {
		case start == g.from && end == g.to:
			last++
			continue
		case start == g.from:
			g.from = end
		case end == g.to:
			g.to = start
			if first == last {
				first, last = first+1, last+1
				continue
			}
		case len(h.list) < maxHoles:
			rest := *g
			rest.from = end
			g.to = start
			h.list = slices.Insert(h.list, last+1, rest)
		default:
			h.missing += n // no room for the rest; all of the hole stays
		}
		break
	}
	h.list = slices.Delete(h.list, first, last)
}

// lost reports whether the hole is to be sent now: when enough later bytes have arrived, which passed says, or when it is still there a
// round trip after the first of them; and once more when what was sent again should have arrived.
func (g *hole) lost(now time.Time, trip time.Duration, passed bool) bool {
	if g.again.IsZero() {
		return passed || now.Sub(g.since) >= trip
	}
	return now.Sub(g.again) >= trip*5/4
}

// lost calls again for each hole that is lost, in order, until that are n bytes or again returns false. It is enough if as many bytes
// as reordered have arrived after a hole.
func (h *holes) lost(now time.Time, trip time.Duration, reordered int, n int64, again func(*hole) bool) {
	for i := 0; i < len(h.list) && n > 0; i++ {
		g := &h.list[i]
		if !g.lost(now, trip, int(int32(h.end-g.to)) >= reordered) {
			continue
		}
		if int64(g.to-g.from) > n && len(h.list) < maxHoles {
			rest := *g
			rest.from = g.from + uint32(n)
			h.list = slices.Insert(h.list, i+1, rest)
			g = &h.list[i]
			g.to = rest.from
		}
		n -= int64(g.to - g.from)
		if !again(g) {
			return
		}
	}
}
