package netstack

import (
	"encoding/binary"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A sentSegment is a packet with the bytes from the number seq to the one before end. gVisor keeps the same bytes until they are
// acknowledged.
type sentSegment struct {
	seq, end uint32
	p        *stack.PacketBuffer // with a reference
}

// sentSegments are the segments of a connection that may have to be sent again, in order.
type sentSegments struct {
	list []sentSegment
	next int // the first one in list that is still needed
}

// maxSegments bounds list.
const maxSegments = 1 << 16

// add adds a segment, and reports whether there was room.
func (s *sentSegments) add(p *stack.PacketBuffer, seq, end uint32) bool {
	if len(s.list)-s.next >= maxSegments {
		return false
	}
	if s.next > 0 && len(s.list) == cap(s.list) {
		s.list = slices.Delete(s.list, 0, s.next)
		s.next = 0
	}
	s.list = append(s.list, sentSegment{seq, end, p.IncRef()})
	return true
}

// drop drops the segments that end before or at the number n.
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

// again appends packets with the bytes from the number from to the one before to to ps. It reports false if it does not have all
// of them.
func (s *sentSegments) again(ps []*stack.PacketBuffer, from, to uint32) ([]*stack.PacketBuffer, bool) {
	list := s.list[s.next:]
	i, _ := slices.BinarySearchFunc(list, from, func(g sentSegment, n uint32) int {
		if int32(g.end-n) > 0 {
			return 1
		}
		return -1
	})
	for int32(to-from) > 0 {
		if i == len(list) || int32(list[i].seq-from) > 0 {
			return ps, false
		}
		g := &list[i]
		n := min(g.end-from, to-from)
		p := repack(g.p, list[len(list)-1].p, from, int64(from-g.seq), int64(n))
		if p == nil {
			return ps, false
		}
		ps, from, i = append(ps, p), from+n, i+1
	}
	return ps, true
}

// repack makes a packet of n bytes of p's payload, which begin at the byte at of it and have the number seq. Its headers are those of
// newest, the packet that the connection sent last. Their timestamp is the newest one. With an older one, the peer might drop the
// packet as a copy from another time (RFC 7323, section 5). repack returns nil if the exit would not cut the packet into segments.
func repack(p, newest *stack.PacketBuffer, seq uint32, at, n int64) *stack.PacketBuffer {
	ip, tcp := newest.NetworkHeader().Slice(), newest.TransportHeader().Slice()
	if newest.GSOOptions.Type == stack.GSONone || len(tcp) < header.TCPMinimumSize {
		return nil
	}
	payload := p.Data().ToBuffer()
	payload.TrimFront(at)
	payload.Truncate(n)
	q := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: len(ip) + len(tcp), Payload: payload})
	h := q.TransportHeader().Push(len(tcp))
	copy(h, tcp)
	binary.BigEndian.PutUint32(h[tcpSeq:], seq)
	h[tcpFlags] = tcpACK | uint8(header.TCPFlagPsh)
	copy(q.NetworkHeader().Push(len(ip)), ip)
	q.NetworkProtocolNumber, q.TransportProtocolNumber = newest.NetworkProtocolNumber, newest.TransportProtocolNumber
	q.GSOOptions = newest.GSOOptions
	return q
}

// sendAgain queues ps, whose references it takes. It never waits.
func (l *link) sendAgain(ps []*stack.PacketBuffer) {
	if len(ps) == 0 {
		return
	}
	l.mu.Lock()
	for _, p := range ps {
		if l.usable() == nil && l.queued < maxQueuedUrgent {
			l.push(p)
			l.owner.stack.Stats().TCP.Retransmits.Increment()
		} else {
			p.DecRef() // it counts as lost once more
		}
	}
	mine := l.takeTurn()
	l.mu.Unlock()
	if mine {
		go l.drain()
	}
}
