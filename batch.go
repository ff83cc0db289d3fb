package wireguard

import (
	"errors"
	"sync"
)

const (
	batchPackets = 128 // packets a batch, at most

	// slabSize is the memory of a batch. It holds two trains of the largest size a UDP datagram run can have, and
	// any single packet. Smaller is warmer: the memory of a batch should stay in a core's second-level cache.
	slabSize = 128<<10 + 1<<10

	maxPacket = 65535 // bytes of the largest IP packet
)

// A Batch is memory for a run of IP packets that will be sealed where they stand: each has 16 bytes of room in front
// of it, for the header of its message, and room for padding and the tag behind it. The messages lie back to back, each
// behind the Bind's headroom, so that a run of them to one endpoint is a Train. A Batch holds at most 128 packets and about
// 128 KiB.
//
// A Batch is made by Device.NewBatch and filled with Next and Commit, which copy nothing, or with Append. It belongs to
// one goroutine at a time, must not be copied, and holds memory only while it holds packets. The zero value is an
// empty batch whose padding knows no MTU, as tests of a PacketSource use it.
type Batch struct {
	slab *slab
	end  int       // where the next message begins
	room int       // what Next handed out last
	mtu  int       // padding is clamped to it; 0: not clamped
	head int       // bytes in front of each message, for the Bind's header
	msgs []message // in the order of their memory

	// Scratch of Device.Send, kept here so that sending allocates nothing.
	out sending
}

// A message is a packet's place in its batch, and the place of its message once it is sealed.
//
//	           at                   at+16                 at+16+n       at+16+padded    at+32+padded
//	| headroom | header (16 bytes)  | packet (n bytes)    | zeros       | tag (16)      |
type message struct {
	at, n, padded int32
	to            int32 // where the message is sealed to, in its run's memory
	run           int16 // index of its run; none: the packet is not sent
	nth           int16 // its place in the run, from 0
	next          int16 // index of the run's next message; none: it is the last
	tos           uint8 // of the outer packet
}

const none = -1

func (m message) size() int { return int(m.padded) + messageOverhead }

// Len is the number of packets in the batch.
func (b *Batch) Len() int { return len(b.msgs) }

// Packet is the i-th packet, in place. It may be changed, within its length, until the batch is sent or reset.
func (b *Batch) Packet(i int) []byte {
	m := b.msgs[i]
	at := int(m.at) + messageHeader
	return b.slab[at : at+int(m.n) : at+int(m.n)]
}

// Next hands out room for a packet of up to n bytes, for the caller to write to, or nil if that does not fit any more:
// then the batch is to be sent first. An empty batch has room for any IP packet. Until Commit, calling Next again
// hands out the same room.
func (b *Batch) Next(n int) []byte {
	if n <= 0 || n > maxPacket || len(b.msgs) == batchPackets || b.end+b.head+messageOverhead+n+maxPadding > slabSize {
		return nil
	}
	if b.slab == nil {
		b.slab = slabs.Get().(*slab)
	}
	b.room = n
	at := b.end + b.head + messageHeader
	return b.slab[at : at+n : at+n]
}

// Commit makes a packet of the first n bytes of the room that Next handed out last. n larger than that room panics;
// n of 0 gives the room back.
func (b *Batch) Commit(n int) {
	if n < 0 || n > b.room {
		panic("wireguard: Batch.Commit of more than Next handed out")
	}
	if b.room = 0; n == 0 {
		return
	}
	b.place(n)
}

// place appends a message with a packet of n bytes, or an empty one.
func (b *Batch) place(n int) {
	m := message{at: int32(b.end + b.head), n: int32(n), padded: int32(pad(n, b.mtu)), run: none}
	b.msgs = append(b.msgs, m)
	b.end = int(m.at) + m.size()
}

// lay prepares an empty batch for the device's tunnel and Bind.
func (d *Device) lay(b *Batch) { b.mtu, b.head = d.tunnel.MTU(), d.headroom }

// sendForeign sends copies of the packets of b, whose layout is another device's, and makes b one of this device.
func (d *Device) sendForeign(b *Batch) (err error) {
	own := d.NewBatch()
	for i := range b.Len() {
		for !own.Append(b.Packet(i)) {
			err = d.Send(own)
		}
	}
	err = errors.Join(err, d.Send(own))
	d.empty(b)
	return err
}

// Append copies p into the batch and reports whether it fitted.
func (b *Batch) Append(p []byte) bool {
	room := b.Next(len(p))
	if room == nil {
		return false
	}
	b.Commit(copy(room, p))
	return true
}

// Reset empties the batch and gives its memory back.
func (b *Batch) Reset() {
	if b.slab != nil {
		slabs.Put(b.slab)
		b.slab = nil
	}
	b.end, b.room, b.msgs = 0, 0, b.msgs[:0]
}

// A run is all packets of one batch to one peer, in their order. Where they stand back to back in the batch, they are
// sealed in place. Where others' packets stand between them, they are sealed into a second slab, so that the messages
// lie back to back there and leave as one train.
type run struct {
	p           *peer
	first, last int16 // messages of the batch, linked by message.next
	n           int   // how many
	size        int   // bytes of the messages
	apart       bool  // the messages do not stand back to back in the batch
	carries     bool  // a packet looks like a data message; see dropLoops

	k        *keypair // nil: not claimed, there is nothing to send
	counter  uint64   // of the first message
	endpoint Endpoint
	heard    uint32 // the peer's, when the send began

	// The outcome.
	packets, bytes uint64 // keepalives are no packets
	failed         int
	err            error // why; the first one
	sourceGone     bool
}

// addToRun appends message i to the run of p's, and returns that run.
func (b *Batch) addToRun(p *peer, i int) *run {
	out, m := &b.out, &b.msgs[i]
	at := len(out.runs) - 1
	for at >= 0 && out.runs[at].p != p { // the run of the packet before, in most cases
		at--
	}
	if at < 0 {
		at = len(out.runs)
		out.runs = append(out.runs, run{p: p, first: int16(i)})
	}
	run := &out.runs[at]
	if run.n > 0 {
		before := &b.msgs[run.last]
		before.next = int16(i)
		run.apart = run.apart || before.at+int32(before.size()+b.head) != m.at
	}
	m.run, m.next = int16(at), none
	run.last = int16(i)
	run.n++
	run.size += m.size()
	return run
}

// layOut gives each claimed message its place in its run, and the place where it is sealed.
func (b *Batch) layOut() {
	end := int32(0) // of what goes into the second slab
	for i := range b.out.runs {
		run := &b.out.runs[i]
		if run.k == nil {
			continue
		}
		nth := int16(0)
		for j := run.first; j != none; j = b.msgs[j].next {
			m := &b.msgs[j]
			m.nth, m.to = nth, m.at
			nth++
			if run.apart {
				m.to = end + int32(b.head)
				end = m.to + int32(m.size())
			}
		}
	}
	if end > 0 {
		b.out.second = slabs.Get().(*slab)
	}
}

// memory is where the messages of a run are sealed to.
func (b *Batch) memory(run *run) *slab {
	if run.apart {
		return b.out.second
	}
	return b.slab
}

// isMuch reports whether what is to be sealed of b is worth an idle core's help.
func (b *Batch) isMuch() bool {
	cost := 0
	for i := range b.out.runs {
		if run := &b.out.runs[i]; run.k != nil {
			cost += sealCost(run.n, run.size)
		}
	}
	return cost >= shareCost
}

// sealSome seals messages from to end-1, as far as there are.
func (b *Batch) sealSome(from, end int) {
	for i := from; i < min(end, len(b.msgs)); i++ {
		m := &b.msgs[i]
		if m.run == none || b.out.runs[m.run].k == nil {
			continue
		}
		run := &b.out.runs[m.run]
		padded := b.slab[int(m.at)+messageHeader:][:m.padded]
		clear(padded[m.n:])
		run.k.sealTo(b.memory(run)[m.to:][:m.size()], padded, run.counter+uint64(m.nth))
	}
}

// Limits of one train: those of UDP segmentation offload.
const (
	maxTrainBytes    = 65507 // the largest IPv4 UDP payload
	maxTrainMessages = 64
)

// pack makes trains of the sealed messages. A train's messages lie next to each other, each behind its headroom, and are of
// the same size but for the last one, which may be smaller.
func (b *Batch) pack() {
	s := &b.out
	for i := range s.runs {
		run := &s.runs[i]
		if run.k == nil {
			continue
		}
		for j := run.first; j != none; {
			head := &b.msgs[j]
			size, at, n := head.size(), int(head.to)-b.head, 1
			end := int(head.to) + size
			for j = head.next; j != none && n < maxTrainMessages; {
				m := &b.msgs[j]
				if m.size() > size || m.tos != head.tos || end+b.head+m.size()-at > maxTrainBytes {
					break
				}
				end += b.head + m.size()
				n++
				j = m.next
				if m.size() < size {
					break
				}
			}
			s.trains = append(s.trains, Train{
				Data: b.memory(run)[at:end:end], Size: b.head + size, Headroom: b.head, Endpoint: run.endpoint, TOS: head.tos,
			})
			s.trainOf = append(s.trainOf, i)
		}
	}
}

// tally adds up for each run what became of its trains.
func (b *Batch) tally() {
	for i := range b.out.trains {
		t := &b.out.trains[i]
		run := &b.out.runs[b.out.trainOf[i]]
		n := t.Len()
		if t.Err != nil {
			run.failed += n
			if run.err == nil {
				run.err = t.Err
			}
		} else {
			if t.Size-b.head > messageOverhead {
				run.packets += uint64(n)
			}
			run.bytes += uint64(len(t.Data) - n*b.head)
		}
		if run.endpoint.Source.IsValid() && !t.Endpoint.Source.IsValid() {
			run.sourceGone = true
		}
	}
}

// pad is the length of a packet of n bytes once padded: to the next multiple of 16, but not over the MTU, so that
// the outer packet is never larger than that of a full packet. A packet that is larger than the MTU is padded by its
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

// A slab is the memory of one batch.
type slab [slabSize]byte

// slabs keeps those that no batch uses. What it holds is bounded by the number of batches that held packets at one time,
// and goes back to the system by way of the garbage collector.
var slabs = sync.Pool{New: func() any { return new(slab) }}
