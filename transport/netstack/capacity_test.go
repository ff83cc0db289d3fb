package netstack

import (
	"testing"
	"testing/synctest"
	"time"
)

// A line simulates a path in virtual time, with a queue at its entrance, and a sender that always sends as much as the capacity
// allows. The sender begins with an initial window of 14 KiB. In slow start, it sends two bytes for each byte that is
// delivered.
type line struct {
	c         capacity
	trip      time.Duration
	rate      int64 // bytes per millisecond
	queue     int64 // the most bytes in the queue; 0 means no limit
	every     int64 // the path loses about one byte in this many, although no queue is full; 0 means that it loses none
	sent      int64
	done      int64 // how many of the sent bytes have been delivered or lost, as far as the sender knows
	delivered int64
	left      int64 // how many of the sent bytes have left the queue, or were lost in it
	random    int64
	leave     []lineMark
	most      int64 // the most bytes that were in flight at one time during the last call of run
	mayDouble int64 // how many bytes slow start allows in flight
	probe     int64
	probed    time.Time
	full      bool
}

// A lineMark says how many bytes left the queue at one time, and how many were lost since the previous mark.
type lineMark struct {
	at        time.Time
	out, lost int64
}

// run simulates the given time, and returns how many bytes per millisecond were delivered.
func (l *line) run(during time.Duration) int64 {
	l.most, l.c.segment = 0, 1368
	l.mayDouble = max(l.mayDouble, 14<<10)
	begin, before := time.Now(), l.delivered
	overflow := int64(0)
	for time.Since(begin) < during {
		time.Sleep(time.Millisecond)
		out := min(l.rate, l.sent-l.left)
		lost := overflow
		if l.random += out; l.every > 0 && l.random > 1000*l.every {
			l.random, lost, out = 0, lost+min(out, 1000), out-min(out, 1000)
		}
		l.left, overflow = l.left+out+lost, 0
		l.leave = append(l.leave, lineMark{time.Now(), out, lost})
		for len(l.leave) > 0 && time.Since(l.leave[0].at) >= l.trip {
			m := l.leave[0]
			l.leave = l.leave[1:]
			if m.lost > 0 {
				l.c.lose(m.lost)
			}
			l.done, l.delivered = l.done+m.out+m.lost, l.delivered+m.out
			l.mayDouble += m.out
			if !l.probed.IsZero() && l.done > l.probe {
				l.c.endTrip(time.Since(l.probed), l.delivered, l.full, time.Now())
				l.probed = time.Time{}
			}
			l.c.deliver(l.delivered, time.Now())
		}
		may := min(l.mayDouble, 1<<30)
		if b := l.c.bound; b > 0 {
			may = min(may, b)
		}
		if more := (may - (l.sent - l.done)) / l.c.segment * l.c.segment; more > 0 {
			if l.probed.IsZero() {
				l.probe, l.probed, l.full = l.sent, time.Now(), 4*may >= 3*l.c.bound
			}
			l.sent += more
			if l.queue > 0 {
				overflow = max(l.sent-l.left-l.queue, 0)
			}
		}
		l.most = max(l.most, l.sent-l.done)
	}
	return (l.delivered - before) / during.Milliseconds()
}

// holds returns how many bytes the path holds without a queue.
func (l *line) holds() int64 { return l.rate * l.trip.Milliseconds() }

// inFlight fails the test unless the most bytes that were in flight are between from and to per cent of what the path holds.
func (l *line) inFlight(t *testing.T, when string, from, to int64) {
	t.Helper()
	if most := l.most * 100 / l.holds(); most < from || most > to {
		t.Errorf("path of %v with %d bytes per ms, %s: at most %d %% of what the path holds was in flight, want %d to %d %%", l.trip, l.rate, when, most, from, to)
	}
}

// carries fails the test if rate is below least per cent of what the path can carry.
func (l *line) carries(t *testing.T, when string, rate, least int64) {
	t.Helper()
	if got := rate * 100 / l.rate; got < least {
		t.Errorf("path of %v with %d bytes per ms, %s: the path carries %d %% of its rate, want at least %d %%", l.trip, l.rate, when, got, least)
	}
}

var lines = []line{
	{trip: 100 * time.Millisecond, rate: 12_500}, {trip: 150 * time.Millisecond, rate: 6_250},
	{trip: 30 * time.Millisecond, rate: 62_500}, {trip: 200 * time.Millisecond, rate: 125_000},
	{trip: 50 * time.Millisecond, rate: 600}, // this path holds 30 KB
}

// TestCapacity checks that the bytes in flight fill the path. The bytes that the path does not hold wait in a queue. In slow
// start, at most 120 % of what the path holds may wait, and later at most 65 %.
func TestCapacity(t *testing.T) {
	for _, l := range lines {
		synctest.Test(t, func(t *testing.T) {
			l.run(25 * l.trip)
			l.inFlight(t, "in slow start", 110, 220)
			l.carries(t, "later", l.run(60*time.Second), 99)
			if l.holds() > 200<<10 {
				l.inFlight(t, "later", 110, 165)
			}
		})
	}
}

// TestCapacityWithLoss checks that a path is still filled if it loses some bytes although no queue overflows.
func TestCapacityWithLoss(t *testing.T) {
	for _, l := range lines {
		for _, every := range []int64{1000, 100} {
			l := l
			l.every = every
			synctest.Test(t, func(t *testing.T) {
				l.run(25 * l.trip)
				l.carries(t, "with losses", l.run(30*time.Second), 90)
			})
		}
	}
}

// TestCapacityOfAShortQueue checks a path whose queue is so short that it overflows in slow start. Later, the queue loses at
// most one byte in 25.
func TestCapacityOfAShortQueue(t *testing.T) {
	for _, l := range lines {
		for _, c := range []struct{ part, least int64 }{{2, 95}, {4, 80}, {10, 50}} {
			l := l
			l.queue = l.holds() / c.part
			synctest.Test(t, func(t *testing.T) {
				l.run(25 * l.trip)
				sent, delivered := l.sent, l.delivered
				l.carries(t, "with a short queue", l.run(60*time.Second), c.least)
				if sent := l.sent - sent; l.delivered-delivered < sent-sent/25 {
					t.Errorf("path of %v with %d bytes per ms and a queue of 1/%d of the path: of %d bytes sent, only %d were delivered, want 96 %%", l.trip, l.rate, c.part, sent, l.delivered-delivered)
				}
			})
		}
	}
}

// TestCapacityFollowsThePath checks that the estimate adapts when the path becomes faster, then ten times as long, and then
// slower.
func TestCapacityFollowsThePath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := line{trip: 50 * time.Millisecond, rate: 12_500}
		l.run(5 * time.Second)
		l.rate *= 4
		l.run(5 * time.Second)
		l.carries(t, "faster", l.run(5*time.Second), 99)
		l.trip *= 10
		l.run(40 * time.Second)
		l.carries(t, "longer", l.run(5*time.Second), 95)
		l.rate /= 8
		l.queue = l.holds()
		l.run(30 * time.Second)
		l.carries(t, "slower", l.run(10*time.Second), 90)
		l.inFlight(t, "slower", 90, 250)
	})
}

// TestCapacityOfAnUnsteadyPath checks that the sender still fills a path whose round trips are mostly twice as long as the
// shortest.
func TestCapacityOfAnUnsteadyPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := line{trip: 30 * time.Millisecond, rate: 12_500}
		l.run(60 * time.Millisecond) // the first round trips
		l.trip = 60 * time.Millisecond
		l.run(10 * time.Second)
		l.carries(t, "unsteady", l.run(5*time.Second), 95)
	})
}

// TestCapacityAfterAPause checks a sender that sends little for a while and then much again. The sender must fill the path and
// a queue as before.
func TestCapacityAfterAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := line{trip: 100 * time.Millisecond, rate: 12_500}
		l.run(10 * time.Second)
		l.mayDouble = 20 << 10
		for range 20 { // meanwhile, the sender may send only 20 KiB
			l.run(time.Second)
			l.mayDouble = 20 << 10
		}
		l.run(10 * time.Second)
		l.carries(t, "after a pause", l.run(5*time.Second), 99)
		l.inFlight(t, "after a pause", 110, 165)
	})
}

// TestCapacityOfADeepQueue checks that an unlimited queue becomes short again after the path has become ten times slower.
func TestCapacityOfADeepQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := line{trip: 50 * time.Millisecond, rate: 12_500}
		l.run(5 * time.Second)
		l.rate /= 10
		l.run(60 * time.Second)
		l.carries(t, "slower", l.run(10*time.Second), 95)
		l.inFlight(t, "slower", 100, 250)
	})
}

// TestCapacityFallsWithFewSegments checks a slow path that loses every tenth byte for a long time, as when many senders use one
// short queue. The test checks that the sender then sends much less.
func TestCapacityFallsWithFewSegments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := line{trip: 50 * time.Millisecond, rate: 600, every: 1000}
		l.run(5 * time.Second)
		before := l.c.bound
		l.every = 10
		l.run(10 * time.Second)
		if l.c.bound > before/3 {
			t.Errorf("the bound is %d after many losses and was %d before, want at most a third", l.c.bound, before)
		}
	})
}

// TestCapacityRisesFromItsFloor checks that the sender fills the path again after heavy losses have made the estimate as small
// as possible.
func TestCapacityRisesFromItsFloor(t *testing.T) {
	for _, slow := range []bool{false, true} { // whether the path was slow before the losses
		synctest.Test(t, func(t *testing.T) {
			l := line{trip: 50 * time.Millisecond, rate: 12_500}
			if slow {
				l.rate = 30
			}
			l.run(5 * time.Second)
			l.rate = 12_500
			for range 50 {
				l.c.fall()
			}
			if most := int64(leastBound*1368 + 10); l.c.bound > most {
				t.Errorf("the bound is %d, want at most %d", l.c.bound, most)
			}
			l.run(40 * time.Second)
			l.carries(t, "after falls", l.run(20*time.Second), 90)
		})
	}
}
