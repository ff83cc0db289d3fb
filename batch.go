package wireguard

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/idle"
	"github.com/seed-86b749af/wireguard/internal/layout"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

const maxPacket = 65535 // bytes of the largest IP packet

// A Batch is memory for IP packets that will be sealed where they stand: each packet has 16 bytes of room in front of
// it, for the header of its message, and room for padding and the tag behind it. The messages lie back to back, each
// behind the Bind's headroom, so that neighbours to one endpoint form a Train. A Batch holds at most 128 packets and
// about 128 KiB.
//
// A Batch is made by Device.NewBatch and filled with Next and Commit, which copy nothing, or with Append. It belongs to
// one goroutine at a time, must not be copied, and holds memory only while it holds packets. The zero value is an empty
// batch that pads without regard to an MTU; use it in tests of a PacketSource.
type Batch struct {
	load     *load // nil means that the batch is empty
	room     int   // the length, in bytes, of what Next last returned
	mtu      int   // padding is clamped to it; 0 means that it is not clamped
	headroom int   // bytes in front of each message, for the Bind's header
}

// A load is the contents of a batch on their path to the socket. Device.Send takes it out of its Batch, since runs may
// wait in their peers' queues for longer than Send takes.
type load struct {
	layout.Load
	runs []run

	r    *running // the running device when the load was routed
	now  int64
	feed *feed        // the source that it was read from; nil for the load of a sender
	full bool         // a peer's queue had no room for a run
	refs atomic.Int32 // one reference of the goroutine that has the load, and one of each run that waits in a queue

	fork idle.Fork // used by seal

	// Scratch of lead.
	lot, more []*run // lot has the runs to be sent now, and more those to be sent after them
	trains    []Train
}

// Len returns the number of packets in the batch.
func (b *Batch) Len() int {
	if b.load == nil {
		return 0
	}
	return len(b.load.Messages)
}

// Packet returns the i-th packet, in place. The caller may change it, within its length, until the batch is sent or reset.
func (b *Batch) Packet(i int) []byte { return b.load.Packet(i) }

// Next returns room for a packet of up to n bytes, which the caller fills. It returns nil if the batch has no such room:
// send the batch first. An empty batch has room for any IP packet. Until Commit, Next returns the same room again.
func (b *Batch) Next(n int) []byte {
	if n <= 0 || n > maxPacket {
		return nil
	}
	if b.load == nil {
		b.load = newLoad(b.headroom)
	}
	if !b.load.Fits(n) {
		return nil
	}
	b.room = n
	return b.load.Room(n)
}

// extend makes s longer by one element, which the caller fills in place. An append would build the element elsewhere and
// copy it, and would read it at another width than it was written, which stalls the processor. The memory behind the end
// of s must be zero.
func extend[T any](s *[]T) *T {
	n := len(*s)
	if n == cap(*s) {
		*s = slices.Grow(*s, 1)
	}
	*s = (*s)[:n+1]
	return &(*s)[n]
}

// Commit makes a packet of the first n bytes of the room that Next returned last. It panics if n is larger than that room.
// If n is 0, Commit only gives the room back.
func (b *Batch) Commit(n int) {
	if n < 0 || n > b.room {
		panic("wireguard: Batch.Commit of more than Next handed out")
	}
	if b.room = 0; n == 0 {
		return
	}
	b.load.Place(n, layout.Pad(n, b.mtu))
}

// layFor prepares an empty batch for the device's tunnel and Bind.
func (b *Batch) layFor(d *Device) { b.mtu, b.headroom = d.tunnel.MTU(), d.headroom }

// sendForeign sends copies of the packets of b, which was laid out for another device, and then lays out b for this
// device.
func (d *Device) sendForeign(b *Batch) (err error) {
	own := d.NewBatch()
	for i := range b.Len() {
		for !own.Append(b.Packet(i)) {
			err = d.Send(own)
		}
	}
	err = errors.Join(err, d.Send(own))
	b.Reset()
	b.layFor(d)
	return err
}

// Append copies p into the batch and reports whether there was room for it.
func (b *Batch) Append(p []byte) bool {
	room := b.Next(len(p))
	if room == nil {
		return false
	}
	b.Commit(copy(room, p))
	return true
}

// Reset empties the batch and returns its memory.
func (b *Batch) Reset() {
	if l := b.takeLoad(); l != nil {
		l.release()
	}
}

// takeLoad empties the batch and returns its load, or nil if there is none. The caller releases the load.
func (b *Batch) takeLoad() *load {
	l := b.load
	b.load, b.room = nil, 0
	return l
}

// loads holds empty loads without slabs.
var loads = sync.Pool{New: func() any {
	l := new(load)
	l.fork.Do = l.sealSome
	return l
}}

// newLoad returns an empty load. The caller releases it.
func newLoad(headroom int) *load {
	l := loads.Get().(*load)
	l.Use(headroom)
	l.refs.Store(1)
	return l
}

// release drops one reference. The last one returns the memory.
func (l *load) release() {
	if l.refs.Add(-1) != 0 {
		return
	}
	if l.feed != nil {
		l.feed.Sent()
	}
	l.Free()
	clear(l.runs)
	l.runs, l.r, l.feed, l.full = l.runs[:0], nil, nil, false
	loads.Put(l)
}

// A run holds the packets of one load that go to one peer.
type run struct {
	layout.Run
	p       *peer
	carries bool // a packet looks like a data message; see dropLoops

	k        *keypair // nil means that the run has no counters and is not sent here
	counter  uint64   // of the first message
	endpoint Endpoint
	heard    uint32 // the peer's field heard when the run was numbered
	trains   int    // the number of trains into which pack divided the run
	leads    bool   // whether the goroutine that numbered the run also sends it; such a run is in no queue

	// These fields are for a run that waits behind others of its peer. The peer's mutex guards them.
	load     *load
	next     *run // behind it in the peer's queue
	queued   bool
	sealed   bool // ready to be sent
	collects bool // others append small runs to this one, and the leading goroutine seals it

	// The result of sending.
	packets, bytes uint64 // packets without keepalives
	failed         int    // packets
	err            error  // the first error
	sourceGone     bool
}

// runTo returns the run to p, and begins it if there is none yet.
func (l *load) runTo(p *peer) *run {
	for at := len(l.runs) - 1; at >= 0; at-- {
		if l.runs[at].p == p {
			return &l.runs[at]
		}
	}
	return l.newRun(p)
}

// newRun begins a run to p.
func (l *load) newRun(p *peer) *run {
	r := extend(&l.runs)
	r.p, r.load, r.Number = p, l, int16(len(l.runs)-1)
	return r
}

// layOut places the messages of those numbered runs that stand apart in the second slab. The messages of other runs are
// sealed in place.
func (l *load) layOut() {
	end := 0
	for i := range l.runs {
		if run := &l.runs[i]; run.k != nil && run.Apart {
			end = l.LayOut(&run.Run, end)
		}
	}
}

// isMuch reports whether there is so much to seal that an idle core's help is worth asking for.
func (l *load) isMuch() bool {
	n, bytes := 0, 0
	for i := range l.runs {
		if run := &l.runs[i]; run.k != nil {
			n, bytes = n+run.N, bytes+run.Size
		}
	}
	return idle.IsMuch(n, bytes)
}

// seal makes messages of the numbered packets. If a sender has many packets, idle cores help to seal them. For a
// source, they read and seal the next batch instead. helpers is Config.Helpers.
func (l *load) seal(helpers int) {
	if l.feed != nil {
		l.sealSome(0, len(l.Messages))
		return
	}
	l.fork.Limit = helpers
	l.fork.Run(len(l.Messages), l.Bytes())
}

// sealSome seals the messages l.Messages[from:end].
func (l *load) sealSome(from, end int) {
	for i := from; i < end; i++ {
		m := &l.Messages[i]
		if m.Run == layout.None || l.runs[m.Run].k == nil {
			continue
		}
		run := &l.runs[m.Run]
		message, padded := l.Sealing(&run.Run, m)
		run.k.seal(message, padded, run.counter+uint64(m.Nth))
	}
}

// pack appends the trains of a sealed run.
func (r *run) pack(trains []Train) []Train {
	before := len(trains)
	for i := r.First; i != layout.None; {
		t := extend(&trains)
		t.Data, t.Size, t.TOS, i = r.load.Train(&r.Run, i)
		t.Headroom, t.Endpoint = r.load.Headroom, r.endpoint
	}
	r.trains = len(trains) - before
	return trains
}

// tally adds to the run what became of one of its trains.
func (run *run) tally(t *Train) {
	n := t.Len()
	if t.Err != nil {
		run.failed += n
		if run.err == nil {
			run.err = t.Err
		}
	} else {
		if t.Size-run.load.Headroom > messageOverhead {
			run.packets += uint64(n)
		}
		run.bytes += uint64(len(t.Data) - n*run.load.Headroom)
	}
	if run.endpoint.Source.IsValid() && !t.Endpoint.Source.IsValid() {
		run.sourceGone = true
	}
}

// passes clamps the padding of message i to mtu, the MTU of its peer p, and reports whether its packet may be sent. A
// packet that is too big and must not be fragmented is dropped, and its sender is told. A packet that may be fragmented
// is sent whole: the outer packet is fragmented instead. IPv6 has no MTU below 1280.
func (d *Device) passes(l *load, i, mtu int, p *peer) bool {
	pkt, limit := l.Packet(i), mtu
	if pkt[0]>>4 == 6 {
		limit = max(mtu, minMTU6)
	}
	if len(pkt) > limit && !packet.MayFragment(pkt) {
		p.mu.Lock()
		d.drop(p, DropTooBig, 1)
		p.mu.Unlock()
		d.slow.answer(d, pkt, limit, l.now)
		return false
	}
	m := &l.Messages[i]
	m.Padded = min(m.Padded, int32(layout.Pad(len(pkt), mtu)))
	return true
}
