package netstack

import (
	"encoding/binary"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// ackDelay is the longest time that an acknowledgement waits (RFC 9293, section 3.8.6.3: "an ACK should not be
// excessively delayed; in particular, the delay MUST be less than 0.5 seconds").
const ackDelay = time.Millisecond

// acks delays acknowledgements. gVisor does not delay them: it acknowledges each segment that arrives alone, just before the
// program reads the segment. If the acknowledgement is held for up to ackDelay, the program's answer can carry it. A request and
// its answer then take two packets instead of four, which halves the time of a round trip.
//
// acks holds a packet only if the packet does nothing but acknowledge at most one new segment. The next packet of the connection
// replaces the held packet. acks never holds two packets of a connection in a row, because a receiver should acknowledge at least
// every second full segment (RFC 9293, section 3.8.6.3). Nor does acks hold a packet that repeats an acknowledgement number or has
// a selective acknowledgement. If nothing replaces a held packet, a timer sends the packet after at most ackDelay. All connections
// share one timer, which acks starts when it holds a packet, unless the timer is running.
//
// acks also holds the acknowledgement that completes a connection's handshake, because a client's first request usually follows at
// once. If the client waits for data from the server instead, the server accepts the connection up to ackDelay later. After a
// connection has sent its FIN, no packet replaces an acknowledgement. So the link sends such an acknowledgement in one batch with
// the next packet of any connection.
//
// All methods are called with the link's mutex held. The zero value is ready.
type acks struct {
	slots  [256]ackSlot // indexed by the low bits of the hash that gVisor gives each connection
	finals int          // slots that hold an acknowledgement of a connection that has sent its FIN
	armed  bool
	timer  *time.Timer
}

// An ackSlot has the state of one connection. If two connections use the same slot, a packet of one replaces the state of the
// other, unless the slot holds an acknowledgement.
type ackSlot struct {
	hash   uint32 // 0 means that the slot is free
	last   uint32 // the acknowledgement number that the connection sent last
	opened bool   // the connection has sent a SYN that acknowledges nothing, and no packet after it
	ended  bool   // the connection has sent its FIN
	held   *stack.PacketBuffer
}

// pass handles a packet that a connection of the stack sends now, and reports whether acks holds the packet.
func (a *acks) pass(p *stack.PacketBuffer, mtu int) (held bool) {
	if p.Hash == 0 {
		return false
	}
	s := &a.slots[p.Hash%uint32(len(a.slots))]
	if s.hash != p.Hash && s.held != nil {
		return false
	}
	tcp := p.TransportHeader().Slice()
	if len(tcp) < header.TCPMinimumSize {
		return false
	}
	flags, ack := tcp[tcpFlags], binary.BigEndian.Uint32(tcp[tcpAck:])
	if flags&tcpSYN != 0 {
		if s.held == nil {
			*s = ackSlot{hash: p.Hash, last: ack, opened: flags&tcpACK == 0}
		}
		return false
	}
	if p.GSOOptions.Type == stack.GSONone || flags&tcpACK == 0 {
		return false
	}
	known, second := s.hash == p.Hash, s.held != nil
	if !known {
		*s = ackSlot{hash: p.Hash}
	}
	fresh := int32(ack - s.last)
	if s.opened {
		fresh = 1 // p acknowledges the SYN of the other end
	}
	if second && fresh >= 0 {
		a.release(s).DecRef()
	}
	s.last, s.opened, s.ended = ack, false, s.ended || flags&tcpFIN != 0
	if !known || second || fresh <= 0 || int(fresh) > mtu || !isBareAck(p, tcp) {
		return false
	}
	s.held = p.IncRef()
	if s.ended {
		a.finals++
	}
	return true
}

// release removes the acknowledgement from the slot s, which holds one, and returns the acknowledgement.
func (a *acks) release(s *ackSlot) *stack.PacketBuffer {
	p := s.held
	s.held = nil
	if s.ended {
		a.finals--
	}
	return p
}

// isBareAck reports whether p, with the header tcp, is an acknowledgement and nothing else.
func isBareAck(p *stack.PacketBuffer, tcp []byte) bool {
	const timestamps = 12 // bytes of the timestamps option, with two bytes of padding in front
	return p.Data().Size() == 0 && tcp[tcpFlags] == tcpACK && (len(tcp) == header.TCPMinimumSize ||
		len(tcp) == header.TCPMinimumSize+timestamps && tcp[header.TCPMinimumSize+2] == header.TCPOptionTS)
}

// take calls f with each held acknowledgement, and f takes over the reference. After that, acks holds nothing.
func (a *acks) take(f func(*stack.PacketBuffer)) {
	for i := range a.slots {
		if s := &a.slots[i]; s.held != nil {
			f(a.release(s))
		}
	}
}

// appendFinals appends the held acknowledgements of connections that have sent their FIN to ps, with their references.
func (a *acks) appendFinals(ps []*stack.PacketBuffer) []*stack.PacketBuffer {
	for i := 0; a.finals > 0; i++ {
		if s := &a.slots[i]; s.held != nil && s.ended {
			ps = append(ps, a.release(s))
		}
	}
	return ps
}

// holdsBack reports whether acks holds p. If so, it starts the timer, unless the timer is running. l.mu is held.
func (l *link) holdsBack(p *stack.PacketBuffer) bool {
	if !l.acks.pass(p, l.mtu) {
		return false
	}
	if l.acks.armed {
		return true
	}
	l.acks.armed = true
	l.running.Add(1)
	if l.acks.timer == nil {
		l.acks.timer = time.AfterFunc(ackDelay, l.endHold)
	} else {
		l.acks.timer.Reset(ackDelay)
	}
	return true
}

// endHold sends all held acknowledgements.
func (l *link) endHold() {
	defer l.running.Done()
	l.mu.Lock()
	l.acks.armed = false
	l.acks.take(l.push)
	mine := l.takeTurn()
	l.mu.Unlock()
	if mine {
		l.drain()
	}
}

// dropHeld drops all held acknowledgements and stops the timer. l.mu is held.
func (l *link) dropHeld() {
	l.acks.take((*stack.PacketBuffer).DecRef)
	if l.acks.armed && l.acks.timer.Stop() {
		l.acks.armed = false
		l.running.Done()
	}
}
