package wireguard

import (
	"runtime"
	"sync/atomic"
)

// Idle cores help where there is much to encrypt: by a batch of their own from a source (feed.go), or by parts of another
// goroutine's batch (fork.go). Asking for help costs, and brings nothing where no core is idle; and to wake a core that
// sleeps takes about as long as to seal a batch. So who asks in vain asks no more for a while, and who helped stays a little.

const (
	// shareCost is the least work to share, in bytes to be sealed: enough to pay for waking a core.
	shareCost = 16 << 10
	// messageCost is what sealing a message costs beside its bytes, in bytes.
	messageCost = 300

	inVain    = 4  // times in a row: then nobody is asked
	lookAgain = 32 // times that one could have asked: then one does again, by the GOMAXPROCS of that time

	lingerLooks = 20000 // about the time in which a batch comes and goes
	awaitLooks  = 8000  // some part of that
	lingerPause = 2     // helpers that do not linger after one that did so in vain
	yieldAfter  = 64    // looks
)

// sealCost is the work of n messages of so many bytes altogether.
func sealCost(n, bytes int) int { return bytes + n*messageCost }

// An idle is what one who asks for the help of idle cores knows of it.
type idle struct {
	// The asker's.
	most  int // helpers at a time, one for each other core
	times int // that it could have asked

	vain  atomic.Int32 // times in a row that asking brought nothing
	out   atomic.Int32 // helpers that were started and have not ended
	waste atomic.Int32 // helpers that shall not linger, since the last one did so in vain
}

// wanted reports whether to ask for help.
func (a *idle) wanted() bool {
	if a.times%lookAgain == 0 {
		a.most = runtime.GOMAXPROCS(0) - 1
		a.vain.Store(0)
	}
	a.times++
	return a.most > 0 && a.vain.Load() < inVain
}

// brought tells whether asking was of use.
func (a *idle) brought(much bool) {
	if much {
		a.vain.Store(0)
	} else {
		a.vain.Add(1)
	}
}

// linger lets a helper wait a little for ready, and reports whether that came.
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

// spin looks so many times whether ready is true, and lets other goroutines run now and then.
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
