package wireguard

import (
	"sync"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// Packets that wait for a session are copied and staged with their peer. The queue is in peer.go.

// stageRun leaves copies of the run's packets with the peer.
func (d *Device) stageRun(l *load, run *run) {
	for i := run.first; i != none; i = l.msgs[i].next {
		d.stage(run.p, l.packet(int(i)))
	}
}

// stage appends a copy of a packet to the peer's staged packets. If there are too many, it drops the oldest.
func (d *Device) stage(p *peer, packet []byte) {
	s := newStagedPacket(packet)
	for p.staged.n >= maxStaged || p.staged.n > 0 && p.staged.bytes+s.cost() > d.maxStagedPerPeer {
		d.unstage(p.staged.pop())
		d.drop(p, DropStagedOverflow, 1)
	}
	if used := d.stagedBytes.Add(s.cost()); used > d.maxStagedBytes && len(packet) > 0 {
		d.unstage(s)
		d.drop(p, DropStagedBytes, 1)
		return
	}
	p.staged.push(s)
}

// unstage returns the memory of a staged packet.
func (d *Device) unstage(s *stagedPacket) {
	d.stagedBytes.Add(-s.cost())
	switch cap(s.b) {
	case stagedSmall:
		stagedPackets[0].Put(s)
	case stagedLarge:
		stagedPackets[1].Put(s)
	}
}

// Staged packets are copied into pooled buffers of two sizes. Larger packets are allocated.
const stagedSmall, stagedLarge = 256, 2048

var stagedPackets = [2]sync.Pool{
	{New: func() any { return &stagedPacket{b: make([]byte, 0, stagedSmall)} }},
	{New: func() any { return &stagedPacket{b: make([]byte, 0, stagedLarge)} }},
}

func newStagedPacket(packet []byte) *stagedPacket {
	var s *stagedPacket
	switch n := len(packet); {
	case n == 0:
		return new(stagedPacket)
	case n <= stagedSmall:
		s = stagedPackets[0].Get().(*stagedPacket)
	case n <= stagedLarge:
		s = stagedPackets[1].Get().(*stagedPacket)
	default:
		return &stagedPacket{b: append(make([]byte, 0, n), packet...)}
	}
	s.b = append(s.b[:0], packet...)
	return s
}

// appendStaged copies a staged packet into b. An empty one makes a keepalive.
func (b *Batch) appendStaged(p []byte) bool {
	if len(p) > 0 {
		_, ecn, _ := packet.Destination(p)
		if !b.Append(p) {
			return false
		}
		b.msgs[len(b.msgs)-1].tos = packet.OuterTOS(ecn)
		return true
	}
	if b.Next(1) == nil {
		return false
	}
	b.room = 0
	b.place(0, 0)
	return true
}
