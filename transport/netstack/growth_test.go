package netstack

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// TestGrowth reads at a steady rate. It checks that the window, which is half of the buffer, ends at about four times what a
// round trip carries.
func TestGrowth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const trip = 100 * time.Millisecond
		const perTrip = 1 << 20
		var g growth
		size := int64(64 << 10)
		for range 100 {
			time.Sleep(trip / 10)
			if g.moved(perTrip/10, size) {
				g.measure(size, trip)
				size = max(size, g.recvNeed())
			}
		}
		// A measurement may be a tenth of a round trip too long. The first measurement also counts as growth, because nothing
		// was measured before.
		if size < 8*perTrip || size > 18*perTrip {
			t.Errorf("the buffer has %d bytes, want 8 to 18 times the %d bytes of a round trip", size, perTrip)
		}
	})
}

// TestGrowthKeepsUp doubles the bytes that arrive in each round trip, as slow start does. It checks that the window does not
// limit them.
func TestGrowthKeepsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const trip = 50 * time.Millisecond
		var g growth
		size := int64(256 << 10)
		for flight := 14 << 10; flight < 16<<20; flight *= 2 {
			// The acknowledgements of the first bytes of a round trip open the window for the last ones.
			if int64(flight) > size*3/4 {
				t.Fatalf("%d bytes are in flight, more than one and a half times the window of a buffer of %d bytes", flight, size)
			}
			for range 20 { // the bytes arrive within a tenth of the round trip
				time.Sleep(trip / 200)
				if g.moved(flight/20, size) {
					g.measure(size, trip)
					size = max(size, g.recvNeed())
				}
			}
			time.Sleep(trip * 9 / 10)
		}
	})
}

// TestGrowthIdle reads little in each round trip, on a long path and on a path without a delay. It checks that the buffer does
// not grow.
func TestGrowthIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, trip := range []time.Duration{0, time.Second} {
			var g growth
			for range 1000 {
				time.Sleep(trip + time.Millisecond)
				if g.moved(1000, 64<<10) {
					g.measure(64<<10, trip)
					if want := max(g.recvNeed(), g.sendNeed()); want > 64<<10 {
						t.Errorf("with a round trip of %v: the growth asks for a buffer of %d bytes, want at most 64 KiB", trip, want)
					}
				}
			}
		}
	})
}

// TestGrowthQueues simulates a path that delivers at a constant rate and queues everything else. So a larger buffer makes the round
// trip longer. The test checks that the buffer does not grow again just because its last growth made the round trip longer.
func TestGrowthQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, least := range []time.Duration{time.Millisecond, 50 * time.Millisecond} {
			var g growth
			size, step := int64(64<<10), max(least, shortestTrip)/10
			perTrip := 10 * int64(1<<20)
			for range 5000 {
				time.Sleep(step)
				if g.moved(1<<20, size) {
					g.measure(size, max(least, time.Duration(size>>20)*step))
					size = max(size, g.recvNeed(), g.sendNeed())
				}
			}
			if size > 18*perTrip {
				t.Errorf("with a round trip of %v: the buffer has %d bytes, want at most 18 times the %d bytes of a round trip", least, size, perTrip)
			}
		}
	})
}

// TestGrowthFill makes Write fill the send buffer whenever it has become larger, while each round trip carries the same number
// of bytes. It checks that the buffer does not grow because of these writes.
func TestGrowthFill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, trip := range []time.Duration{time.Millisecond, 50 * time.Millisecond} {
			const perTrip = 1 << 20
			var g growth
			size, room := int64(64<<10), int64(64<<10)
			for range 5000 {
				time.Sleep(max(trip, shortestTrip) / 10)
				room += perTrip / 10
				if g.moved(int(room), size) {
					g.measure(size, trip)
					need := max(size, g.sendNeed())
					g.fill(need - size)
					size, room = need, need-size
					continue
				}
				room = 0
			}
			if size < perTrip*15/8 || size > 8*perTrip {
				t.Errorf("with a round trip of %v: the buffer has %d bytes, want about 2 to 8 times the %d bytes of a round trip", trip, size, perTrip)
			}
		}
	})
}

// TestGrowthBurst simulates a short path, and a goroutine that sometimes waits for a processor and then moves many bytes at once.
// These bytes must not count as what the path carries.
func TestGrowthBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perTrip = 1 << 20
		var g growth
		size := int64(64 << 10)
		for i := range 5000 {
			n := perTrip / 10
			time.Sleep(shortestTrip / 10)
			if i%100 == 0 {
				n *= 100
			}
			if g.moved(n, size) {
				g.measure(size, time.Millisecond)
				size = max(size, g.recvNeed(), g.sendNeed())
			}
		}
		if size > 8*perTrip {
			t.Errorf("the buffer has %d bytes, want at most 8 times the %d bytes of a round trip", size, perTrip)
		}
	})
}

// TestGrowthLonger makes the round trip twenty times as long. The buffer then limits what a round trip carries, so the buffer must
// grow.
func TestGrowthLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 50 << 20 // bytes per second
		var g growth
		size, trip := int64(64<<10), 5*time.Millisecond
		for begun := time.Now(); time.Since(begun) < 40*time.Second; time.Sleep(trip / 10) {
			if time.Since(begun) > 10*time.Second {
				trip = 100 * time.Millisecond
			}
			window := float64(size) / 2
			if n := min(window, rate*trip.Seconds()) / 10; g.moved(int(n), size) {
				g.measure(size, trip)
				size = max(size, g.recvNeed())
			}
		}
		if want := int64(2 * rate / 10); size < want {
			t.Errorf("the buffer has %d bytes, want at least %d, so that the window holds what a round trip carries", size, want)
		}
	})
}

// TestGrowthExcess simulates a path with a long queue, which the send buffer fills after slow start. The buffer must shrink to
// about four times what a round trip carries. If another sender then fills the queue, the buffer must not shrink further.
func TestGrowthExcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const trip, perTrip = 50 * time.Millisecond, 1 << 20
		var g growth
		size := int64(16 * perTrip)
		send := func(trips int, others int64) {
			for range trips {
				now := max(trip*time.Duration(size+others)/perTrip, trip) // the bytes in flight beyond perTrip wait in the queue
				time.Sleep(now)
				if g.moved(int(size), size) {
					g.measure(size, now)
					if most, is := g.sendExcess(size); is {
						g.fill(most - size)
						size = most
					}
				}
			}
		}
		g.measure(size, trip) // the measurement of the handshake
		send(100, 0)
		if size < perTrip*31/8 || size > 5*perTrip {
			t.Errorf("the buffer has %d bytes, want about 4 to 5 times the %d bytes of a round trip", size, perTrip)
		}
		alone := size
		send(1000, 16*perTrip)
		if size < alone {
			t.Errorf("after another sender filled the queue, the buffer has %d bytes, want %d as before", size, alone)
		}
	})
}

// TestGrowthOfAShortPath checks that the send buffer of a short path has room for twice what the path carries in shortestTrip, or
// for four times what it carries if a queue is filling.
func TestGrowthOfAShortPath(t *testing.T) {
	g := growth{trip: shortestTrip, per: 1 << 20, last: 2 << 20}
	if got := g.sendNeed(); got != 2<<20 {
		t.Errorf("sendNeed asks for a send buffer of %d bytes, want 2 MiB", got)
	}
	g.queued = true
	if got := g.sendNeed(); got != 4<<20 {
		t.Errorf("with a queue, sendNeed asks for a send buffer of %d bytes, want 4 MiB", got)
	}
}

// TestMeasuredTripAllocatesNothing checks that measuredTrip does not allocate. Read and Write call it about once per round
// trip.
func TestMeasuredTripAllocatesNothing(t *testing.T) {
	_, s := accepted(t, handFlows["IPv4"][0], handFlows["IPv4"][1])
	testkit.NoAllocations(t, 1000, func() { measuredTrip(s.ep) })
}
