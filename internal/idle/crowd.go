package idle

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A crowd tells whether other programs want the cores on which this one runs. Then a core that this program does not use is not
// idle. A helper there takes time from those programs, and they interrupt it while the owner of the batch waits for it.
//
// The sign is how often the system takes a core from a thread that would go on. A program that is alone on two cores loses one some
// hundred times per second, however busy it is. Beside another busy program, it does so thousands of times.
type crowd struct {
	preempted func() int64 // how often that happened so far
	full      atomic.Bool

	mu    sync.Mutex // guards the rest
	since time.Time  // when the present look began; while full is set, when the next one is to begin
	count int64      // preempted then
	signs int        // looks in a row that found the sign
}

const (
	crowdLook  = 50 * time.Millisecond // how long a look takes
	crowdSigns = 2                     // looks in a row that must find the sign, because a burst of garbage collection looks like it
	crowdRate  = 600                   // per second and core
	crowdHold  = time.Second           // how long the cores count as wanted by others
)

var others = crowd{preempted: preemptions}

// wants reports whether other programs want the cores. It costs nanoseconds, and a system call per look.
func (c *crowd) wants() bool {
	if !c.mu.TryLock() {
		return c.full.Load()
	}
	defer c.mu.Unlock()
	now := time.Now()
	took := now.Sub(c.since)
	switch {
	case took < 0 && took >= -crowdHold: // hold, unless the clock went back a little
	case c.full.Load() || took < 0 || took > 4*crowdLook: // what happened in a long time says little about now
		c.full.Store(false)
		c.since, c.count, c.signs = now, c.preempted(), 0
	case took >= crowdLook:
		n := c.preempted()
		if rate := float64(n-c.count) / took.Seconds(); rate < crowdRate*float64(runtime.GOMAXPROCS(0)) {
			c.signs = 0
		} else {
			c.signs++
		}
		if c.since, c.count = now, n; c.signs == crowdSigns {
			c.full.Store(true)
			c.since = now.Add(crowdHold)
		}
	}
	return c.full.Load()
}
