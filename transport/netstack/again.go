package netstack

import (
	"encoding/binary"
	"slices"
	"sort"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A sentSegment is a sent packet p that carries the bytes with the sequence numbers [seq, end). gVisor also keeps these bytes
// until they are acknowledged.
type sentSegment struct {
	seq, end uint32
	p        *stack.PacketBuffer // holds a reference
}

// sentSegments are the segments of a connection that may have to be sent again, in the order of their sequence numbers.
type sentSegments struct {
	list []sentSegment
	next int // index in list of the first segment that is still needed
}

// maxSegments is how many segments in list may be needed at a time.
const maxSegments = 1 << 16

// add adds a segment, unless there are maxSegments already. If a segment that was not added is lost, gVisor has to send it
// again.
func (s *sentSegments) add(p *stack.PacketBuffer, seq, end uint32) {
	if len(s.list)-s.next >= maxSegments {
		return
	}
	if len(s.list) == cap(s.list) && s.next > len(s.list)/2 {
		s.list = slices.Delete(s.list, 0, s.next)
		s.next = 0
	}
	s.list = append(s.list, sentSegment{seq, end, p.IncRef()})
}

// drop drops the segments whose bytes all have numbers below n.
func (s *sentSegments) drop(n uint32) {
	for s.next < len(s.list) && int32(s.list[s.next].end-n) <= 0 {
		s.list[s.next].p.DecRef()
		s.list[s.next] = sentSegment{}
		s.next++
	}
	if s.next == len(s.list) {
		s.list, s.next = s.list[:0], 0
	}
}

// clear drops all segments.
func (s *sentSegments) clear() {
	for _, g := range s.list[s.next:] {
		g.p.DecRef()
	}
	*s = sentSegments{}
}

// again makes packets with the headers h that carry the bytes with the sequence numbers [from, to), and appends the packets to ps.
// The second result is false if s does not hold all of these bytes, or if no headers have been stored in h yet.
func (s *sentSegments) again(ps []*stack.PacketBuffer, from, to uint32, h *sentHeader) ([]*stack.PacketBuffer, bool) {
	list := s.list[s.next:]
	i := sort.Search(len(list), func(i int) bool { return int32(list[i].end-from) > 0 })
	for int32(to-from) > 0 {
		if i == len(list) || int32(list[i].seq-from) > 0 || h.gso.Type == stack.GSONone {
			return ps, false
		}
		g := &list[i]
		n := min(g.end-from, to-from)
		payload := g.p.Data().ToBuffer()
		payload.TrimFront(int64(from - g.seq))
		payload.Truncate(int64(n))
		ps, from, i = append(ps, h.packet(from, payload)), from+n, i+1
	}
	return ps, true
}

// A sentHeader has the headers of the last segment that a connection sent, with or without payload. A segment that is sent again
// gets these headers, so that its acknowledgement, its window and its timestamp are not outdated. With an older timestamp, the
// peer might drop the segment as an old duplicate (RFC 7323, section 5).
type sentHeader struct {
	b       [packet.MaxHeaders]byte
	ip, tcp int // bytes of each header in b
	network tcpip.NetworkProtocolNumber
	gso     stack.GSO // while its Type is GSONone, as at first, nothing can be sent again
}

// set copies the headers of p.
func (h *sentHeader) set(p *stack.PacketBuffer) {
	ip, tcp := p.NetworkHeader().Slice(), p.TransportHeader().Slice()
	if len(ip)+len(tcp) > len(h.b) {
		return
	}
	h.ip, h.tcp, h.network, h.gso = len(ip), len(tcp), p.NetworkProtocolNumber, p.GSOOptions
	copy(h.b[copy(h.b[:], ip):], tcp)
}

// packet makes a packet with the headers h and the given payload. The payload's first byte has the sequence number seq.
func (h *sentHeader) packet(seq uint32, payload buffer.Buffer) *stack.PacketBuffer {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: h.ip + h.tcp, Payload: payload})
	tcp := p.TransportHeader().Push(h.tcp)
	copy(tcp, h.b[h.ip:])
	binary.BigEndian.PutUint32(tcp[tcpSeq:], seq)
	tcp[tcpFlags] = tcpACK | uint8(header.TCPFlagPsh)
	copy(p.NetworkHeader().Push(h.ip), h.b[:])
	p.NetworkProtocolNumber, p.TransportProtocolNumber, p.GSOOptions = h.network, header.TCPProtocolNumber, h.gso
	return p
}

// sendAgain adds the packets ps to the queue, and takes over their references. It never waits. It reports whether the link is
// open.
func (l *link) sendAgain(ps []*stack.PacketBuffer) (open bool) {
	l.mu.Lock()
	open = l.usable() == nil
	for _, p := range ps {
		if open && l.queued < maxQueued { // beyond maxQueued, the queue is for packets whose sender cannot wait
			l.push(p)
			l.owner.stack.Stats().TCP.Retransmits.Increment()
		} else {
			p.DecRef() // the link will later find that the bytes of p are lost
		}
	}
	mine := l.takeTurn()
	l.mu.Unlock()
	if mine {
		go l.drain()
	}
	return open
}
