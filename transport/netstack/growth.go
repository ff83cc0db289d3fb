package netstack

import (
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// shortestTrip is the shortest time over which a growth measures. If round trips are shorter, waking a goroutine takes longer
// than a round trip.
const shortestTrip = 4 * time.Millisecond

// longerAfter is the shortest duration of a comparison of rates; see the type longer.
const longerAfter = 2 * time.Second

// A growth decides how large a buffer of a connection should be, from how many bytes Read or Write moved within a round trip.
// It replaces gVisor's own decisions for two reasons. gVisor never asks again for a larger receive buffer after the budget has
// refused one. And its send buffer grows with the congestion window, which has no bound on a path without loss.
//
// A growth uses the shortest round trip that was measured. A larger buffer makes the queues on the path longer, including those
// inside this process, and so it makes round trips longer. If a growth used the present round trip, a buffer would grow only
// because it has grown before.
//
// A send buffer that has become larger accepts bytes from Write at once. These bytes say nothing about the path, so they do not
// count; see fill.
//
// The zero value is ready.
type growth struct {
	bytes  int           // bytes moved since this measurement began; negative while Write fills a send buffer that has grown
	look   int           // the value of bytes at which moved reads the clock again
	per    int64         // bytes moved in the last round trip
	last   int64         // bytes moved in the round trip before the last one
	more   int64         // how many more bytes the last round trip moved than the one before; at least 0
	most   int64         // the largest result of steady, since the path last became longer
	trip   time.Duration // the shortest round trip; 0 before the first measurement
	queued bool          // the present round trip is so long that a queue on the path must be filling
	begun  time.Time     // when this measurement began
	passed time.Duration // how long the measurement had taken when moved last read the clock
	longer longer
}

// A longer detects that a path has become longer, for example after the program has moved to another network. Queues alone make
// round trips longer too. But if the path itself is longer and the buffers do not suffice for it, the connection also moves
// fewer bytes than before. So a longer waits for both signs.
type longer struct {
	begun time.Time     // when this comparison began; zero before the first measurement
	bytes int64         // bytes moved since this comparison began
	least time.Duration // the shortest round trip since this comparison began
	best  float64       // the highest rate of a comparison, in bytes per second
}

// moved notes that n bytes were read from or written to a buffer of size bytes. It reports whether a round trip has passed since
// the measurement began; if so, the caller must call measure.
func (g *growth) moved(n int, size int64) (due bool) {
	if g.bytes += n; g.bytes < g.look {
		return false
	}
	if g.passed = time.Since(g.begun); g.passed < g.trip*7/8 {
		g.look = g.bytes + int(size/16)
		return false
	}
	return true
}

// measure ends the measurement of a round trip, and begins the next one. size is the size of the buffer in bytes. trip is how
// long a round trip takes according to gVisor.
func (g *growth) measure(size int64, trip time.Duration) {
	trip, now := max(trip, shortestTrip), time.Now()
	if g.trip > 0 {
		per := int64(float64(g.bytes) * float64(g.trip) / float64(max(g.passed, 1)))
		g.more, g.last, g.per = max(per-g.per, 0), g.per, per
		g.most = max(g.most, g.steady())
	}
	longer := g.longer.path(now, g.bytes, g.trip, trip)
	if g.trip == 0 || trip < g.trip || longer {
		g.trip = trip
	}
	if longer {
		g.most = 0
	}
	g.queued = trip > g.trip*3/2
	g.begun, g.bytes, g.look = now, 0, int(size/16)
}

// path notes how many bytes were moved since the last call of path, and that a round trip now takes the time trip. known is the
// shortest round trip measured before. The result says whether the network path has become longer since then.
func (l *longer) path(now time.Time, bytes int, known, trip time.Duration) bool {
	if l.begun.IsZero() {
		l.begun, l.least = now, trip
		return false
	}
	l.bytes, l.least = l.bytes+int64(bytes), min(l.least, trip)
	passed := now.Sub(l.begun)
	if passed < longerAfter {
		return false
	}
	rate := float64(l.bytes) / passed.Seconds()
	is := l.least > 2*known && 2*rate < l.best
	l.best = max(l.best, rate)
	if is {
		l.best = rate
	}
	l.begun, l.bytes, l.least = now, 0, trip
	return is
}

// fill notes that the send buffer has become n bytes larger.
func (g *growth) fill(n int64) { g.bytes -= int(n) }

// recvNeed returns the size that the receive buffer should have. The receive window is half of that size. On a long path, the
// window should be four times what the path carries in a round trip: while the sender repeats a lost segment, the segments after it
// wait in the buffer. The window should be even larger while the sender doubles what it sends in each round trip. On a short path,
// the window is twice what the path carries in shortestTrip.
func (g *growth) recvNeed() int64 {
	if g.trip == shortestTrip {
		return 4 * g.steady()
	}
	return 8*g.per + 8*g.more
}

// sendNeed returns the size that the send buffer should have: four times what the path carries in a round trip. While a segment
// is missing, nothing leaves the buffer, and the connection must not run out of bytes to send until the segment has arrived. On
// a short path, a growth measures over shortestTrip, which is longer than a round trip. Twice what the path carries in
// shortestTrip then suffices, unless a queue makes the present round trips longer.
func (g *growth) sendNeed() int64 {
	switch {
	case g.queued:
		return 4 * g.steady()
	case g.trip == shortestTrip:
		return 2 * g.steady()
	}
	return 4*g.per + 4*g.more
}

// sendExcess reports whether a send buffer of size bytes is so large that it only keeps a queue on the path filled, which
// delays everything else on that path. most is the size that suffices: four times the most that a round trip carried; see
// sendNeed. most does not depend on what Write moves now. If another sender fills the queue, Write moves less than before. If
// the result most also fell then, the buffer would shrink further and further, and the other sender would get the whole path.
func (g *growth) sendExcess(size int64) (most int64, is bool) {
	most = 4 * g.most
	return most, g.queued && g.trip > shortestTrip && g.most > 0 && size > most+most/4
}

// steady returns the smaller result of the last two measurements of a short path, in bytes. A single measurement may be far too
// high: a goroutine that has waited for a processor moves at once all bytes that have arrived meanwhile.
func (g *growth) steady() int64 { return min(g.last, g.per) }

// infos holds arguments of GetSockOpt for measuredTrip. GetSockOpt takes an interface, so a new argument would be allocated on
// the heap.
var infos = sync.Pool{New: func() any { return new(tcpip.TCPInfoOption) }}

// measuredTrip returns the round trip that gVisor measured, or 0 if there is none.
func measuredTrip(ep tcpip.Endpoint) time.Duration {
	info := infos.Get().(*tcpip.TCPInfoOption)
	defer infos.Put(info)
	if err := ep.GetSockOpt(info); err != nil {
		return 0
	}
	return info.RTT
}
