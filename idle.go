package wireguard

import (
	"runtime"
	"sync/atomic"
)

// Idle cores help where there is much to encrypt: with the next batch of the same source (feed.go), or with parts of
// another goroutine's batch (fork.go). Asking for help costs time, and is useless while no core is idle. Waking a sleeping
// core takes about as long as sealing a batch. So a goroutine whose request was useless stops asking for a while, and a
// helper lingers a little before it ends.

const (
	// shareCost is the least work that is shared, in bytes to be sealed. It pays for waking a core.
	shareCost = 16 << 10
	// messageCost is the fixed cost of sealing a message, in bytes of sealing.
	messageCost = 300

	inVain    = 4  // useless requests in a row, after which a goroutine stops asking
	lookAgain = 32 // opportunities to ask, after which it asks again and reads GOMAXPROCS anew

	lingerLooks = 20000 // about the time from one batch to the next
	awaitLooks  = 8000  // less than that
	lingerPause = 2     // helpers that do not linger after one that lingered for nothing
	yieldAfter  = 64    // looks
)

// sealCost is the work of n messages with the given bytes in total.
func sealCost(n, bytes int) int { return bytes + n*messageCost }

// An idle is what a goroutine that asks idle cores for help remembers.
type idle struct {
	// The asker's.
	limit int // of most, as Config.Helpers has it
	most  int // helpers at a time, one for each other core
	times int // opportunities to ask so far

	vain  atomic.Int32 // useless requests in a row
	out   atomic.Int32 // helpers that have started and not ended
	waste atomic.Int32 // helpers that are not to linger, since the last one lingered for nothing
}

// wanted reports whether to ask for help.
func (a *idle) wanted() bool {
	if a.times%lookAgain == 0 {
		a.most = runtime.GOMAXPROCS(0) - 1
		if a.limit != 0 {
			a.most = min(a.most, max(a.limit, 0))
		}
		a.vain.Store(0)
	}
	a.times++
	return a.most > 0 && a.vain.Load() < inVain
}

// brought notes whether a request was useful.
func (a *idle) brought(much bool) {
	if much {
		a.vain.Store(0)
	} else {
		a.vain.Add(1)
	}
}

// linger lets a helper wait a little until ready, and reports whether it became ready.
func (a *idle) linger(ready func() bool) bool {
	if a.waste.Load() > 0 && a.waste.Add(-1) >= 0 {
		return ready()
	}
	if spin(lingerLooks, ready) {
		return true
	}
	a.waste.Store(lingerPause)
	return false
}

// spin calls ready up to the given number of times, until it is true, and yields now and then.
func spin(looks int, ready func() bool) bool {
	for i := range looks {
		if ready() {
			return true
		}
		if i%yieldAfter == yieldAfter-1 {
			runtime.Gosched()
		}
	}
	return false
}
