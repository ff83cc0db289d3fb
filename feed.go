package wireguard

import (
	"sync"
	"sync/atomic"
)

// The way out of a source. A batch is one goroutine's from the source to the socket. While it seals a large one, another
// goroutine may read and seal the next, on an idle core. They claim counters in the order in which they read, and send in
// that order again:
//
//	carry ─▶ take, read, claim ─▶ seal ───────────────────▶ send ─▶ take, read, claim ─▶ seal ─▶ ...
//	              share ╰─▶ carry ─▶ take, read, claim ─▶ seal ─▶ await, send ─▶ take, ...
//
// So a packet's bytes stay with one core. Where cores share one batch, as by a fork, what one core wrote the other one fetches,
// and back for the next batch; and reading and sending stay with one of them.

// A lane is the order of the batches of one source, or of one sender. It has a peer's turn as long as one of its batches
// that has a run to the peer is under way, and others of the lane may join it.
type lane struct {
	next atomic.Uint32 // number of the next batch that claims counters
	done atomic.Uint32 // batches that are sent and accounted for

	mu      sync.Mutex
	waiting atomic.Int32 // those who await; changes with mu held
	more    sync.Cond    // of done; a feed's has mu
}

// A feed is a source and what the goroutines know that carry its packets.
type feed struct {
	PacketSource
	lane
	idle
	carry func()      // Device.carry, made once
	taken atomic.Bool // by the one that reads
}

func (d *Device) newFeed(s PacketSource) *feed {
	f := &feed{PacketSource: s}
	f.carry = func() { d.carry(f) }
	f.more.L = &f.mu
	return f
}

// carry sends batches from f until f fails, or until others carry all.
func (d *Device) carry(f *feed) {
	defer d.wg.Done()
	b := batches.Get().(*Batch)
	d.lay(b)
	for held := f.take(); held; {
		err := f.ReadPackets(b)
		b.out.lane = &f.lane
		shared := false
		if b.Len() > 0 && d.begin(b) == nil {
			if shared = err == nil && b.out.contended == nil && b.isMuch() && f.wanted(); shared {
				d.share(f)
			}
			b.seal()
			b.pack()
			if b.out.follows {
				f.brought(f.await(b.out.number))
			}
			d.finish(b)
		}
		switch {
		case shared:
			if f.next.Load() == b.out.number+1 {
				f.brought(false) // nobody had another batch meanwhile
			}
			held = f.take()
		case err != nil: // and it stays taken
			f.await(f.next.Load())
			if p := b.out.contended; p != nil {
				d.awaitTurn(b)
				d.flush(p, false) // unless who had the turn has begun to
			}
			d.sourceEnded(err)
			held = false
		default:
			d.awaitTurn(b)
		}
	}
	b.out.lane = nil
	batches.Put(b)
}

// share gives the source to whoever takes it, and starts a goroutine to do so, unless there are enough.
func (d *Device) share(f *feed) {
	start := int(f.out.Load()) < f.most
	if start {
		f.out.Add(1)
		d.wg.Add(1)
	}
	f.taken.Store(false)
	if start {
		go f.carry()
	}
}

// take takes the source once it is free. If that lasts, little comes, and the one who has it is enough.
func (f *feed) take() bool {
	taken := f.linger(func() bool { return !f.taken.Load() && f.taken.CompareAndSwap(false, true) })
	if !taken {
		f.out.Add(-1)
	}
	return taken
}

// await waits until n batches are done, and reports whether that was soon.
func (l *lane) await(n uint32) bool {
	isDone := func() bool { return l.done.Load() == n }
	if spin(awaitLooks, isDone) {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting.Add(1)
	for !isDone() {
		l.more.Wait()
	}
	l.waiting.Add(-1)
	return false
}

// advance tells that one more batch is done.
func (l *lane) advance() {
	l.done.Add(1)
	if l.waiting.Load() > 0 {
		l.mu.Lock()
		l.more.Broadcast()
		l.mu.Unlock()
	}
}
