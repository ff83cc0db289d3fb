//go:build !linux

package wireguard

import (
	"sync"
	"time"
)

// systemClock advances by the monotonic clock or by the calendar, whichever went further: the monotonic clock may stand
// still while the machine sleeps. A calendar that is set forward ages sessions, which costs a handshake; one that is set
// back does nothing.
type systemClock struct{}

var passed struct {
	mu   sync.Mutex
	last time.Time
	sum  time.Duration
}

// Now is the time since it was called first.
func (systemClock) Now() time.Duration {
	passed.mu.Lock()
	defer passed.mu.Unlock()
	now := time.Now()
	if !passed.last.IsZero() {
		mono, wall := now.Sub(passed.last), now.Round(0).Sub(passed.last.Round(0))
		if wall-mono < time.Second {
			wall = mono // the calendar's grain, or its being slewed; a sleep or a step is more
		}
		passed.sum += wall
	}
	passed.last = now
	return passed.sum
}

// newSystemAlarm makes the alarm that goes with systemClock.
func newSystemAlarm() (alarm, error) { return newTimerAlarm(), nil }
