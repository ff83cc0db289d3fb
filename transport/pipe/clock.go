package pipe

import (
	"sync/atomic"
	"time"
)

// A Clock is a [wireguard.Clock] that uses package time. So it shows virtual time inside a bubble of testing/synctest, which a
// device's default clock does not. A test can simulate that the machine is suspended, and can step the wall clock. NewClock
// makes a Clock. It must not be copied. All methods are safe for concurrent use, and several devices may use the same Clock.
type Clock struct {
	start  time.Time
	asleep atomic.Int64 // sum of the durations of all calls of Suspend, in nanoseconds
	set    atomic.Int64 // sum of the durations of all calls of Step, in nanoseconds
}

// NewClock makes a clock. Its wall clock shows the current time of package time. In a test in virtual time, call it inside the
// bubble.
func NewClock() *Clock { return &Clock{start: time.Now()} }

// Now returns the time since NewClock, including the time of suspensions.
func (c *Clock) Now() time.Duration {
	return time.Since(c.start) + time.Duration(c.asleep.Load())
}

// Wall returns the wall-clock time.
func (c *Clock) Wall() time.Time {
	return time.Now().Add(time.Duration(c.asleep.Load() + c.set.Load()))
}

// Suspend simulates that the machine was suspended for d, and returns at once. It adds d to the results of Now and Wall. Timers
// of package time do not expire earlier.
func (c *Clock) Suspend(d time.Duration) { c.asleep.Add(int64(d)) }

// Step moves the wall clock forward by d, or back if d is negative. Now does not change.
func (c *Clock) Step(d time.Duration) { c.set.Add(int64(d)) }
