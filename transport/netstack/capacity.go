package netstack

import (
	"math"
	"time"
)

// A capacity estimates how many bytes a path holds without a queue, from what it delivers, and derives how many may be in flight:
//
//	in flight          delivered within a round trip
//	less than it holds  what is in flight: more in flight means more delivered
//	what it holds       what it holds
//	more than it holds  the same; the rest waits in a queue, or is lost when the queue is full
//
// So the estimate rises while a rise delivers more. The bound is 11/8 of it: the queue then takes at most three eighths of what the
// path holds, which is less than most queues have room for, and the path never runs dry. In slow start, each round trip delivers
// 11/8 of what the one before delivered, and so the bound rises by that factor until the path is full.
//
// Later, the path may deliver more or become longer. So every few round trips, a trial raises the estimate by a sixteenth. It is taken
// back unless the path then delivers at least half of that more. After each trial that is not taken back, the next one raises the
// estimate twice as much.
//
// A loss says little: a radio link loses segments too. But many losses mean that a queue overflows. Then the estimate falls by 3/10 at
// once, as the window of CUBIC does (RFC 9438, section 4.6).
//
// The model is that of BBR (draft-ietf-ccwg-bbr), which also bounds what is in flight by what is delivered. It needs the shortest
// round trip of the path, and empties the queue from time to time to measure it. A capacity does without: the round trips of many
// radio links are seldom as short as the shortest.
//
// The zero value is ready.
type capacity struct {
	trip  time.Duration // the latest round trip; 0 before the first one
	least time.Duration // the shortest one
	holds int64         // the estimate; 0 before the first one
	best  float64       // the most bytes per second that were delivered within a round trip
	bound int64         // how many bytes may be in flight; 0 means that this is not known yet

	delivered int64 // bytes in total

	marks [deliveryMarks]deliveryMark
	mark  int       // the newest mark's place in marks
	begun time.Time // when the newest mark was begun

	fell  bool  // the estimate has fallen before
	lost  int64 // bytes found missing in the present round trip
	grace int   // round trips in which the estimate does not fall, because it has fallen

	since   time.Time // when the present comparison began; zero if there is none
	was     int64     // delivered then
	missing int64     // bytes found missing since then
	missed  int64     // bytes found missing in the comparison before
	before  float64   // bytes per second in the comparison before
	trial   int64     // the estimate without the present trial; 0 if there is none
	step    float64   // the present trial raised the estimate by this part of it
}

// A deliveryMark says how many bytes had been delivered at a time.
type deliveryMark struct {
	at        time.Time
	delivered int64
}

const (
	// Marks are at least a twelfth of a round trip apart, so that the oldest is older than a round trip. A mark is the last
	// acknowledgement of its twelfth. So acknowledgements that were held up and arrive in a train count before the mark, where
	// they belong.
	deliveryMarks = 16
	marksPerTrip  = 12

	leastBound    = 4 << 10  // three segments
	initialWindow = 14 << 10 // ten segments (RFC 6928)

	doubleBelow = 256 << 10 // slow start may double what is in flight up to this bound
	mostHolds   = 1 << 29   // less than half of the numbers

	// More than one byte lost of so many is much. A few bytes are not, because one segment of few is always much.
	muchLoss = 32
	fewBytes = 4 << 10

	// A comparison takes that many round trips and that long at least.
	comparedTrips   = 4
	shortComparison = 500 * time.Millisecond

	leastStep, mostStep = 1. / 16, 1
)

// setBound lets the bound follow the estimate, after n bytes have been delivered. It rises by no more than that, so that a larger
// estimate does not let the sender send a burst, which a short queue has no room for.
func (c *capacity) setBound(n int64) {
	if c.holds == 0 {
		return
	}
	least := int64(initialWindow) // the program may have sent little so far
	if c.fell {
		least = leastBound
	}
	bound := max(c.holds*11/8, min(2*c.holds, doubleBelow), least)
	if c.bound > 0 {
		bound = min(bound, c.bound+n)
	}
	c.bound = bound
}

// deliver notes how many bytes have been delivered in total.
func (c *capacity) deliver(delivered int64, now time.Time) {
	c.setBound(delivered - c.delivered)
	c.delivered = delivered
	if c.trip == 0 {
		return
	}
	if m := &c.marks[c.mark]; now.Sub(c.begun) >= c.trip/marksPerTrip {
		c.begun, c.mark = now, (c.mark+1)%deliveryMarks
		c.marks[c.mark] = deliveryMark{now, delivered}
	} else if delivered > m.delivered {
		*m = deliveryMark{now, delivered}
	}
	for i := range deliveryMarks { // from the newest to the oldest
		m := &c.marks[(c.mark+deliveryMarks-i)%deliveryMarks]
		if m.at.IsZero() {
			return
		}
		if passed := now.Sub(m.at); passed >= c.trip {
			c.rise(float64(delivered-m.delivered) / passed.Seconds())
			return
		}
	}
}

// rise raises the estimate if the path has delivered more within a round trip than ever before. It ignores rises of less than a
// sixteenth, which come from acknowledgements that were held up.
func (c *capacity) rise(rate float64) {
	if rate < c.best*17/16 || rate == 0 {
		return
	}
	holds := rate * c.trip.Seconds()
	if c.holds > 0 {
		// The present round trip may be long because of a queue. A path that delivers that much more hardly holds more than that.
		holds = min(holds, float64(c.holds)*math.Pow(rate/c.best, 1.25))
	}
	c.best, c.holds = rate, min(max(c.holds, int64(holds)), mostHolds)
	c.since, c.trial = time.Time{}, 0 // what was delivered before says nothing about this estimate
}

// lose notes that n bytes were found missing. n is negative if some were not missing after all.
func (c *capacity) lose(n int64) {
	c.lost, c.missing = c.lost+n, c.missing+n
	if c.trial > 0 && c.trip > c.least*5/4 && c.missing > c.missed*3/2+fewBytes {
		c.takeBack() // a queue is full
		c.setBound(0)
	}
	if c.grace == 0 && c.lost > c.holds/muchLoss+fewBytes {
		c.fall()
	}
}

// takeBack ends the present trial, if there is one, and the comparison.
func (c *capacity) takeBack() {
	if c.trial > 0 {
		c.holds = c.trial
	}
	c.since, c.trial = time.Time{}, 0
}

func (c *capacity) fall() {
	c.holds = max(c.holds*7/10, 1)
	c.fell, c.grace = true, 2 // what is found missing until then was sent before
	c.since, c.trial = time.Time{}, 0
	c.setBound(0)
}

// endTrip notes that a round trip has ended, which took trip. full says that about as many bytes were in flight as may be.
func (c *capacity) endTrip(trip time.Duration, delivered int64, full bool, now time.Time) {
	if c.trip, c.lost, c.grace = trip, 0, max(c.grace-1, 0); c.least == 0 || trip < c.least {
		c.least = trip
	}
	switch {
	case !full || c.grace > 0:
		c.takeBack()
	case c.since.IsZero():
		c.since, c.was, c.missing, c.missed, c.before, c.step = now, delivered, 0, 0, 0, leastStep
	case now.Sub(c.since) >= max(comparedTrips*trip, shortComparison):
		c.compare(delivered, now)
	}
}

// compare ends a comparison and begins the next one. Each second one has a trial, and also one after a trial that was not taken back.
func (c *capacity) compare(delivered int64, now time.Time) {
	rate := float64(delivered-c.was) / now.Sub(c.since).Seconds()
	if c.missing > (delivered-c.was)/muchLoss+fewBytes {
		c.fall()
		return
	}
	if c.trial > 0 && rate < c.before*(1+c.step/2) {
		c.holds, c.trial, c.step = c.trial, 0, leastStep
	} else {
		if c.trial > 0 {
			c.step = min(2*c.step, mostStep)
		}
		c.trial = c.holds
		c.holds = min(c.holds+int64(c.step*float64(c.holds)), mostHolds)
	}
	c.since, c.was, c.before = now, delivered, rate
	c.missing, c.missed = 0, c.missing
}
