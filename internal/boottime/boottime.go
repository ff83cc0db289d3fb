// Package boottime provides a clock that counts the time that the machine sleeps, and an alarm that follows this clock.
package boottime

import (
	"sync"
	"time"
)

// A Clock tells the system's time. The zero value is ready. All Clocks show the same time, and any goroutine may read
// them.
type Clock struct{}

// Wall returns the system's wall-clock time.
func (Clock) Wall() time.Time { return time.Now() }

// An Alarm rings once after a set time. Whether the time that the machine sleeps counts depends on the system; see NewAlarm.
type Alarm interface {
	// Set makes the alarm ring once after the duration in, or at once if in is not positive. It replaces the previous setting.
	Set(in time.Duration)
	// Wait waits until the alarm rings and returns true, or returns false once the alarm is closed. Only one goroutine may call
	// Wait.
	Wait() bool
	// Close may be called several times, from any goroutine.
	Close()
}

// A timer is an Alarm that uses the runtime's timers. These timers stop while the machine sleeps, so the Alarm rings late after a
// sleep.
type timer struct {
	t    *time.Timer
	done chan struct{}
	once sync.Once
}

// NewTimer makes an Alarm that does not count the time that the machine sleeps.
func NewTimer() Alarm {
	a := &timer{t: time.NewTimer(time.Hour), done: make(chan struct{})}
	a.t.Stop()
	return a
}

func (a *timer) Set(in time.Duration) { a.t.Reset(in) }

func (a *timer) Wait() bool {
	select {
	case <-a.t.C:
		return true
	case <-a.done:
		return false
	}
}

func (a *timer) Close() {
	a.once.Do(func() {
		a.t.Stop()
		close(a.done)
	})
}
