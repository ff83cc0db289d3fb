// Package idle lets idle cores help a goroutine that has much to encrypt. With a [Fork], they process parts of the goroutine's
// batch. With [Helpers] alone, they can process its next batch.
//
// Asking for help means starting a helper, which is a goroutine. That costs time, and is useless while no core is idle. Waking a
// sleeping core takes about as long as sealing a batch. So a goroutine whose request was useless stops asking for a while, and a
// helper waits a little for more work before it ends. Unless Helpers.Limit is set, no goroutine asks while other programs need
// the cores.
package idle

import (
	"runtime"
	"sync/atomic"
)

const (
	// shareCost is the least work, in bytes to be sealed, for which it is worth waking another core.
	shareCost = 16 << 10
	// messageCost is the fixed cost of sealing a message, given as the number of bytes that take the same time to seal.
	messageCost = 300

	inVain    = 4  // useless requests in a row, after which a goroutine stops asking
	lookAgain = 32 // calls of Wanted, after which a goroutine asks again and reads GOMAXPROCS again

	lingerLooks = 20000 // checks of Linger; they take about the time from one batch to the next
	lingerPause = 2     // how many helpers do not linger after one that lingered and found no work
	yieldAfter  = 64    // checks after which Spin yields the processor
)

// cost is the work of n messages with the given bytes in total.
func cost(n, bytes int) int { return bytes + n*messageCost }

// IsMuch reports whether n messages with the given bytes in total are worth an idle core's help.
func IsMuch(n, bytes int) bool { return cost(n, bytes) >= shareCost }

// Helpers is the state of a goroutine that asks idle cores for help (the asker). Its helpers share this state. The zero value is
// ready. Do not copy Helpers after their first use.
type Helpers struct {
	// Limit is the largest number of helpers at one time. Zero means one helper for each core except the asker's, or no helper
	// while other programs need the cores. A negative Limit means no helpers. Only the asker uses Limit, most and times.
	Limit int
	most  int // the largest number of helpers at one time, from Limit and the cores
	times int // calls of Wanted so far

	vain  atomic.Int32 // useless requests in a row
	out   atomic.Int32 // helpers that have started and not ended
	waste atomic.Int32 // helpers that will not linger, because an earlier one lingered and found no work
}

// Wanted reports whether to ask for help. Only the asker calls it.
func (h *Helpers) Wanted() bool {
	if h.times%lookAgain == 0 {
		h.most = runtime.GOMAXPROCS(0) - 1
		if h.Limit != 0 {
			h.most = min(h.most, max(h.Limit, 0))
		} else if others.wants() {
			h.most = 0
		}
		h.vain.Store(0)
	}
	h.times++
	return h.most > 0 && h.vain.Load() < inVain
}

// Most returns how many helpers there may be at one time, as Wanted found it last. Only the asker calls it.
func (h *Helpers) Most() int { return h.most }

// Out returns how many helpers have started and not ended.
func (h *Helpers) Out() int { return int(h.out.Load()) }

// Start reports whether to start one more helper, which calls End when it ends. Only the asker calls Start.
func (h *Helpers) Start() bool {
	start := h.Out() < h.most
	if start {
		h.out.Add(1)
	}
	return start
}

// End records that a helper ends.
func (h *Helpers) End() { h.out.Add(-1) }

// Brought records whether a request for help was useful.
func (h *Helpers) Brought(much bool) {
	if much {
		h.vain.Store(0)
	} else {
		h.vain.Add(1)
	}
}

// Linger waits a little until ready returns true, and reports whether it did. A helper that has no work calls it.
func (h *Helpers) Linger(ready func() bool) bool {
	if h.waste.Load() > 0 && h.waste.Add(-1) >= 0 {
		return ready()
	}
	if Spin(lingerLooks, ready) {
		return true
	}
	h.waste.Store(lingerPause)
	return false
}

// Spin calls ready up to the given number of times, until ready returns true, and reports whether it did. Spin yields the
// processor now and then.
func Spin(looks int, ready func() bool) bool {
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
