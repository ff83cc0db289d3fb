//go:build !linux

package boottime

import (
	"sync"
	"time"
)

// On other systems the monotonic clock may stop while the machine sleeps. So the clock advances as far as the monotonic
// clock or the wall clock, whichever moved further. If someone sets the wall clock forward, sessions age, which costs a
// handshake. If someone sets it back, nothing happens.
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
			wall = mono // the wall clock is coarse or being slewed; a sleep or a step moves it further
		}
		passed.sum += wall
	}
	passed.last = now
	return passed.sum
}

// NewAlarm makes an Alarm. It does not count sleep on these systems.
func NewAlarm() (Alarm, error) { return NewTimer(), nil }
