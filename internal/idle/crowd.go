package idle

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A crowd detects whether other programs need the cores on which this program runs. If they do, a core that this program does not
// use is not idle. A helper on such a core takes time from the other programs. The other programs also interrupt the helper, while
// the owner of the batch waits for it.
//
// A crowd measures how often the system preempts a thread of this program. On two cores, most measurements find 100 to 200
// preemptions per second while the program runs alone, but one in ten finds more than 1,000, also without garbage collection. While
// another program uses the cores too, as the generator of many/200 does, nine in ten find more than 5,000.
type crowd struct {
	preempted func() int64 // returns how often the system has preempted a thread so far
	full      atomic.Bool

	mu    sync.Mutex // guards the fields below
	since time.Time  // when the present measurement began; while full is set, when the next one begins
	count int64      // the result of preempted at the time when the present measurement began
	signs int        // measurements in a row that found many preemptions
}

const (
	crowdLook  = 50 * time.Millisecond // how long a measurement takes
	crowdSigns = 2                     // measurements in a row that must find many; a single one does without another program too
	crowdRate  = 600                   // this many preemptions per second and core, or more, count as many
	crowdHold  = time.Second           // how long full stays set
)

var others = crowd{preempted: preemptions}

// wants reports whether other programs need the cores. A call takes nanoseconds, and makes a system call once per measurement.
func (c *crowd) wants() bool {
	if !c.mu.TryLock() {
		return c.full.Load()
	}
	defer c.mu.Unlock()
	now := time.Now()
	took := now.Sub(c.since)
	switch {
	case took < 0 && took >= -crowdHold: // the field full stays set; if it is not set, the clock went back by less than crowdHold
	case c.full.Load() || took < 0 || took > 4*crowdLook: // an average over a long time says little about the present
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
