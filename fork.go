package wireguard

import (
	"runtime"
	"sync/atomic"
)

// A fork lets idle cores do a share of one batch's AEAD. Its owner, the goroutine of the batch, cuts the work into parts;
// whoever is free takes the next part, and the owner goes on when all are done:
//
//	owner    ─▶ run ─▶ part 0 ─▶ part 2 ─▶ part 3 ─▶ wait for part 1 ─▶ goes on
//	helper          ╰─▶ part 1 ───────────────────────╯
//
// The owner never waits for a helper to start: without an idle core it does all parts itself. Helpers are goroutines of
// this one fork, one for each other core at most; one that comes too late finds no part and ends, or helps with the
// owner's next batch. It touches nothing but the fork then, and is gone within some tenths of a millisecond, so Close does not
// wait for it.
type fork struct {
	part func(i int) // does part i; called concurrently
	help func()      // f.join, made once
	over chan struct{}

	// Where no core is idle, asking for help costs and brings nothing: after some runs without any, the owner asks no
	// more until it looks again. GOMAXPROCS may change meanwhile too.
	helpers  int // goroutines to start
	unhelped int // runs of which helpers did less than a quarter, in a row
	runs     int

	// What all write has cache lines of its own.
	_       [64]byte
	left    atomic.Int32 // parts that nobody took yet; below 1: none
	_       [60]byte
	pending atomic.Int32 // parts that are not done, and one more until the owner has done its own
	out     atomic.Int32 // helpers that were started and have not ended
	waste   atomic.Int32 // helpers that shall not linger, since the last one did so in vain
	_       [52]byte
}

const (
	// forkCost is the least work to share, in bytes to be sealed: enough to pay for waking a core.
	forkCost = 16 << 10
	// partCost is the work of one part: little, since the owner waits for the last one of each helper.
	partCost = 4 << 10
	// messageCost is what sealing a message costs beside its bytes, in bytes.
	messageCost = 300
	maxParts    = 32

	unhelpedRuns = 4  // in a row: then the owner goes on alone
	lookAgain    = 32 // runs

	lingerLooks = 20000 // about the time in which a batch comes and goes
	lingerYield = 64    // looks
	lingerPause = 2     // helpers that do not linger after one that did so in vain
)

func newFork(part func(i int)) *fork {
	f := &fork{part: part, over: make(chan struct{}, 1)}
	f.help = f.join
	return f
}

// parts is how many parts to make of n messages of so many bytes altogether; less than two: it is not worth it.
func parts(n, bytes int) int {
	cost := bytes + n*messageCost
	if cost < forkCost {
		return 0
	}
	return min(n, maxParts, cost/partCost)
}

// run does parts 0 to n-1 and returns when all are done.
func (f *fork) run(n int) {
	if f.runs%lookAgain == 0 {
		f.helpers, f.unhelped = runtime.GOMAXPROCS(0)-1, 0
	}
	f.runs++
	if f.helpers == 0 || f.unhelped == unhelpedRuns {
		for i := range n {
			f.part(i)
		}
		return
	}
	f.pending.Store(int32(n) + 1)
	f.left.Store(int32(n))
	for range min(f.helpers, n-1) - int(f.out.Load()) {
		f.out.Add(1)
		go f.help()
	}
	own := f.take()
	if 4*(n-own) < n {
		f.unhelped++
	} else {
		f.unhelped = 0
	}
	if f.pending.Add(int32(-own-1)) != 0 {
		f.wait()
	}
}

// join is what a helper does.
func (f *fork) join() {
	defer f.out.Add(-1)
	for more := true; more; more = f.linger() {
		if n := f.take(); n > 0 && f.pending.Add(int32(-n)) == 0 {
			f.over <- struct{}{}
		}
	}
}

// linger waits a little for the next run, and reports whether there is one. To wake a core that sleeps takes about as long
// as to seal a batch: under load the helper is to be there already.
func (f *fork) linger() bool {
	if f.waste.Load() > 0 && f.waste.Add(-1) >= 0 {
		return false
	}
	for i := range lingerLooks {
		if f.left.Load() > 0 {
			return true
		}
		if i%lingerYield == 0 {
			runtime.Gosched()
		}
	}
	f.waste.Store(lingerPause)
	return false
}

// take does parts until none is left, and returns how many: a quarter of what is left at a time, so that who works on the
// same run seldom meets, and ends at about the same time all the same.
func (f *fork) take() (n int) {
	for {
		some := max(f.left.Load()/4, 1)
		i := f.left.Add(-some)
		if i+some <= 0 {
			return n
		}
		for j := max(i, 0); j < i+some; j++ {
			f.part(int(j))
			n++
		}
	}
}

// wait returns when the helpers are done with their last parts: within one part's time, so it looks a few times before
// it parks.
func (f *fork) wait() {
	for range 32 {
		select {
		case <-f.over:
			return
		default:
			runtime.Gosched()
		}
	}
	<-f.over
}
