package idle

import "sync/atomic"

// awaitLooks is how many times Await checks its condition before it blocks. These checks take less time than passes from one load
// to the next.
const awaitLooks = 8000

// A Relay lets several goroutines process the loads of one source. A load is, for example, a batch of packets. The goroutine that
// has the source reads a load. The goroutine may then offer the source to other goroutines before it processes the load. Make a
// Relay with NewRelay, and do not copy it.
type Relay struct {
	Helpers
	taken    atomic.Bool   // a goroutine has the source
	underWay atomic.Int32  // loads that were read and are not sent yet
	fewer    chan struct{} // has an element if underWay has decreased since Await last received an element
}

// NewRelay returns a relay. limit bounds its helpers, as Helpers.Limit says.
func NewRelay(limit int) *Relay {
	return &Relay{Helpers: Helpers{Limit: limit}, fewer: make(chan struct{}, 1)}
}

// Take waits until the source is free, but at most as long as Linger. It then takes the source, and returns true. If the source
// does not become free in that time, the goroutine that has it can process its few loads alone. Take then returns false, and the
// caller must end.
func (r *Relay) Take() bool {
	taken := r.Linger(func() bool { return !r.taken.Load() && r.taken.CompareAndSwap(false, true) })
	if !taken {
		r.End()
	}
	return taken
}

// Offer lets another goroutine take the source, and reports whether to start one. The caller has the source.
func (r *Relay) Offer() (start bool) {
	start = r.Start()
	r.taken.Store(false)
	return start
}

// Begin counts a load that was read. The caller has the source.
func (r *Relay) Begin() { r.underWay.Add(1) }

// Sent counts a load that was sent or dropped.
func (r *Relay) Sent() {
	r.underWay.Add(-1)
	select {
	case r.fewer <- struct{}{}:
	default:
	}
}

// UnderWay returns how many loads were read and are not sent yet.
func (r *Relay) UnderWay() int { return int(r.underWay.Load()) }

// Await waits until at most n loads are under way. The caller has the source.
func (r *Relay) Await(n int) {
	fewEnough := func() bool { return r.UnderWay() <= n }
	if Spin(awaitLooks, fewEnough) {
		return
	}
	for !fewEnough() {
		<-r.fewer
	}
}
