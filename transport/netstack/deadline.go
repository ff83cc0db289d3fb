package netstack

import (
	"sync"
	"time"
)

// A deadline is the time limit of one direction of a connection. The zero value is no limit. It is safe for concurrent
// use and must not be copied.
type deadline struct {
	mu      sync.Mutex // guards the fields below
	timer   *time.Timer
	expired chan struct{} // closed when the limit has passed; nil until someone waits
	past    bool          // the limit has passed
	setting uint          // counts calls of set, so that a timer that set could not stop does nothing
}

// set moves the limit to t, even for operations that are waiting. The zero time removes the limit.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setting++
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if d.past {
		d.past, d.expired = false, nil
	}
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.pass()
		return
	}
	setting := d.setting
	d.timer = time.AfterFunc(wait, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.setting == setting {
			d.timer = nil
			d.pass()
		}
	})
}

// pass marks the limit as passed. d.mu is held.
func (d *deadline) pass() {
	d.past = true
	if d.expired != nil {
		close(d.expired)
	}
}

// hasPassed reports whether the limit has passed.
func (d *deadline) hasPassed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.past
}

// wait returns a channel that is closed when the limit passes.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.expired == nil {
		d.expired = make(chan struct{})
		if d.past {
			close(d.expired)
		}
	}
	return d.expired
}

// stop ends the timer, if there is one.
func (d *deadline) stop() { d.set(time.Time{}) }
