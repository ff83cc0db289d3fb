// Package idle lets idle cores help a goroutine that has much to encrypt: with parts of its batch, as a [Fork] does, or with
// its next batch, as a program does that uses [Helpers] itself.
//
// Asking for help costs time, and is useless while no core is idle. Waking a sleeping core takes about as long as sealing a
// batch. So a goroutine whose request was useless stops asking for a while, and a helper lingers a little before it ends.
// Unless the limit is set, nobody asks while other programs want the cores.
package idle

import (
	"runtime"
	"sync/atomic"
)

const (
	// shareCost is the least work that is shared, in bytes to be sealed. Less would not be worth waking a core.
	shareCost = 16 << 10
	// messageCost is the fixed cost of sealing a message, in bytes of sealing.
	messageCost = 300

	inVain    = 4  // useless requests in a row, after which a goroutine stops asking
	lookAgain = 32 // opportunities to ask, after which a goroutine asks again and reads GOMAXPROCS anew

	lingerLooks = 20000 // about the time from one batch to the next
	lingerPause = 2     // helpers that do not linger after one that lingered for nothing
	yieldAfter  = 64    // looks
)

// cost is the work of n messages with the given bytes in total.
func cost(n, bytes int) int { return bytes + n*messageCost }

// IsMuch reports whether n messages with the given bytes in total are worth an idle core's help.
func IsMuch(n, bytes int) bool { return cost(n, bytes) >= shareCost }

// Helpers is what a goroutine that asks idle cores for help remembers, and what its helpers share. The zero value is ready.
// It must not be copied after its first use.
type Helpers struct {
	// Limit bounds the helpers at one time. Zero means one for each core but the asker's, or none while other programs want
	// the cores. Negative means none. Only the asker uses it and the next two fields.
	Limit int
	most  int // helpers at a time
	times int // opportunities to ask so far

	vain  atomic.Int32 // useless requests in a row
	out   atomic.Int32 // helpers that have started and not ended
	waste atomic.Int32 // helpers that will not linger, because an earlier one lingered for nothing
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

// End says that a helper ends.
func (h *Helpers) End() { h.out.Add(-1) }

// Brought notes whether a request was useful.
func (h *Helpers) Brought(much bool) {
	if much {
		h.vain.Store(0)
	} else {
		h.vain.Add(1)
	}
}

// Linger lets a helper wait a little until ready, and reports whether it became ready.
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

// Spin calls ready up to the given number of times, until it is true, and yields now and then.
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
