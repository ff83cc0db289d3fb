package netstack

import (
	"slices"
	"sort"
	"time"
)

// holes are the ranges of bytes that the TCP peer has not received although it has received later ones (RFC 2018). Each
// acknowledgement reports only the three newest ranges that have arrived. So this type also takes into account the ranges that
// earlier acknowledgements reported.
//
//	acknowledged       a hole        arrived       a hole     arrived         in flight
//	─────────────────┤             ├──────────────┤          ├───────────────┤───────────▶
//	                                                                        end
//
// Sequence numbers wrap around, so they are compared by the sign of their difference. The zero value has no holes, and 0 in the
// field end.
type holes struct {
	list    []hole // in order
	end     uint32 // the sequence number after the last byte that has arrived
	missing int64  // bytes in list
	early   int64  // bytes that arrived so soon after they were sent again that the first copy was only late; see longPath.selected
}

// A hole is the missing bytes with the sequence numbers [from, to).
type hole struct {
	from, to uint32
	since    time.Time // when bytes after the hole first arrived
	again    time.Time // when the bytes were last sent again; zero if they were not
}

// maxHoles is how many holes list may have. While list is full, bytes that arrive beyond end still count as in flight, and may
// needlessly be sent again.
const maxHoles = 1024

func (h *holes) any() bool { return len(h.list) > 0 }

// acknowledge notes that all bytes with sequence numbers below n have arrived. trip is how long a round trip takes, here and in the
// other methods.
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
		start, end := g.from, g.to // the part of g that is filled has the numbers [start, end)
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
			h.missing += n // list is full, so the whole hole stays
		}
		break
	}
	h.list = slices.Delete(h.list, first, last)
}

// lost reports whether the bytes of the hole should be sent again now. passed says that enough later bytes have arrived. Before
// the bytes are sent again for the first time, lost returns true if passed is set, or if a round trip has passed since the
// first later byte arrived. After that, lost returns true when the bytes that were last sent again should have arrived.
func (g *hole) lost(now time.Time, trip time.Duration, passed bool) bool {
	if g.again.IsZero() {
		return passed || now.Sub(g.since) >= trip
	}
	return now.Sub(g.again) >= trip*5/4
}

// lost calls yield for the lost holes, in order, until they add up to n bytes or yield returns false. If a hole has more bytes
// than are left of n, lost splits the hole. A hole is lost if the last byte that has arrived is at least reordered bytes after
// it; see hole.lost for the other conditions.
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
			g.again = part.again // list is full, so the rest counts as sent again too
		}
		if !ok {
			return
		}
	}
}
