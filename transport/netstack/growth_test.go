package netstack

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestGrowth reads at a steady rate: the window, which is half of the buffer, ends at twice what a round trip carries.
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
		// A measurement takes up to a piece longer than a round trip. While it is the first, it counts as growth.
		if size < 4*perTrip || size > 14*perTrip {
			t.Errorf("the buffer is %d, want 4 to 14 times the %d bytes of a round trip", size, perTrip)
		}
	})
}

// TestGrowthKeepsUp lets twice as much arrive in each round trip, as slow start does. The window must not limit that.
func TestGrowthKeepsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const trip = 50 * time.Millisecond
		var g growth
		size := int64(256 << 10)
		for flight := 14 << 10; flight < 16<<20; flight *= 2 {
			// The acknowledgements of a flight's beginning open the window for its end.
			if int64(flight) > size*3/4 {
				t.Fatalf("a flight of %d bytes exceeds the window of a buffer of %d by half", flight, size)
			}
			for range 20 { // a flight arrives within a tenth of the round trip
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

// TestGrowthIdle reads little in each round trip, and on a path without a delay: the buffer stays as it is.
func TestGrowthIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, trip := range []time.Duration{0, time.Second} {
			var g growth
			for range 1000 {
				time.Sleep(trip + time.Millisecond)
				if g.moved(1000, 64<<10) {
					g.measure(64<<10, trip)
					if want := max(g.recvNeed(), g.sendNeed()); want > 64<<10 {
						t.Errorf("with a round trip of %v: the buffer should have %d bytes", trip, want)
					}
				}
			}
		}
	})
}
