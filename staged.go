package wireguard

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/layout"
	"github.com/seed-86b749af/wireguard/internal/ordered"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

// Packets that wait for a session are copied and staged with their peer. The queue is in peer.go.

// A stagedPool knows which peers have staged packets, and how many bytes these take. If they take more than
// Config.StagedBytes, the peer that takes most loses packets. So each of n peers always has an n-th of the pool.
type stagedPool struct {
	mu      sync.Mutex // guards all below, and what peers have there; taken after a peer's
	bytes   atomic.Int64
	holders ordered.Heap[stagedHolder]
}

// A stagedHolder is a peer that has staged packets. The one with the most bytes comes first.
type stagedHolder struct{ *peer }

func (h stagedHolder) Before(o stagedHolder) bool { return h.stagedBytes > o.stagedBytes }
func (h stagedHolder) Place() *int32              { return &h.stagedPlace }

// count takes over the number of bytes that p has staged. p.mu is held.
func (s *stagedPool) count(p *peer) {
	bytes := p.staged.bytes
	if bytes == p.stagedBytes {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes.Add(int64(bytes - p.stagedBytes))
	if p.stagedBytes = bytes; bytes > 0 {
		s.holders.Put(stagedHolder{p})
	} else {
		s.holders.Remove(stagedHolder{p})
	}
}

// largest returns the peer that takes most, or nil if the pool has no more than limit.
func (s *stagedPool) largest(limit int64) *peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes.Load() <= limit {
		return nil
	}
	return s.holders[0].peer
}

// relieve drops the oldest packets of the peers that take most, until the pool has no more than Config.StagedBytes. The caller
// holds no peer's mutex.
func (d *Device) relieve() {
	for p := d.pool.largest(d.maxStagedBytes); p != nil; p = d.pool.largest(d.maxStagedBytes) {
		p.mu.Lock()
		if s := p.staged.pop(); s != nil {
			s.recycle()
			d.drop(p, DropStagedBytes, 1)
		}
		d.pool.count(p)
		p.mu.Unlock()
	}
}

// stageRun leaves copies of the run's packets with the peer.
func (d *Device) stageRun(l *load, run *run) {
	for i := run.First; i != layout.None; i = l.Messages[i].Next {
		d.stage(run.p, l.Packet(int(i)))
	}
}

// stage appends a copy of a packet to the peer's staged packets. If there are too many, it drops the oldest.
func (d *Device) stage(p *peer, packet []byte) {
	s := newStagedPacket(packet)
	for p.staged.n >= maxStaged || p.staged.n > 0 && int64(p.staged.bytes+s.cost()) > d.maxStagedPerPeer {
		p.staged.pop().recycle()
		d.drop(p, DropStagedOverflow, 1)
	}
	p.staged.push(s)
}

// A dueFlush is a peer that something is to be sent to.
type dueFlush struct {
	p         *peer
	keepalive bool // send an empty packet if none is staged
}

// flush is flushAll for one peer.
func (d *Device) flush(p *peer, keepalive bool) { d.flushAll([]dueFlush{{p, keepalive}}) }

// flushAll sends the packets that are staged with each peer, and keepalives. Those to many peers leave in one call to the
// socket. Where a peer has no session, flushAll asks for one. A goroutine that stages behind staged packets flushes too, so
// none is kept here by others.
func (d *Device) flushAll(due []dueFlush) {
	for len(due) > 0 {
		l := newLoad(d.headroom)
		if l.r = d.running.Load(); l.r == nil {
			l.release()
			return
		}
		l.now = d.now()
		some := due[:min(len(due), layout.MaxPackets)]
		l.runs = slices.Grow(l.runs, len(some)) // a run that is in a queue must not move
		for len(some) > 0 && l.Fits(0) && !d.claimStaged(l, &some[0]) {
			some, due = some[1:], due[1:]
		}
		l.layOut()
		l.seal(d.helpers)
		d.finish(l)
		l.release()
	}
}

// claimStaged makes a run of the packets that are staged with a peer, as many as l takes, and numbers it. It reports whether
// packets are left.
func (d *Device) claimStaged(l *load, f *dueFlush) (more bool) {
	p := f.p
	mtu, peerMTU := d.tunnel.MTU(), int(p.mtu.Load())
	var out outbox
	p.mu.Lock()
	keepalive := f.keepalive && p.staged.n == 0
	switch {
	case p.removed, !p.endpoint.IsValid(), d.running.Load() != l.r, !keepalive && p.staged.n == 0:
	case !p.sending(1, l.now, &out):
		if keepalive {
			d.stage(p, nil)
		}
	default:
		run := l.newRun(p)
		if keepalive {
			l.Put(&run.Run, nil, 0, 0)
		}
		for s := p.staged.head; s != nil && p.current.sendable(l.now, run.N+1) && l.Fits(len(s.b)); s = p.staged.head {
			_, ecn, _ := packet.Destination(s.b)
			l.Put(&run.Run, s.b, min(layout.Pad(len(s.b), mtu), layout.Pad(len(s.b), peerMTU)), packet.OuterTOS(ecn))
			p.staged.pop().recycle()
		}
		if run.N > 0 {
			p.number(l, run)
		}
		f.keepalive, more = false, p.staged.n > 0
	}
	d.release(p, &out)
	return more
}

// Staged packets are copied into pooled buffers of two sizes. Larger packets are allocated.
const stagedSmall, stagedLarge = 256, 2048

var (
	smallPackets = sync.Pool{New: func() any { return &stagedPacket{b: make([]byte, 0, stagedSmall)} }}
	largePackets = sync.Pool{New: func() any { return &stagedPacket{b: make([]byte, 0, stagedLarge)} }}
)

// poolOf returns where staged packets with room for n bytes are kept; nil means that they are allocated.
func poolOf(n int) *sync.Pool {
	switch {
	case n == 0 || n > stagedLarge:
		return nil
	case n <= stagedSmall:
		return &smallPackets
	}
	return &largePackets
}

func newStagedPacket(packet []byte) (s *stagedPacket) {
	if pool := poolOf(len(packet)); pool != nil {
		s = pool.Get().(*stagedPacket)
	} else {
		s = &stagedPacket{b: make([]byte, 0, len(packet))}
	}
	s.b = append(s.b[:0], packet...)
	return s
}

// recycle returns the memory of a staged packet.
func (s *stagedPacket) recycle() {
	if pool := poolOf(cap(s.b)); pool != nil {
		pool.Put(s)
	}
}
