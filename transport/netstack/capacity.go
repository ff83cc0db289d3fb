package netstack

import (
	"math"
	"time"
)

// A capacity estimates how many bytes a path holds without a queue, from how many bytes the path delivers. From the estimate,
// it computes a bound on the bytes in flight. The table shows what a path delivers for a given number of bytes in flight:
//
//	in flight           delivered within a round trip
//	less than it holds  what is in flight: more in flight means more delivered
//	what it holds       what it holds
//	more than it holds  the same; the rest waits in a queue, or is lost when the queue is full
//
// So the estimate rises while more bytes in flight make the path deliver more. The bound is 11/8 of the estimate. At most three
// eighths of what the path holds then wait in a queue, and most queues have room for more than that. The path never runs out of
// bytes to deliver. With this bound, each round trip of slow start delivers 11/8 of what the one before delivered. So the bound
// rises by that factor until the path is full.
//
// Later, the path may become faster or longer. So every few round trips, the capacity makes a trial: it raises the estimate by a
// sixteenth, and at least by a segment. To judge the trial, it measures how many bytes per second the path delivers over a few
// round trips (a comparison). If that rate exceeds that of the previous comparison by less than half of the fraction by which the
// trial raised the estimate, the trial is taken back: the estimate returns to its old value. After each trial that is not taken
// back, the next trial raises the estimate by twice the fraction. The path may also become slower, and then a part of what is in
// flight fills a queue. So if round trips are more than twice as long as the shortest one, a trial lowers the estimate by an
// eighth. If the round trips do not become shorter by at least a sixteenth, the trial is taken back: either the path has become
// longer, or another sender fills the queue.
//
// A single loss does not show that a queue is full: a radio link loses segments too. But many losses mean that a queue
// overflows. Then the estimate falls by 3/10 at once, as the window of CUBIC does (RFC 9438, section 4.6). It also falls by
// 3/10 after a timeout.
//
// The model is that of BBR (draft-ietf-ccwg-bbr), which also bounds what is in flight by what is delivered. BBR empties
// the queue from time to time, to measure the shortest round trip of the path. A capacity never empties the queue on purpose,
// because the round trips of many radio links are seldom as short as the shortest.
//
// A capacity is ready if segment is set and all other fields are zero.
type capacity struct {
	segment int64 // bytes of a full segment

	trip  time.Duration // the latest round trip; 0 before the first one
	least time.Duration // the shortest round trip; raised when the path is found to have become longer
	holds int64         // the estimate of how many bytes the path holds; 0 before the first estimate
	best  float64       // the most bytes per second that were delivered within a round trip
	bound int64         // how many bytes may be in flight; 0 means that this is not known yet

	delivered int64 // bytes that the path has delivered in total

	marks [deliveryMarks]deliveryMark
	mark  int       // index of the newest mark
	begun time.Time // when the newest mark was begun

	settled bool // slow start is over: the estimate has fallen, or has not risen during a comparison

	lost  int64 // bytes found missing in the present round trip
	grace int   // for how many more round trips the estimate does not fall again

	counted   int64 // the value of delivered when the present count of losses began; see countedSegments
	countLost int64 // bytes found missing since the present count of losses began

	since   time.Time     // when the present comparison began; zero if there is none
	was     int64         // the value of delivered when the present comparison began
	missing int64         // bytes found missing in the present comparison
	missed  int64         // bytes found missing in the previous comparison
	before  float64       // bytes delivered per second in the previous comparison
	trial   int64         // the estimate without the present trial; 0 if there is none
	long    time.Duration // the round trip when the present trial began
	step    float64       // the fraction by which the present trial raised the estimate; negative if it lowered the estimate
}

// A deliveryMark says how many bytes had been delivered at a time.
type deliveryMark struct {
	at        time.Time
	delivered int64
}

const (
	// Each mark begins at least a twelfth of a round trip after the mark before it, so that the oldest mark is older than a round
	// trip. A mark records the last acknowledgement of its twelfth. So if delayed acknowledgements arrive in a burst, their bytes
	// count as delivered before the mark. That is right, because the path has delivered these bytes earlier.
	deliveryMarks = 16
	marksPerTrip  = 12

	doubleBelow = 256 << 10 // slow start may double what is in flight up to this bound
	mostHolds   = 1 << 29   // the largest estimate; less than half of TCP's sequence numbers

	// These two are in segments. The bound is never less than leastBound. With a smaller bound, gVisor might not be able to
	// send a full segment. During slow start, the bound is at least an initial window (RFC 6928), because the program may have
	// sent little so far.
	leastBound    = 3
	initialWindow = 10

	// Losses are heavy if they exceed 1/muchLoss of the bytes by more than fewSegments segments. Without that margin, a single loss
	// among few segments would count as heavy. The count of losses restarts after each round trip in which the estimate may not
	// fall again (see the field grace), and otherwise when countedSegments segments have been delivered.
	muchLoss        = 32
	fewSegments     = 3
	countedSegments = 1024

	// A comparison takes at least comparedTrips round trips, and at least shortComparison.
	comparedTrips   = 4
	shortComparison = 500 * time.Millisecond

	leastStep, mostStep, downStep = 1. / 16, 1, -1. / 8
)

// setBound computes the bound from the estimate, after n more bytes have been delivered. The bound rises by at most n.
// Otherwise, the sender might send a burst when the estimate rises, and the burst might overflow a short queue.
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

// rise raises the estimate if the path has delivered more within a round trip than ever before. rate is in bytes per second. rise
// ignores a rate that is less than a sixteenth above the best rate so far: delayed acknowledgements cause such differences.
func (c *capacity) rise(rate float64) {
	if rate < c.best*17/16 || rate == 0 {
		return
	}
	holds := rate * c.trip.Seconds()
	if c.holds > 0 {
		// The present round trip may be long because of a queue. If a path delivers more by some factor, it hardly holds more
		// by a larger factor. So the estimate rises little more than the rate.
		holds = min(holds, float64(c.holds)*math.Pow(rate/c.best, 1.25))
	}
	c.best = rate
	c.set(max(c.holds, int64(holds)))
	c.since, c.trial = time.Time{}, 0 // what was delivered before says nothing about this estimate
}

// much reports whether lost bytes are a heavy loss among total bytes.
func (c *capacity) much(lost, total int64) bool { return lost > total/muchLoss+fewSegments*c.segment }

// lose notes that n bytes were found missing. n is negative if bytes that an earlier call has counted were not missing after all.
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

// takeBack ends the present comparison and, if there is one, the present trial. The estimate then returns to its value before
// the trial.
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
	c.settled, c.grace = true, 2 // losses found in these two round trips are of bytes that were sent before the fall
	c.since, c.trial = time.Time{}, 0
	c.setBound(0)
}

// endTrip notes that a round trip has ended, which took the time trip. delivered is how many bytes the path has delivered in total.
// full says that nearly as many bytes as the bound were in flight.
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

// compare ends a comparison and begins the next one. The next one has a trial unless a trial has just been taken back. If losses
// were heavy, compare lowers the estimate instead, and begins no other comparison.
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
	if c.step > 0 && more < c.segment { // because gVisor sends whole segments
		more = c.segment
		c.step = float64(more) / float64(c.holds)
	}
	c.set(c.holds + more)
}

// set sets the estimate to n, within two limits. The estimate is at most mostHolds, and at least so large that the bound is
// leastBound segments. With a smaller estimate, a trial might not change what gVisor sends, so the estimate would stay that
// small.
func (c *capacity) set(n int64) {
	c.holds = min(max(n, leastBound*c.segment*8/11+1), mostHolds)
}
