package netstack

import (
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// shortestTrip is the shortest time over which a growth measures. On shorter paths, waking goroutines takes longer than a
// round trip.
const shortestTrip = 4 * time.Millisecond

// longerAfter is how long a growth compares before it believes that the path has become longer.
const longerAfter = 2 * time.Second

// A growth decides how large a buffer of a connection should be, from how much Read or Write moved within a round trip. It replaces
// gVisor's own decisions. gVisor never asks again for a larger receive buffer after the budget has refused one. Its send buffer
// grows with the congestion window, which has no bound on a path without loss.
//
// The round trip is the least that was measured, because a larger buffer makes the queues on the way longer, those inside this
// process too. The present round trip, which includes the queues, would therefore let a buffer grow because it has grown.
//
// A send buffer that has become larger takes bytes from Write at once, which says nothing about the path. So these bytes do not
// count; see fill.
//
// The zero value is ready.
type growth struct {
	bytes  int           // moved since begun; negative while they fill a buffer that has become larger
	look   int           // how many to move before the next look at the clock
	per    int64         // bytes moved in the last round trip
	last   int64         // bytes moved in the round trip before the last one
	more   int64         // how many more bytes the last round trip moved than the one before; at least 0
	most   int64         // the most that steady returned
	trip   time.Duration // the least round trip; 0 before the first measurement
	queued bool          // the present round trip is so long that a queue on the path must be filling
	begun  time.Time
	passed time.Duration // from begun to the last look
	longer longer
}

// A longer finds out that a path has become longer, after the program has moved to another network for example. Queues alone
// make a round trip longer too. But if the buffers do not suffice for the longer path, the connection moves fewer bytes than
// before.
type longer struct {
	begun time.Time     // when this comparison began; zero before the first measurement
	bytes int64         // moved since begun
	least time.Duration // the least round trip since begun
	best  float64       // the most bytes per second of a comparison
}

// moved notes that n bytes were read from or written to a buffer of size bytes. It reports whether a round trip has passed,
// and measure should be called.
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

// measure ends a round trip, and begins the next one. trip is how long gVisor says that one takes.
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

// path notes that bytes were moved before now, and that a round trip takes trip. known is the least round trip so far. path reports
// whether the path has become longer than that.
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

// recvNeed returns the size that the receive buffer should have. A window is half of it. It should be four times what the path
// carries in a round trip: while a missing segment is asked for and sent again, those after it wait in the buffer. It should be
// much more while the other end of a long path doubles what it sends in each round trip.
func (g *growth) recvNeed() int64 {
	if g.trip == shortestTrip {
		return 4 * g.steady()
	}
	return 8*g.per + 8*g.more
}

// sendNeed returns the size that the send buffer should have: four times what the path carries in a round trip. While a segment is
// missing, nothing leaves the buffer, and the connection must not run out of bytes to send until the segment has arrived. On a short
// path, which carries more in shortestTrip than in a round trip, twice as much as in shortestTrip suffices, unless a queue makes the
// present round trips longer.
func (g *growth) sendNeed() int64 {
	switch {
	case g.queued:
		return 4 * g.steady()
	case g.trip == shortestTrip:
		return 2 * g.steady()
	}
	return 4*g.per + 4*g.more
}

// sendExcess reports whether a send buffer of size bytes is so large that it only keeps a queue on the path filled, which delays
// everything else on that path. most is the size that suffices: four times the most that a round trip carried; see sendNeed. It
// does not depend on what Write moves now: if another sender has filled the queue, Write moves less than before. A size that
// followed Write would then shrink further and further, and the other sender would get the whole path.
func (g *growth) sendExcess(size int64) (most int64, is bool) {
	most = 4 * g.most
	return most, g.queued && g.trip > shortestTrip && g.most > 0 && size > most+most/4
}

// steady returns how many bytes a short path carried in each of the last two measurements. One of them alone says little: a
// goroutine that waited for a processor moves at once what has gathered meanwhile.
func (g *growth) steady() int64 { return min(g.last, g.per) }

// infos are for measuredTrip. GetSockOpt takes an interface, so each of its arguments is on the heap.
var infos = sync.Pool{New: func() any { return new(tcpip.TCPInfoOption) }}

// measuredTrip returns the round trip that gVisor measured, or 0.
func measuredTrip(ep tcpip.Endpoint) time.Duration {
	info := infos.Get().(*tcpip.TCPInfoOption)
	defer infos.Put(info)
	if err := ep.GetSockOpt(info); err != nil {
		return 0
	}
	return info.RTT
}
