package netstack

import (
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// shortestTrip is the shortest time over which a growth measures. On shorter paths, waking goroutines takes longer than a
// round trip.
const shortestTrip = 2 * time.Millisecond

// A growth decides how large the receive buffer of a connection should be, from how much Read returned within a round trip.
// It replaces gVisor's own decision, which never asks again after the budget has refused. The zero value is ready.
type growth struct {
	bytes  int           // read since begun
	look   int           // how many to read before the next look at the clock
	last   int64         // bytes read in the previous round trip
	trip   time.Duration // the round trip; 0 before the first measurement
	begun  time.Time
	passed time.Duration // from begun to the last look
}

// read notes that n bytes were read from a receive buffer of size bytes. It reports whether a round trip has passed, and want
// should be called.
func (g *growth) read(n int, size int64) (due bool) {
	if g.bytes += n; g.bytes < g.look {
		return false
	}
	if g.passed = time.Since(g.begun); g.passed < g.trip*7/8 {
		g.look = g.bytes + int(size/16)
		return false
	}
	return true
}

// want returns the size that a receive buffer of size bytes should have, and begins to measure over the next round trip,
// which takes trip.
func (g *growth) want(size int64, trip time.Duration) (want int64) {
	if g.trip > 0 {
		per := int64(float64(g.bytes) * float64(g.trip) / float64(g.passed))
		// A window is half of the buffer. It should be twice what the path carries in a round trip, and much more
		// while the other end doubles what it sends in each.
		want = 4*per + 8*max(per-g.last, 0)
		g.last = per
	}
	g.trip = max(trip, shortestTrip)
	g.begun, g.bytes, g.look = time.Now(), 0, int(size/16)
	return max(want, size)
}

// measuredTrip returns the round trip that gVisor measured, or 0.
func measuredTrip(ep tcpip.Endpoint) time.Duration {
	var info tcpip.TCPInfoOption
	if err := ep.GetSockOpt(&info); err != nil {
		return 0
	}
	return info.RTT
}

// sendNeed returns the size that the send buffer should have: twice what may be in flight.
func sendNeed(ep tcpip.Endpoint, mtu int) int64 {
	var info tcpip.TCPInfoOption
	if err := ep.GetSockOpt(&info); err != nil {
		return 0
	}
	return 2 * int64(info.SndCwnd) * int64(mtu)
}
