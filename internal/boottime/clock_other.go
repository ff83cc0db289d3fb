//go:build !linux

package boottime

import (
	"sync"
	"time"
)

// On other systems the monotonic clock may stop while the machine sleeps. So the clock advances as far as the monotonic clock or
// the wall clock, whichever moved further. If someone sets the wall clock forward, sessions age, and their peers need a new
// handshake. If someone sets the wall clock back, nothing happens.
var passed struct {
	mu   sync.Mutex
	last time.Time
	sum  time.Duration
}

// Now returns the time since the first call.
func (Clock) Now() time.Duration {
	passed.mu.Lock()
	defer passed.mu.Unlock()
	now := time.Now()
	if !passed.last.IsZero() {
		mono, wall := now.Sub(passed.last), now.Round(0).Sub(passed.last.Round(0))
		if wall-mono < time.Second {
			wall = mono // so small a difference comes from a coarse or slewed wall clock, not from a sleep or a step
		}
		passed.sum += wall
	}
	passed.last = now
	return passed.sum
}

// NewAlarm makes an Alarm. On these systems, the Alarm does not count the time that the machine sleeps.
func NewAlarm() (Alarm, error) { return NewTimer(), nil }
