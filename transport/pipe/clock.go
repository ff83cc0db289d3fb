package pipe

import (
	"sync/atomic"
	"time"
)

// A Clock is a wireguard.Clock that goes by package time, and so is virtual inside a bubble of testing/synctest, which
// a device's own clock is not. A test can have the machine sleep, and set the calendar. NewClock makes it; several devices
// may share one. It must not be copied; all methods are safe for concurrent use.
type Clock struct {
	start  time.Time
	asleep atomic.Int64 // nanoseconds, in all
	set    atomic.Int64 // nanoseconds that the calendar is ahead besides
}

// NewClock makes a clock that shows the right time. In a test in virtual time, make it inside the bubble.
func NewClock() *Clock { return &Clock{start: time.Now()} }

// Now is the time since NewClock, sleep included.
func (c *Clock) Now() time.Duration {
	return time.Since(c.start) + time.Duration(c.asleep.Load())
}

// Wall is the calendar's time.
func (c *Clock) Wall() time.Time {
	return time.Now().Add(time.Duration(c.asleep.Load() + c.set.Load()))
}

// Sleep is as if the machine had slept for d: the clock is ahead, and no timer has moved. Unlike time.Sleep it
// returns at once.
func (c *Clock) Sleep(d time.Duration) { c.asleep.Add(int64(d)) }

// Set sets the calendar ahead by d, or back if d is negative. Now does not notice.
func (c *Clock) Set(d time.Duration) { c.set.Add(int64(d)) }
