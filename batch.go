package wireguard

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/idle"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

const (
	batchPackets = 128 // the most packets in a batch

	// slabSize is the memory of a batch. It holds two trains of the largest size, or any single packet, and still fits
	// into a core's second-level cache.
	slabSize = 128<<10 + 1<<10

	maxPacket = 65535 // bytes of the largest IP packet
)

// A Batch is memory for IP packets that will be sealed where they stand: each packet has 16 bytes of room in front of
// it, for the header of its message, and room for padding and the tag behind it. The messages lie back to back, each
// behind the Bind's headroom, so that those to one endpoint are a Train. A Batch holds at most 128 packets and about
// 128 KiB.
//
// A Batch is made by Device.NewBatch and filled with Next and Commit, which copy nothing, or with Append. It belongs to
// one goroutine at a time, must not be copied, and holds memory only while it holds packets. The zero value is an
// empty batch whose padding knows no MTU, as tests of a PacketSource use it.
type Batch struct {
	*load           // nil means that the batch is empty
	room        int // the bytes that Next returned last
	mtu         int // padding is clamped to it; 0 means that it is not clamped
	forHeadroom int // bytes in front of each message, for the Bind's header
}

// A load is the contents of a batch on their path to the socket. Device.Send takes it out of its Batch, since runs may
// wait in their peers' queues for longer than Send takes.
type load struct {
	slab     *slab
	end      int       // where the next message begins, headroom first
	headroom int       // bytes in front of each message, for the Bind's header
	msgs     []message // in the order of their memory

	runs   []run
	second *slab // where runs that stand apart are sealed; nil if there are none

	r    *running // of the device, when the load was routed
	now  int64
	feed *feed        // the source that it was read from; nil for the load of a sender
	full bool         // a peer's queue had no room for a run
	refs atomic.Int32 // the goroutine that has the load, and each of its runs that waits in a queue

	fork idle.Fork // of seal

	// Scratch of lead.
	lot, more []*run // runs to be sent now, and after those
	trains    []Train
}

// A message is a packet's place in its batch, and the place of its message once it is sealed.
//
//	           at                   at+16                 at+16+n       at+16+padded    at+32+padded
//	| headroom | header (16 bytes)  | packet (n bytes)    | zeros       | tag (16)      |
type message struct {
	at, n, padded int32
	to            int32 // where the message is sealed to, in its run's memory
	run           int16 // index of its run; none if the packet is not sent
	nth           int16 // its place in the run, from 0
	next          int16 // index of the run's next message; none in the last one
	tos           uint8 // of the outer packet
}

const none = -1

// size takes a pointer, for a copy would be read at a width that was not written, which stalls the processor for each packet.
func (m *message) size() int { return int(m.padded) + messageOverhead }

// Len returns the number of packets in the batch.
func (b *Batch) Len() int {
	if b.load == nil {
		return 0
	}
	return len(b.msgs)
}

// Packet returns the i-th packet, in place. The caller may change it, within its length, until the batch is sent or reset.
func (b *Batch) Packet(i int) []byte { return b.packet(i) }

func (l *load) packet(i int) []byte {
	m := &l.msgs[i]
	at := int(m.at) + messageHeader
	return l.slab[at : at+int(m.n) : at+int(m.n)]
}

// Next returns room for a packet of up to n bytes, which the caller fills. It returns nil if the batch has no such room:
// send the batch first. An empty batch has room for any IP packet. Until Commit, Next returns the same room again.
func (b *Batch) Next(n int) []byte {
	if n <= 0 || n > maxPacket {
		return nil
	}
	if b.load == nil {
		b.load = newLoad(b.forHeadroom)
	}
	if !b.fits(n) {
		return nil
	}
	b.room = n
	at := b.end + b.headroom + messageHeader
	return b.slab[at : at+n : at+n]
}

// extend makes s longer by one element, which the caller fills in place. An append would build it elsewhere, and read it
// back at another width than it was written. What lies behind the end of s must be zero.
func extend[T any](s *[]T) *T {
	n := len(*s)
	if n == cap(*s) {
		*s = slices.Grow(*s, 1)
	}
	*s = (*s)[:n+1]
	return &(*s)[n]
}

// fits reports whether l has room for a packet of n bytes.
func (l *load) fits(n int) bool {
	return len(l.msgs) < batchPackets && l.end+l.headroom+messageOverhead+n+maxPadding <= slabSize
}

// Commit makes a packet of the first n bytes of the room that Next returned last. It panics if n is larger than that room.
// If n is 0, it returns the room.
func (b *Batch) Commit(n int) {
	if n < 0 || n > b.room {
		panic("wireguard: Batch.Commit of more than Next handed out")
	}
	if b.room = 0; n == 0 {
		return
	}
	b.place(n, pad(n, b.mtu))
}

// place appends a message with a packet of n bytes, or an empty one.
func (l *load) place(n, padded int) *message {
	m := extend(&l.msgs)
	m.at, m.n, m.padded, m.run = int32(l.end+l.headroom), int32(n), int32(padded), none
	l.end = int(m.at) + m.size()
	return m
}

// layFor prepares an empty batch for the device's tunnel and Bind.
func (b *Batch) layFor(d *Device) { b.mtu, b.forHeadroom = d.tunnel.MTU(), d.headroom }

// sendForeign sends copies of the packets of b, whose layout is another device's, and makes b one of this device.
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
	l := &load{msgs: make([]message, 0, batchPackets)}
	l.fork.Do = l.sealSome
	return l
}}

// newLoad returns an empty load. The caller releases it.
func newLoad(headroom int) *load {
	l := loads.Get().(*load)
	l.headroom = headroom
	l.slab = slabs.Get().(*slab)
	l.refs.Store(1)
	return l
}

// release drops one reference. The last one returns the memory.
func (l *load) release() {
	if l.refs.Add(-1) != 0 {
		return
	}
	if l.feed != nil {
		l.feed.sent()
	}
	clear(l.runs)
	clear(l.msgs)
	l.runs, l.msgs, l.end = l.runs[:0], l.msgs[:0], 0
	l.r, l.feed, l.full = nil, nil, false
	slabs.Put(l.slab)
	if l.second != nil {
		slabs.Put(l.second)
	}
	l.slab, l.second = nil, nil
	loads.Put(l)
}

// A run is all packets of one load to one peer, in their order. Where they stand back to back, they are sealed in
// place. Where others' packets stand between them, they are sealed into a second slab, so that the messages lie back to
// back there and leave as one train.
type run struct {
	p           *peer
	nth         int16 // its place in load.runs
	first, last int16 // messages of the load, linked by message.next
	end         int32 // where the next message would stand back to back with the last
	n           int   // how many
	size        int   // bytes of the messages
	apart       bool  // the messages do not stand back to back in the slab
	carries     bool  // a packet looks like a data message; see dropLoops

	k        *keypair // nil means that the run has no counters and is not sent here
	counter  uint64   // of the first message
	endpoint Endpoint
	heard    uint32 // the peer's, when the run was numbered
	trains   int    // the number that pack made
	leads    bool   // whether the goroutine that numbered the run also sends it; such a run is in no queue

	// A run that waits for others of its peer. The peer's mutex guards these fields.
	load     *load
	next     *run // behind it in the peer's queue
	queued   bool
	sealed   bool // ready to be sent
	collects bool // others append small runs; the goroutine that leads seals it

	// The result of sending.
	packets, bytes uint64 // packets without keepalives
	failed         int    // packets
	err            error  // the first one
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
	r.p, r.load, r.nth = p, l, int16(len(l.runs)-1)
	return r
}

// add appends message i of l to the run.
func (l *load) add(r *run, i int) {
	m := &l.msgs[i]
	switch {
	case r.n == 0:
		r.first = int16(i)
	default:
		l.msgs[r.last].next = int16(i)
		r.apart = r.apart || m.at != r.end
	}
	m.run, m.nth, m.next, m.to = r.nth, int16(r.n), none, m.at
	r.last, r.end = int16(i), m.at+m.padded+messageOverhead+int32(l.headroom)
	r.n++
	r.size += m.size()
}

// put appends a copy of a packet to the run r of l, which has room for it.
func (l *load) put(r *run, pkt []byte, padded int, tos uint8) {
	l.place(len(pkt), padded).tos = tos
	i := len(l.msgs) - 1
	copy(l.packet(i), pkt)
	l.add(r, i)
}

// takes reports whether a run fits behind the messages of l.
func (l *load) takes(r *run) bool {
	return len(l.msgs)+r.n <= batchPackets && l.end+r.size+r.n*l.headroom <= slabSize
}

// layOut gives the numbered messages of the runs that stand apart their places in the second slab. The messages of other
// runs are sealed where they stand.
func (l *load) layOut() {
	end := 0 // of the second slab
	for i := range l.runs {
		run := &l.runs[i]
		if run.k == nil || !run.apart {
			continue
		}
		nth := int16(0) // anew, since dropLoops may have taken some out
		for j := run.first; j != none; j = l.msgs[j].next {
			m := &l.msgs[j]
			m.nth, m.to = nth, int32(end+l.headroom)
			nth++
			end = int(m.to) + m.size()
		}
	}
	if end > 0 {
		l.second = slabs.Get().(*slab)
	}
}

// memory is where the messages of a run are sealed.
func (l *load) memory(run *run) *slab {
	if run.apart {
		return l.second
	}
	return l.slab
}

// isMuch reports whether what is to be sealed is worth an idle core's help.
func (l *load) isMuch() bool {
	n, bytes := 0, 0
	for i := range l.runs {
		if run := &l.runs[i]; run.k != nil {
			n, bytes = n+run.n, bytes+run.size
		}
	}
	return idle.IsMuch(n, bytes)
}

// seal makes messages of the numbered packets. Idle cores help to seal many packets of a sender; they help a source
// with its next batch instead. helpers is Config.Helpers.
func (l *load) seal(helpers int) {
	if l.feed != nil {
		l.sealSome(0, len(l.msgs))
		return
	}
	l.fork.Limit = helpers
	l.fork.Run(len(l.msgs), l.end)
}

// sealSome seals the messages from to end-1.
func (l *load) sealSome(from, end int) {
	for i := from; i < end; i++ {
		m := &l.msgs[i]
		if m.run == none || l.runs[m.run].k == nil {
			continue
		}
		run := &l.runs[m.run]
		padded := l.slab[int(m.at)+messageHeader:][:m.padded]
		clear(padded[m.n:])
		run.k.seal(l.memory(run)[m.to:][:m.size()], padded, run.counter+uint64(m.nth))
	}
}

// Limits of one train: those of UDP segmentation offload.
const (
	maxTrainBytes    = 65507 // the largest IPv4 UDP payload
	maxTrainMessages = 64
)

// pack appends the trains of a sealed run. A train's messages lie next to each other, each behind its
// headroom, and are of the same size but for the last one, which may be smaller.
func (r *run) pack(trains []Train) []Train {
	l, before := r.load, len(trains)
	for j := r.first; j != none; {
		head := &l.msgs[j]
		size, at, n := head.size(), int(head.to)-l.headroom, 1
		end := int(head.to) + size
		for j = head.next; j != none && n < maxTrainMessages; {
			m := &l.msgs[j]
			if m.size() > size || m.tos != head.tos || end+l.headroom+m.size()-at > maxTrainBytes {
				break
			}
			end += l.headroom + m.size()
			n++
			j = m.next
			if m.size() < size {
				break
			}
		}
		t := extend(&trains)
		t.Data, t.Size, t.Headroom = l.memory(r)[at:end:end], l.headroom+size, l.headroom
		t.Endpoint, t.TOS = r.endpoint, head.tos
	}
	r.trains = len(trains) - before
	return trains
}

// tally adds what became of one of the run's trains.
func (run *run) tally(t *Train) {
	n := t.Len()
	if t.Err != nil {
		run.failed += n
		if run.err == nil {
			run.err = t.Err
		}
	} else {
		if t.Size-run.load.headroom > messageOverhead {
			run.packets += uint64(n)
		}
		run.bytes += uint64(len(t.Data) - n*run.load.headroom)
	}
	if run.endpoint.Source.IsValid() && !t.Endpoint.Source.IsValid() {
		run.sourceGone = true
	}
}

// pad returns the padded length of a packet of n bytes: the next multiple of 16, but at most the MTU, so that the outer
// packet is never larger than that of a full packet. A packet that is larger than the MTU is padded by its
// remainder modulo the MTU (Linux, calculate_skb_padding). An mtu of 0 does not clamp.
func pad(n, mtu int) int {
	if mtu <= 0 {
		return (n + 15) &^ 15
	}
	last := n
	if last > mtu {
		last %= mtu
	}
	return n - last + min(mtu, (last+15)&^15)
}

// passes clamps the padding of message i to the MTU of p, to which it goes, and reports whether its packet may be sent. A
// packet that is too big and must not be fragmented is dropped, and its sender told. One that may be fragmented is sent
// whole: the outer packets will be its fragments. IPv6 has no MTU below 1280.
func (d *Device) passes(l *load, i, mtu int, p *peer) bool {
	pkt, limit := l.packet(i), mtu
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
	l.msgs[i].padded = min(l.msgs[i].padded, int32(pad(len(pkt), mtu)))
	return true
}

// A slab is the memory of one batch.
type slab [slabSize]byte

// slabs holds the slabs that no batch uses: at most as many as were in use at one time. The garbage collector returns
// their memory to the system.
var slabs = sync.Pool{New: func() any { return new(slab) }}
