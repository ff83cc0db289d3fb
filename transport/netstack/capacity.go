package netstack

import (
	"math"
	"time"
)

// A capacity estimates from what a path delivers how many bytes it holds without a queue. From that it derives a bound of what may
// be in flight:
//
//	in flight           delivered within a round trip
//	less than it holds  what is in flight: more in flight means more delivered
//	what it holds       what it holds
//	more than it holds  the same; the rest waits in a queue, or is lost when the queue is full
//
// So the estimate rises while a rise delivers more. The bound is 11/8 of it: the queue then takes at most three eighths of what the
// path holds, which is less than most queues have room for, and the path never runs dry. In slow start, each round trip delivers
// 11/8 of what the one before delivered, and so the bound rises by that factor until the path is full.
//
// Later, the path may deliver more or become longer. So every few round trips, a trial raises the estimate by a sixteenth, and at
// least by a segment. The trial is taken back unless what the path delivers then grows by at least half of that fraction. After
// each trial that is not taken back, the next one raises the estimate twice as much. The path may also come to deliver less, so
// that what is in flight fills a queue. So if round trips are more than twice as long as the shortest, a trial lowers the estimate
// by an eighth. This trial is taken back unless the round trips become shorter by at least half of an eighth. If they do not, the
// path has become longer, or another sender fills the queue.
//
// A loss says little: a radio link loses segments too. But many losses mean that a queue overflows. Then the estimate falls by 3/10
// at once, as the window of CUBIC does (RFC 9438, section 4.6). It falls by as much after a timeout.
//
// The model is that of BBR (draft-ietf-ccwg-bbr), which also bounds what is in flight by what is delivered. BBR empties
// the queue from time to time, to measure the shortest round trip of the path. A capacity never empties the queue on purpose,
// because the round trips of many radio links are seldom as short as the shortest.
//
// The zero value with a segment is ready.
type capacity struct {
	segment int64 // bytes of a full segment

	trip  time.Duration // the latest round trip; 0 before the first one
	least time.Duration // the shortest round trip; raised when the path is found to have become longer
	holds int64         // the estimate; 0 before the first one
	best  float64       // the most bytes per second that were delivered within a round trip
	bound int64         // how many bytes may be in flight; 0 means that this is not known yet

	delivered int64 // bytes in total

	marks [deliveryMarks]deliveryMark
	mark  int       // the newest mark's place in marks
	begun time.Time // when the newest mark was begun

	settled bool // slow start is over: the estimate has fallen, or has not risen during a comparison

	lost  int64 // bytes found missing in the present round trip
	grace int   // round trips in which the estimate does not fall, because it has fallen

	counted   int64 // the value of delivered when the present count of losses began; see countedSegments
	countLost int64 // bytes found missing since then

	since   time.Time     // when the present comparison began; zero if there is none
	was     int64         // the value of delivered at that time
	missing int64         // bytes found missing since then
	missed  int64         // bytes found missing in the comparison before
	before  float64       // bytes per second in the comparison before
	trial   int64         // the estimate without the present trial; 0 if there is none
	long    time.Duration // the round trip when the present trial began
	step    float64       // the part of the estimate by which the present trial raised it; negative if it lowered it
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

	doubleBelow = 256 << 10 // slow start may double what is in flight up to this bound
	mostHolds   = 1 << 29   // less than half of TCP's sequence numbers

	// These are in segments. The bound is never less than leastBound, or gVisor might find no room for a full segment. During slow
	// start, the bound is not less than an initial window (RFC 6928), because the program may have sent little so far.
	leastBound    = 3
	initialWindow = 10

	// Losses are heavy if they exceed 1/muchLoss of the bytes by more than fewSegments segments. Without that margin, a single loss
	// among few segments would count as heavy. Outside a grace period, a count of losses restarts only after countedSegments
	// segments have been delivered.
	muchLoss        = 32
	fewSegments     = 3
	countedSegments = 1024

	// A comparison takes at least comparedTrips round trips, and at least shortComparison.
	comparedTrips   = 4
	shortComparison = 500 * time.Millisecond

	leastStep, mostStep, downStep = 1. / 16, 1, -1. / 8
)

// setBound computes the bound from the estimate, after n more bytes have been delivered. The bound rises by at most n. Otherwise
// the sender might answer a larger estimate with a burst that a short queue has no room for.
func (c *capacity) setBound(n int64) {
	if c.holds == 0 {
		return
	}
	bound := c.holds * 11 / 8
	if !c.settled {
		bound = max(bound, min(2*c.holds, doubleBelow), initialWindow*c.segment)
	}
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
		// The present round trip may be long because of a queue. If a path delivers more by some factor, it hardly holds more by a
		// larger factor.
		holds = min(holds, float64(c.holds)*math.Pow(rate/c.best, 1.25))
	}
	c.best = rate
	c.set(max(c.holds, int64(holds)))
	c.since, c.trial = time.Time{}, 0 // what was delivered before says nothing about this estimate
}

// much reports whether lost bytes are a heavy loss among total bytes.
func (c *capacity) much(lost, total int64) bool { return lost > total/muchLoss+fewSegments*c.segment }

// lose notes that n bytes were found missing. n is negative if some were not missing after all.
func (c *capacity) lose(n int64) {
	c.lost, c.missing, c.countLost = c.lost+n, c.missing+n, c.countLost+n
	if c.trial > 0 && c.trip > c.least*5/4 && c.missing > c.missed*3/2+fewSegments*c.segment {
		c.takeBack() // a queue is full
		c.setBound(0)
	}
	if c.grace == 0 && (c.much(c.lost, c.holds) || c.much(c.countLost, c.delivered-c.counted+c.holds)) {
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

// fall lowers the estimate, if there is one.
func (c *capacity) fall() {
	if c.holds == 0 {
		return
	}
	c.set(c.holds * 7 / 10)
	c.settled, c.grace = true, 2 // losses found in these two round trips are of bytes sent before
	c.since, c.trial = time.Time{}, 0
	c.setBound(0)
}

// endTrip notes that a round trip has ended, which took trip. full says that nearly as many bytes as the bound were in flight.
func (c *capacity) endTrip(trip time.Duration, delivered int64, full bool, now time.Time) {
	if c.grace > 0 || delivered-c.counted >= countedSegments*c.segment {
		c.counted, c.countLost = delivered, 0
	}
	if c.trip, c.lost, c.grace = trip, 0, max(c.grace-1, 0); c.least == 0 || trip < c.least {
		c.least = trip
	}
	switch {
	case !full || c.grace > 0:
		c.takeBack()
	case c.since.IsZero():
		c.since, c.was, c.missing, c.missed, c.before = now, delivered, 0, 0, 0
	case now.Sub(c.since) >= max(comparedTrips*trip, shortComparison):
		c.compare(delivered, now)
	}
}

// compare ends a comparison and begins the next one. Every second comparison has a trial. So does a comparison that follows a trial
// that was not taken back.
func (c *capacity) compare(delivered int64, now time.Time) {
	c.settled = true
	rate := float64(delivered-c.was) / now.Sub(c.since).Seconds()
	if c.much(c.missing, delivered-c.was) {
		c.fall()
		return
	}
	switch {
	case c.trial == 0:
		c.try()
	case c.step > 0 && rate < c.before*(1+c.step/2):
		c.holds, c.trial = c.trial, 0
	case c.step < 0 && c.trip.Seconds() > c.long.Seconds()*(1+c.step/2):
		c.least = c.trip // the path is longer
		c.holds, c.trial = c.trial, 0
	default:
		c.try()
	}
	c.since, c.was, c.before = now, delivered, rate
	c.missing, c.missed = 0, c.missing
}

// try begins a trial.
func (c *capacity) try() {
	switch {
	case c.trip > 2*c.least:
		c.step = downStep
	case c.trial > 0 && c.step > 0: // the previous trial was not taken back
		c.step = min(2*c.step, mostStep)
	default:
		c.step = leastStep
	}
	c.trial, c.long = c.holds, c.trip
	more := int64(c.step * float64(c.holds))
	if c.step > 0 && more < c.segment { // gVisor sends whole segments
		more = c.segment
		c.step = float64(more) / float64(c.holds)
	}
	c.set(c.holds + more)
}

// set sets the estimate to n, or to the least estimate with which the bound is leastBound segments. With a smaller estimate, a
// trial might not change what gVisor sends, so the estimate would stay that small.
func (c *capacity) set(n int64) {
	c.holds = min(max(n, leastBound*c.segment*8/11+1), mostHolds)
}
