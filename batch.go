package wireguard

import (
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
// of it, for the header of its message, and room for padding and the tag behind it, and the messages lie back to back,
// so that a run of them to one endpoint is a Train. It holds at most 128 packets and about 128 KiB.
//
// A Batch is made by Device.NewBatch and filled with Next and Commit, which copy nothing, or with Append. It belongs to
// one goroutine at a time, must not be copied, and holds memory only while it holds packets. The zero value is an
// empty batch whose padding knows no MTU, as tests of a PacketSource use it.
type Batch struct {
	slab *slab
	end  int       // where the next message begins
	room int       // what Next handed out last
	mtu  int       // padding is clamped to it; 0: not clamped
	msgs []message // in the order of their memory

	// Scratch of Device.Send, kept here so that sending allocates nothing.
	out sending
}

// A message is a packet's place in its batch.
//
//	at                   at+16                 at+16+n       at+16+padded    at+32+padded
//	| header (16 bytes)  | packet (n bytes)    | zeros       | tag (16)      |
type message struct {
	at, n, padded int32
	tos           uint8 // of the outer packet
}

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
	if n <= 0 || n > maxPacket || len(b.msgs) == batchPackets || b.end+messageOverhead+n+maxPadding > slabSize {
		return nil
	}
	if b.slab == nil {
		b.slab = slabs.Get().(*slab)
	}
	b.room = n
	at := b.end + messageHeader
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
	m := message{at: int32(b.end), n: int32(n), padded: int32(pad(n, b.mtu))}
	b.msgs = append(b.msgs, m)
	b.end += m.size()
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
