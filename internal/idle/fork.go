package idle

import "sync/atomic"

// A Fork distributes the encryption or decryption of one batch of messages over idle cores. Its owner, the goroutine that has the
// batch, divides the work into parts. The owner and its helpers each process the next free part, and the owner continues when all
// parts are done:
//
//	owner    ─▶ Run ─▶ part 0 ─▶ part 2 ─▶ part 3 ─▶ wait for part 1 ─▶ goes on
//	helper          ╰─▶ part 1 ───────────────────────╯
//
// The owner never waits for a helper to start: without an idle core it does all parts itself. Helpers are goroutines of this fork,
// at most one for each other core. A helper that starts too late finds no part, and either ends or helps with the owner's next
// batch. While a helper finds no part, it accesses only the Fork. If it finds no part within a few tenths of a millisecond, the
// helper ends. So no goroutine has to wait for helpers that have no part.
//
// The zero value is ready once Do is set. A Fork must not be copied after its first use.
type Fork struct {
	Do      func(from, end int) // works on the messages [from, end); called concurrently
	n, size int                 // the number of messages, and of messages in each part; the last part may have fewer
	join    func()              // the method value f.help, made once, at the first start, because making it allocates
	over    atomic.Bool         // a helper ended the last part; a channel could not leave its synctest bubble with a pooled Fork
	Helpers

	// Fields that all goroutines write have separate cache lines.
	_       [64]byte
	left    atomic.Int32 // parts that no goroutine has taken yet; below 1 means none
	_       [60]byte
	pending atomic.Int32 // parts that are not done, plus one until the owner has done its own parts
	_       [60]byte
}

const (
	// partCost is the least work of one part, in bytes to be sealed. It is small, because at the end the owner waits until each
	// helper has finished its part.
	partCost = 4 << 10
	maxParts = 32

	waitLooks = 2000 // checks of wait in each call of Spin; they take about as long as a part
)

// partsOf returns how many parts to make of n messages with the given bytes in total. A result below two means that help is not
// worth its cost.
func partsOf(n, bytes int) int {
	if !IsMuch(n, bytes) {
		return 0
	}
	return min(n, maxParts, cost(n, bytes)/partCost)
}

// Run makes Do work on the messages 0 to n-1, with the given bytes in total, and returns when all are done.
func (f *Fork) Run(n, bytes int) {
	parts := partsOf(n, bytes)
	if parts < 2 || !f.Wanted() {
		f.Do(0, n)
		return
	}
	f.n, f.size = n, (n+parts-1)/parts
	parts = (n + f.size - 1) / f.size
	f.pending.Store(int32(parts) + 1)
	f.left.Store(int32(parts))
	if f.join == nil {
		f.join = f.help
	}
	for f.Out() < parts-1 && f.Start() {
		go f.join()
	}
	own := f.take()
	f.Brought(4*(parts-own) >= parts) // helpers that do less than a quarter of the parts are not worth their cost
	if f.pending.Add(int32(-own-1)) != 0 {
		f.wait()
	}
}

// help is the body of a helper.
func (f *Fork) help() {
	defer f.End()
	for more := true; more; more = f.Linger(func() bool { return f.left.Load() > 0 }) {
		if n := f.take(); n > 0 && f.pending.Add(int32(-n)) == 0 {
			f.over.Store(true)
		}
	}
}

// take processes parts until none is free, and returns how many it processed. It takes a quarter of the free parts at a time. So
// goroutines seldom compete for a part, and yet finish at about the same time.
func (f *Fork) take() (done int) {
	for {
		some := max(f.left.Load()/4, 1)
		i := f.left.Add(-some)
		if i+some <= 0 {
			return done
		}
		first, end := int(max(i, 0)), int(i+some)
		f.Do(first*f.size, min(end*f.size, f.n))
		done += end - first
	}
}

// wait returns when the helpers have finished their last parts. That takes at most the time of one part, so wait spins and
// yields, and never parks.
func (f *Fork) wait() {
	for !Spin(waitLooks, f.over.Load) {
	}
	f.over.Store(false)
}
