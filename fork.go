package wireguard

import "sync/atomic"

// A fork lets idle cores share the AEAD of one batch. Its owner, the goroutine that has the batch, cuts the work into
// parts. The owner and its helpers each take the next free part, and the owner continues when all parts are done:
//
//	owner    ─▶ run ─▶ part 0 ─▶ part 2 ─▶ part 3 ─▶ wait for part 1 ─▶ goes on
//	helper          ╰─▶ part 1 ───────────────────────╯
//
// The owner never waits for a helper to start: without an idle core it does all parts itself. Helpers are goroutines of
// this fork, at most one for each other core. A helper that starts too late finds no part, and either ends or helps with
// the owner's next batch. It touches nothing but the fork then and ends within tenths of a millisecond, so Close does not
// wait for it.
type fork struct {
	part func(i int) // does part i; called concurrently
	join func()      // f.help, made once
	over atomic.Bool // the helpers are done; not a channel, since pooled forks pass from one synctest bubble to another
	idle

	// Fields that all goroutines write have separate cache lines.
	_       [64]byte
	left    atomic.Int32 // parts that no goroutine has taken yet; below 1 means none
	_       [60]byte
	pending atomic.Int32 // parts that are not done, and one more until the owner has done its own
	_       [60]byte
}

const (
	// partCost is the work of one part, in bytes. It is small, because the owner waits for the last part of each helper.
	partCost = 4 << 10
	maxParts = 32

	waitLooks = 2000 // about the time of a part
)

func newFork(part func(i int)) *fork {
	f := &fork{part: part}
	f.join = f.help
	return f
}

// parts returns how many parts to make of n messages with the given bytes in total. Below two, sharing is not worth it.
func parts(n, bytes int) int {
	cost := sealCost(n, bytes)
	if cost < shareCost {
		return 0
	}
	return min(n, maxParts, cost/partCost)
}

// run does parts 0 to n-1 and returns when all are done.
func (f *fork) run(n int) {
	if !f.wanted() {
		for i := range n {
			f.part(i)
		}
		return
	}
	f.pending.Store(int32(n) + 1)
	f.left.Store(int32(n))
	for range min(f.most, n-1) - int(f.out.Load()) {
		f.out.Add(1)
		go f.join()
	}
	own := f.take()
	f.brought(4*(n-own) >= n) // less was hardly worth it
	if f.pending.Add(int32(-own-1)) != 0 {
		f.wait()
	}
}

// help is the body of a helper.
func (f *fork) help() {
	defer f.out.Add(-1)
	for more := true; more; more = f.linger(func() bool { return f.left.Load() > 0 }) {
		if n := f.take(); n > 0 && f.pending.Add(int32(-n)) == 0 {
			f.over.Store(true)
		}
	}
}

// take does parts until none is left, and returns how many it did. It takes a quarter of what is left at a time, so that
// goroutines seldom compete for a part and yet finish at about the same time.
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

// wait returns when the helpers have finished their last parts. That takes at most the time of one part, so wait spins and
// yields, and never parks.
func (f *fork) wait() {
	for !spin(waitLooks, f.over.Load) {
	}
	f.over.Store(false)
}
