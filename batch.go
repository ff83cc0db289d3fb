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

const maxPacket = 65535 // length of the largest IP packet, in bytes

// A Batch is memory for IP packets that the device encrypts in place. In front of each packet, 16 bytes are free for the header
// of its message. Behind the packet, memory is free for the padding and the tag. The messages lie back to back, each with the
// Bind's headroom in front of it, so that neighbouring messages to one endpoint form a Train. A Batch holds at most 128 packets
// and about 128 KiB.
//
// Device.NewBatch makes a Batch. Fill it with Next and Commit, which copy nothing, or with Append. Only one goroutine at a time may
// use a Batch, and a Batch must not be copied. It holds memory from the first Next or Append until it is sent or reset. The zero
// value is an empty batch that pads packets without regard to an MTU; use it in tests of a PacketSource.
type Batch struct {
	load     *load // nil means that the batch is empty
	room     int   // length in bytes of the memory that Next last returned; 0 after Commit
	mtu      int   // in bytes; padding makes no packet larger than this; 0 means no limit
	headroom int   // bytes in front of each message, for the Bind's header
}

// A load is the packets of a batch on their path to the socket. Device.Send takes the load out of the Batch, because runs of the
// load, each with the packets to one peer, may wait in the queues of their peers even after Send has returned.
type load struct {
	layout.Load
	runs []run

	r    *running // the device's running state when the load was routed
	now  int64
	feed *feed        // the source from which the load was read; nil for all other loads
	full bool         // a run was dropped because the queue of its peer was full
	refs atomic.Int32 // references to the load: one from its Batch or goroutine, and one for each of its runs that is in a queue

	fork idle.Fork // for seal

	// Working memory of the method lead.
	lot, more []*run // lot has the runs to send now, and more has those to send after them
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

// Next returns memory in the batch for a packet of up to n bytes. The caller writes the packet there and calls Commit. Next
// returns nil if the batch is too full for n bytes: send the batch first. An empty batch has room for any IP packet. Until
// Commit, Next returns the same memory again.
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

// extend makes s longer by one element, which the caller fills in place. An append would build the element elsewhere and copy it.
// The copy would read the element with loads that are wider or narrower than the stores that wrote it, and that stalls the
// processor. The memory behind the end of s must be zero.
func extend[T any](s *[]T) *T {
	n := len(*s)
	if n == cap(*s) {
		*s = slices.Grow(*s, 1)
	}
	*s = (*s)[:n+1]
	return &(*s)[n]
}

// Commit adds a packet to the batch: the first n bytes of the memory that Next last returned. It panics if n is larger than that
// memory. If n is 0, Commit adds no packet.
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

// sendForeign sends copies of the packets of b, whose headroom is not that of this device. It then prepares b for this device.
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

// Reset drops the packets of the batch and frees its memory.
func (b *Batch) Reset() {
	if l := b.takeLoad(); l != nil {
		l.release()
	}
}

// takeLoad empties the batch and returns its load, or nil if there is none. The caller has to release the load.
func (b *Batch) takeLoad() *load {
	l := b.load
	b.load, b.room = nil, 0
	return l
}

// loads is a pool of empty loads. They have no slabs: newLoad takes one for the packets, and release gives it back.
var loads = sync.Pool{New: func() any {
	l := new(load)
	l.fork.Do = l.sealSome
	return l
}}

// newLoad returns an empty load. The caller has to release the load.
func newLoad(headroom int) *load {
	l := loads.Get().(*load)
	l.Use(headroom)
	l.refs.Store(1)
	return l
}

// release drops one reference to the load. With the last reference, it frees the load's memory for other loads.
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

// A run holds the packets of one load that go to one peer. The run is numbered when its packets get their message counters from the
// peer's session.
type run struct {
	layout.Run
	p       *peer
	carries bool // whether a packet of the run seems to carry a data message of WireGuard; see dropLoops

	k        *keypair // nil if the run itself is not sent: its packets were staged, dropped, or copied by collect
	counter  uint64   // the counter of the first message
	endpoint Endpoint
	heard    uint32 // the value of p.heard, a count of authentic packets, when the run was numbered
	trains   int    // the number of trains into which pack divided the run
	leads    bool   // whether the goroutine that numbered the run also sends it; the run is then in no queue

	// These fields are for a run that waits behind others of its peer. The peer's mutex guards them.
	load     *load
	next     *run // the next run in the peer's queue
	queued   bool
	sealed   bool // ready to be sent
	collects bool // other goroutines append small runs to this run; the goroutine that sends the peer's queue seals it

	// The result of sending.
	packets, bytes uint64 // the numbers of packets, without keepalives, and of bytes, with keepalives, that were sent
	failed         int    // the number of messages that were not sent
	err            error  // the first error in sending a train of the run
	sourceGone     bool
}

// runTo returns the run of l to p. If there is none yet, runTo adds it.
func (l *load) runTo(p *peer) *run {
	for at := len(l.runs) - 1; at >= 0; at-- {
		if l.runs[at].p == p {
			return &l.runs[at]
		}
	}
	return l.newRun(p)
}

// newRun adds an empty run to p to the load.
func (l *load) newRun(p *peer) *run {
	r := extend(&l.runs)
	r.p, r.load, r.Number = p, l, int16(len(l.runs)-1)
	return r
}

// layOut assigns memory in the second slab to those numbered runs whose packets do not lie back to back. The messages of all
// other runs are sealed in place.
func (l *load) layOut() {
	end := 0
	for i := range l.runs {
		if run := &l.runs[i]; run.k != nil && run.Apart {
			end = l.LayOut(&run.Run, end)
		}
	}
}

// isMuch reports whether the load has so much to seal that it pays to start a helper on an idle core.
func (l *load) isMuch() bool {
	n, bytes := 0, 0
	for i := range l.runs {
		if run := &l.runs[i]; run.k != nil {
			n, bytes = n+run.N, bytes+run.Size
		}
	}
	return idle.IsMuch(n, bytes)
}

// seal encrypts the packets of the numbered runs into messages. If there are many packets, helpers on idle cores seal some of them.
// A load that was read from a source has no such helpers: they read and seal the next load of the source instead. The parameter
// helpers is Config.Helpers.
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

// pack appends to trains the trains of the sealed run r.
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

// tally adds the result of sending t, a train of the run, to the results of the run.
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

// passes reports whether packet i of l may be sent to its peer p, whose MTU is mtu. It also limits the padding of the packet to
// this MTU. passes drops a packet that is larger than mtu and must not be fragmented; the sender of the packet gets an ICMP error.
// A packet that is larger than mtu and may be fragmented is sent whole: the outer packet is fragmented instead. For an IPv6 packet
// the limit is at least 1280, because IPv6 has no smaller MTU.
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
