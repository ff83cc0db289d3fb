package wireguard

import (
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/idle"
)

// A source's load is carried by one goroutine from the source to the socket. While that goroutine seals a large load,
// another one may read and seal the next, on an idle core:
//
//	carry ─▶ take, read, claim ─▶ seal ─▶ lead ─────────▶ take, read, claim ─▶ seal ─▶ lead ─▶ ...
//	              share ╰─▶ carry ─▶ take, read, claim ─▶ seal ─▶ hand in ─▶ take, ...
//
// So a packet's bytes stay with one core. If cores shared one load, as in a fork, each cache line would move to the other
// core and back, and reading and sending would stay with one of them.

// awaitLooks is how often await looks before it waits: for less than the time from one batch to the next.
const awaitLooks = 8000

// A feed is a source and what the goroutines that carry its packets share.
type feed struct {
	PacketSource
	idle.Helpers
	carry func()        // Device.carry, made once
	taken atomic.Bool   // by the goroutine that reads
	reads atomic.Uint32 // calls of ReadPackets

	underWay atomic.Int32  // loads that were read and are not sent yet
	fewer    chan struct{} // holds a token once underWay has shrunk since await last looked
}

func (d *Device) newFeed(s PacketSource) *feed {
	f := &feed{PacketSource: s, fewer: make(chan struct{}, 1)}
	f.carry = func() { d.carry(f) }
	f.Limit = d.helpers
	return f
}

// share offers the source to other goroutines, and starts one unless there are enough.
func (d *Device) share(f *feed) {
	start := f.Start()
	if start {
		d.wg.Add(1)
	}
	f.taken.Store(false)
	if start {
		go f.carry()
	}
}

// take takes the source once it is free. If that takes long, the source brings little, and the goroutine that has it is
// enough.
func (f *feed) take() bool {
	taken := f.Linger(func() bool { return !f.taken.Load() && f.taken.CompareAndSwap(false, true) })
	if !taken {
		f.End()
	}
	return taken
}

// await waits until at most n loads are under way. A load waits for the socket at most, never for a single peer. So a
// source is held back while it brings more than is sent. Only the goroutine that has taken the source calls await.
func (f *feed) await(n int) {
	fewEnough := func() bool { return int(f.underWay.Load()) <= n }
	if idle.Spin(awaitLooks, fewEnough) {
		return
	}
	for !fewEnough() {
		<-f.fewer
	}
}

// sent says that one more load was sent, or dropped.
func (f *feed) sent() {
	f.underWay.Add(-1)
	select {
	case f.fewer <- struct{}{}:
	default:
	}
}
