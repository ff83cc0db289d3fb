package pipe

import (
	"sync/atomic"
	"time"
)

// A Clock is a [wireguard.Clock] that uses package time, and so is virtual inside a bubble of testing/synctest, where a
// device's own clock is not. A test can suspend the machine and step the wall clock. NewClock makes it. It must not be copied.
// All methods are safe for concurrent use, and several devices may share a Clock.
type Clock struct {
	start  time.Time
	asleep atomic.Int64 // nanoseconds, in all
	set    atomic.Int64 // nanoseconds by which Step moved the wall clock, in all
}

// NewClock makes a clock that shows package time's present time. In a test in virtual time, call it inside the bubble.
func NewClock() *Clock { return &Clock{start: time.Now()} }

// Now returns the time since NewClock, suspension included.
func (c *Clock) Now() time.Duration {
	return time.Since(c.start) + time.Duration(c.asleep.Load())
}

// Wall returns the wall-clock time.
func (c *Clock) Wall() time.Time {
	return time.Now().Add(time.Duration(c.asleep.Load() + c.set.Load()))
}

// Suspend acts as if the machine had been suspended for d: both times are d later, and no timer of package time has moved. It
// returns at once.
func (c *Clock) Suspend(d time.Duration) { c.asleep.Add(int64(d)) }

// Step moves the wall clock forward by d, or back if d is negative. Now does not change.
func (c *Clock) Step(d time.Duration) { c.set.Add(int64(d)) }
