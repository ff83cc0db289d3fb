package wireguard

import (
	"slices"

	"github.com/seed-86b749af/wireguard/internal/layout"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

// Packets that wait for a session are copied and staged with their peer; see internal/staged.

// relieve drops the oldest packets of the peers whose staged packets take the most memory, until all staged packets together take
// at most Config.StagedBytes. The caller holds no peer's mutex.
func (d *Device) relieve() {
	for p, ok := d.pool.Largest(d.maxStagedBytes); ok; p, ok = d.pool.Largest(d.maxStagedBytes) {
		p.mu.Lock()
		if p.staged.N > 0 {
			p.staged.Pop()
			d.drop(p, DropStagedBytes, 1)
		}
		d.pool.Count(p, &p.account, p.staged.Bytes)
		p.mu.Unlock()
	}
}

// stageRun stages copies of the run's packets with the peer.
func (d *Device) stageRun(l *load, run *run) {
	for i := run.First; i != layout.None; i = l.Messages[i].Next {
		d.stage(run.p, l.Packet(int(i)))
	}
}

// stage appends a copy of a packet to the peer's staged packets. If these would then be too many, or take too much memory, stage
// first drops the oldest ones.
func (d *Device) stage(p *peer, packet []byte) {
	d.drop(p, DropStagedOverflow, p.staged.Push(packet, d.maxStagedPerPeer))
}

// A dueFlush is a peer to which something is to be sent.
type dueFlush struct {
	p         *peer
	keepalive bool // send an empty packet if none is staged
}

// flushAll sends, for each peer in due, the staged packets or a keepalive. It sends packets to many peers in one call to the
// socket. If a peer has no session, flushAll asks for one. A goroutine that stages a packet behind others also calls flushAll. So
// one goroutine need not stay in flushAll to send the packets that others stage meanwhile.
func (d *Device) flushAll(due []dueFlush) {
	for len(due) > 0 {
		l := newLoad(d.headroom)
		if l.r = d.running.Load(); l.r == nil {
			l.release()
			return
		}
		l.now = d.now()
		some := due[:min(len(due), layout.MaxPackets)]
		l.runs = slices.Grow(l.runs, len(some)) // a run that is in a queue must not move in memory
		for len(some) > 0 && l.Fits(0) && !d.claimStaged(l, &some[0]) {
			some, due = some[1:], due[1:]
		}
		l.layOut()
		l.seal(d.helpers)
		d.finish(l)
		l.release()
	}
}

// claimStaged makes a run of as many of a peer's staged packets as fit into l, and numbers the run. It reports whether staged
// packets are left.
func (d *Device) claimStaged(l *load, f *dueFlush) (more bool) {
	p := f.p
	mtu, peerMTU := d.tunnel.MTU(), int(p.mtu.Load())
	var out outbox
	p.mu.Lock()
	keepalive := f.keepalive && p.staged.N == 0
	switch {
	case p.removed, !p.endpoint.IsValid(), d.running.Load() != l.r, !keepalive && p.staged.N == 0:
	case !p.sending(1, l.now, &out):
		if keepalive {
			d.stage(p, nil)
		}
	default:
		run := l.newRun(p)
		if keepalive {
			l.Put(&run.Run, nil, 0, 0)
		}
		for p.staged.N > 0 && p.current.sendable(l.now, run.N+1) && l.Fits(len(p.staged.Oldest())) {
			pkt := p.staged.Oldest()
			_, ecn, _ := packet.Destination(pkt)
			l.Put(&run.Run, pkt, min(layout.Pad(len(pkt), mtu), layout.Pad(len(pkt), peerMTU)), packet.OuterTOS(ecn))
			p.staged.Pop()
		}
		if run.N > 0 {
			p.number(l, run)
		}
		f.keepalive, more = false, p.staged.N > 0
	}
	d.release(p, &out)
	return more
}
