// Package idle lets idle cores help a goroutine that has much to encrypt. With a [Fork], they process parts of the goroutine's
// batch. With [Helpers] alone, they can process its next batch.
//
// Asking for help means starting a helper, which is a goroutine. A start costs time, and is useless while no core is idle. Waking a
// sleeping core takes about as long as sealing a batch. So after 16 useless requests in a row, a goroutine stops asking for a
// while. And a helper without work checks for more work up to 20,000 times before it ends. Unless Helpers.Limit is set, no
// goroutine asks while other programs need the cores.
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

	// inVain is the number of useless requests in a row after which a goroutine stops asking. A request is cheap while a helper
	// still lingers, and a lingering helper keeps its core awake. With 4 requests, helpers end and start again so often that
	// pipeline/64 is an eighth slower. With no limit, it is a fifth slower while goroutines of the program use all cores.
	inVain    = 16
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
	// while other programs need the cores. A negative Limit means no helpers. Only the asker accesses the fields Limit, most and
	// times.
	Limit int
	most  int // the largest number of helpers at one time, from Limit and the cores
	times int // calls of Wanted so far

	vain  atomic.Int32 // useless requests in a row
	out   atomic.Int32 // helpers that have started and not ended
	waste atomic.Int32 // how many of the next calls of Linger do not wait, because a helper lingered and found no work
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

// Most returns the largest number of helpers at one time. Calls of Wanted determine this number. Only the asker calls it.
func (h *Helpers) Most() int { return h.most }

// Out returns how many helpers have started and not ended.
func (h *Helpers) Out() int { return int(h.out.Load()) }

// Start reports whether the caller must start one more helper, and already counts that helper as started. The helper calls End when
// it ends. Only the asker calls Start.
func (h *Helpers) Start() bool {
	start := h.Out() < h.most
	if start {
		h.out.Add(1)
	}
	return start
}

// End records that a helper ends.
func (h *Helpers) End() { h.out.Add(-1) }

// Brought records whether a request for help was useful, which means that it brought much help.
func (h *Helpers) Brought(much bool) {
	if much {
		h.vain.Store(0)
	} else {
		h.vain.Add(1)
	}
}

// Linger calls ready up to 20,000 times, until ready returns true, and reports whether ready returned true. A helper that has no
// work calls Linger.
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

// Spin calls ready up to the given number of times, until ready returns true, and reports whether ready returned true. Spin yields
// the processor after every 64th call.
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
