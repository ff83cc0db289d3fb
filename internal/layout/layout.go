// Package layout places packets in memory so that they can be sealed in place, and so that the messages to one peer follow each
// other without gaps. Such a sequence of messages is a train: UDP segmentation offload sends it as one piece. The package seals
// nothing and takes no lock.
package layout

import "sync"

const (
	MaxPackets = 128 // the most packets in a Load

	// Size is the memory of a Load in bytes. A Load has room for two trains of the largest size, or any single packet, and still
	// fits into a core's second-level cache.
	Size = 128<<10 + 1<<10

	// Header is the length in bytes of a message's header, which is in front of the packet. Overhead is the length in bytes of the
	// header and of the tag together; the tag is behind the packet.
	Header, Overhead = 16, 32

	// MaxPadding is the largest number of zeros behind a packet if the tunnel has no MTU.
	MaxPadding = 15

	// None stands in place of an index or a number where there is no message or no run.
	None = -1
)

// These are the limits of one train: those of UDP segmentation offload.
const (
	maxTrainBytes    = 65507 // the largest IPv4 UDP payload
	maxTrainMessages = 64
)

// A Load holds packets and their memory. The zero value has no memory. Use gets memory for it, and Free returns the memory.
type Load struct {
	Messages []Message // in the order of their memory
	Headroom int       // bytes in front of each message, for the Bind's header

	slab, second *slab // second gets the messages of runs whose Apart is true; nil if there are none
	end          int   // the offset of the next message's headroom
}

// A Message is the place of a packet in its Load, and the place of the message that results when the packet is sealed.
//
//	           at                   at+16                 at+16+n       at+16+padded    at+32+padded
//	| headroom | header (16 bytes)  | packet (n bytes)    | zeros       | tag (16)      |
type Message struct {
	at, n  int32
	Padded int32 // the length of the packet and the zeros
	to     int32 // the offset of the sealed message in the slab of its run
	Run    int16 // number of its run; None if the packet is not sent
	Nth    int16 // its position in the run, from 0
	Next   int16 // index of the run's next message; None in the last one
	TOS    uint8 // the type of service of the outer packet
}

// size has a pointer receiver. With a value receiver, the processor would read the copy of m with loads that are wider or narrower
// than the stores that wrote it, and that stalls it for each packet.
func (m *Message) size() int { return int(m.Padded) + Overhead }

// A Run is a part of the packets of one Load, in their order. If these packets follow each other without gaps, they are sealed in
// place. If packets of other runs are between them, they are sealed into a second slab, where the messages have no gaps. The
// caller sets Number before it adds packets.
type Run struct {
	Number      int16 // the number of this run among the runs of the load
	First, last int16 // indexes of messages of the load, linked by Message.Next
	end         int32 // the offset at which the next message would follow the last one without a gap
	N           int   // the number of messages
	Size        int   // the bytes of the messages
	Apart       bool  // there may be gaps between the packets in the first slab
}

// A slab is the memory of one load.
type slab [Size]byte

// slabs holds the slabs that no load uses. It holds at most as many slabs as were ever in use at the same time. The garbage
// collector returns their memory to the system.
var slabs = sync.Pool{New: func() any { return new(slab) }}

// Use gives memory to an empty load. Each message has headroom bytes in front of it.
func (l *Load) Use(headroom int) {
	if l.Headroom, l.slab = headroom, slabs.Get().(*slab); l.Messages == nil {
		l.Messages = make([]Message, 0, MaxPackets)
	}
}

// Free empties the load and returns its memory.
func (l *Load) Free() {
	clear(l.Messages)
	slabs.Put(l.slab)
	if l.second != nil {
		slabs.Put(l.second)
	}
	l.Messages, l.slab, l.second, l.end = l.Messages[:0], nil, nil, 0
}

// Bytes returns how many bytes of the memory are in use.
func (l *Load) Bytes() int { return l.end }

// Fits reports whether the load has room for a packet of n bytes.
func (l *Load) Fits(n int) bool {
	return len(l.Messages) < MaxPackets && l.end+l.Headroom+Overhead+n+MaxPadding <= Size
}

// Room returns the memory for the next packet, which has n bytes and must fit. Write the packet there, and call Place afterwards.
func (l *Load) Room(n int) []byte {
	at := l.end + l.Headroom + Header
	return l.slab[at : at+n : at+n]
}

// Place appends the packet of n bytes that the caller has written into the memory that Room returned. With its zeros, the packet is
// padded bytes long. n may be 0.
func (l *Load) Place(n, padded int) *Message {
	i := len(l.Messages)
	l.Messages = l.Messages[:i+1] // this element is zero; append would build a Message elsewhere, and copy it at another width
	m := &l.Messages[i]
	m.at, m.n, m.Padded, m.Run = int32(l.end+l.Headroom), int32(n), int32(padded), None
	l.end = int(m.at) + m.size()
	return m
}

// Packet returns the i-th packet, in place.
func (l *Load) Packet(i int) []byte {
	m := &l.Messages[i]
	at := int(m.at) + Header
	return l.slab[at : at+int(m.n) : at+int(m.n)]
}

// Add appends message i of the load to the run.
func (l *Load) Add(r *Run, i int) {
	m := &l.Messages[i]
	switch {
	case r.N == 0:
		r.First = int16(i)
	default:
		l.Messages[r.last].Next = int16(i)
		r.Apart = r.Apart || m.at != r.end
	}
	m.Run, m.Nth, m.Next, m.to = r.Number, int16(r.N), None, m.at
	r.last, r.end = int16(i), m.at+m.Padded+Overhead+int32(l.Headroom)
	r.N++
	r.Size += m.size()
}

// Put appends a copy of a packet to the load and to its run r. The packet must fit; see Fits.
func (l *Load) Put(r *Run, pkt []byte, padded int, tos uint8) {
	copy(l.Room(len(pkt)), pkt)
	l.Place(len(pkt), padded).TOS = tos
	l.Add(r, len(l.Messages)-1)
}

// Remove removes from the run the packets for which gone returns true. These packets are not sent.
func (l *Load) Remove(r *Run, gone func(pkt []byte) bool) {
	before := int16(None)
	for i := r.First; i != None; i = l.Messages[i].Next {
		if !gone(l.Packet(int(i))) {
			before = i
			continue
		}
		m := &l.Messages[i]
		m.Run = None
		if before == None {
			r.First = m.Next
		} else {
			l.Messages[before].Next = m.Next
		}
		r.N--
		r.Size -= m.size()
		r.Apart = true
	}
	r.last = before
}

// Takes reports whether l has room for copies of all packets of r, which is a run of another load.
func (l *Load) Takes(r *Run) bool {
	return len(l.Messages)+r.N <= MaxPackets && l.end+r.Size+r.N*l.Headroom <= Size
}

// LayOut places the messages of a run whose Apart is true in the second slab, from the offset end on. It returns the offset behind
// these messages.
func (l *Load) LayOut(r *Run, end int) int {
	if l.second == nil {
		l.second = slabs.Get().(*slab)
	}
	nth := int16(0) // counts again, because Remove may have removed some messages
	for i := r.First; i != None; i = l.Messages[i].Next {
		m := &l.Messages[i]
		m.Nth, m.to = nth, int32(end+l.Headroom)
		nth++
		end = int(m.to) + m.size()
	}
	return end
}

// memory returns the slab that the messages of a run are sealed into.
func (l *Load) memory(r *Run) *slab {
	if r.Apart {
		return l.second
	}
	return l.slab
}

// Sealing returns the memory for the message m of a run, and the padded packet to seal into it.
func (l *Load) Sealing(r *Run, m *Message) (message, padded []byte) {
	padded = l.slab[int(m.at)+Header:][:m.Padded]
	clear(padded[m.n:])
	return l.memory(r)[m.to:][:m.size()], padded
}

// Train returns the longest train of a sealed run that begins with the message of index from, and the index of the message that
// begins the next train (next). In data, the messages of the train follow each other, each behind its headroom. A message and its
// headroom take size bytes, except that the last message may be smaller.
func (l *Load) Train(r *Run, from int16) (data []byte, size int, tos uint8, next int16) {
	head := &l.Messages[from]
	size, tos = head.size(), head.TOS
	at, end := int(head.to)-l.Headroom, int(head.to)+size
	next = head.Next
	for n := 1; next != None && n < maxTrainMessages; n++ {
		m := &l.Messages[next]
		if m.size() > size || m.TOS != tos || end+l.Headroom+m.size()-at > maxTrainBytes {
			break
		}
		end += l.Headroom + m.size()
		next = m.Next
		if m.size() < size {
			break
		}
	}
	return l.memory(r)[at:end:end], l.Headroom + size, tos, next
}

// Pad returns the padded length of a packet of n bytes: the next multiple of 16, but at most the MTU, so that the outer packet is
// never larger than the outer packet for an inner packet of MTU size. A packet that is larger than the MTU is padded by its
// remainder modulo the MTU (Linux, calculate_skb_padding). An mtu of 0 means no limit.
func Pad(n, mtu int) int {
	if mtu <= 0 {
		return (n + 15) &^ 15
	}
	last := n
	if last > mtu {
		last %= mtu
	}
	return n - last + min(mtu, (last+15)&^15)
}
