package netstack

import (
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// shortestTrip is the shortest time over which a growth measures. On shorter paths, waking goroutines takes longer than a
// round trip.
const shortestTrip = 4 * time.Millisecond

// A growth decides how large a buffer of a connection should be, from how much Read or Write moved within a round trip. It
// replaces gVisor's own decisions: that about the receive buffer never asks again after the budget has refused, and that about
// the send buffer grows with the congestion window, which has no bound on a path without loss. The zero value is ready.
type growth struct {
	bytes  int           // moved since begun
	look   int           // how many to move before the next look at the clock
	per    int64         // bytes moved in the last round trip
	more   int64         // how many more than in the one before
	trip   time.Duration // the round trip; 0 before the first measurement
	begun  time.Time
	passed time.Duration // from begun to the last look
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

// measure ends a round trip, and begins the next one, which takes trip.
func (g *growth) measure(size int64, trip time.Duration) {
	if g.trip > 0 {
		per := int64(float64(g.bytes) * float64(g.trip) / float64(max(g.passed, 1)))
		g.more, g.per = max(per-g.per, 0), per
	}
	g.trip = max(trip, shortestTrip)
	g.begun, g.bytes, g.look = time.Now(), 0, int(size/16)
}

// recvNeed returns the size that the receive buffer should have. A window is half of it. It should be twice what the path
// carries in a round trip, and much more while the other end of a long path doubles what it sends in each.
func (g *growth) recvNeed() int64 {
	if g.trip == shortestTrip {
		return 4 * g.per
	}
	return 4*g.per + 8*g.more
}

// sendNeed returns the size that the send buffer should have: as much again as is in flight.
func (g *growth) sendNeed() int64 { return 2*g.per + 4*g.more }

// measuredTrip returns the round trip that gVisor measured, or 0.
func measuredTrip(ep tcpip.Endpoint) time.Duration {
	var info tcpip.TCPInfoOption
	if err := ep.GetSockOpt(&info); err != nil {
		return 0
	}
	return info.RTT
}
