package netstack

import (
	"slices"
	"sort"
	"time"
)

// holes are the bytes that a peer is missing, although later ones have arrived (RFC 2018). Each acknowledgement reports only the
// three newest ranges that have arrived, and holes remembers the others.
//
//	acknowledged       a hole        arrived       a hole     arrived         in flight
//	─────────────────┤             ├──────────────┤          ├───────────────┤───────────▶
//	                                                                        end
//
// Sequence numbers wrap around, so they are compared by the sign of their difference. The zero value has end 0.
type holes struct {
	list    []hole // in order
	end     uint32 // the sequence number after the last byte that has arrived
	missing int64  // bytes in list
	early   int64  // bytes that filled a hole too early to be those that were sent again; the owner of holes sets this to 0
}

// A hole is the missing bytes with the sequence numbers [from, to).
type hole struct {
	from, to uint32
	since    time.Time // when later bytes arrived
	again    time.Time // when it was sent again last; zero if it was not
}

// maxHoles is how many holes list may have. While list is full, bytes that arrive beyond end still count as in flight, and may
// needlessly be sent again.
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

// arrived notes that the bytes with the numbers [from, to) have arrived.
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

// fill removes the bytes with the numbers [from, to) from all holes.
func (h *holes) fill(from, to uint32, now time.Time, trip time.Duration) {
	first := sort.Search(len(h.list), func(i int) bool { return int32(h.list[i].to-from) > 0 })
	last := first // the holes from first to last-1 are filled completely
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

// lost reports whether the bytes of the hole are to be sent again now. The first time, they are if enough later bytes have arrived,
// which passed says, or if a round trip has passed since the first of these arrived. After that, they are whenever the bytes that
// were sent again last should have arrived.
func (g *hole) lost(now time.Time, trip time.Duration, passed bool) bool {
	if g.again.IsZero() {
		return passed || now.Sub(g.since) >= trip
	}
	return now.Sub(g.again) >= trip*5/4
}

// lost calls yield for the holes that are lost, in order, until they add up to n bytes or yield returns false. It cuts a hole that
// has more bytes than are left of n. A hole is lost if at least as many bytes as reordered says have arrived after it; see
// hole.lost for the other reasons.
func (h *holes) lost(now time.Time, trip time.Duration, reordered int, n int64, yield func(*hole) bool) {
	for i := 0; i < len(h.list) && n > 0; i++ {
		g := &h.list[i]
		if !g.lost(now, trip, int(int32(h.end-g.to)) >= reordered) {
			continue
		}
		part := *g
		if int64(g.to-g.from) > n {
			part.to = g.from + uint32(n)
		}
		n -= int64(part.to - part.from)
		ok := yield(&part)
		switch {
		case part.to == g.to:
			*g = part
		case len(h.list) < maxHoles:
			g.from = part.to
			h.list = slices.Insert(h.list, i, part)
		default:
			g.again = part.again // the rest of the hole waits too
		}
		if !ok {
			return
		}
	}
}
