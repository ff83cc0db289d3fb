//go:build !linux

package boottime

import (
	"sync"
	"time"
)

// Elsewhere the clock advances by the monotonic clock or by the calendar, whichever moved further, because the monotonic
// clock may stop while the machine sleeps. Setting the calendar forward ages sessions, which costs a handshake; setting
// it back does nothing.
var passed struct {
	mu   sync.Mutex
	last time.Time
	sum  time.Duration
}

// Now is the time since the first call.
func (Clock) Now() time.Duration {
	passed.mu.Lock()
	defer passed.mu.Unlock()
	now := time.Now()
	if !passed.last.IsZero() {
		mono, wall := now.Sub(passed.last), now.Round(0).Sub(passed.last.Round(0))
		if wall-mono < time.Second {
			wall = mono // the calendar is coarse or being slewed; a sleep or a step is more
		}
		passed.sum += wall
	}
	passed.last = now
	return passed.sum
}

// NewAlarm makes the alarm that goes with Clock. It does not count sleep here.
func NewAlarm() (Alarm, error) { return NewTimer(), nil }
