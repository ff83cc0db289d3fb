package netstack

import (
	"encoding/binary"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// ackDelay is how long an acknowledgement waits at most (RFC 9293, section 3.8.6.3: "an ACK should not be excessively
// delayed; in particular, the delay MUST be less than 0.5 seconds").
const ackDelay = time.Millisecond

// Acks delay acknowledgements, which gVisor does not: it sends one for each segment that arrives alone, just before
// the program that reads it has its turn. Held back for a moment, it travels with the program's answer, if there is one: a
// request and its answer take two packets in place of four, which halves the time of a round trip.
//
// What is held is a bare acknowledgement of no more than one new segment; the next packet of its connection replaces it. A
// second one in a row is never held ("in a stream of full-sized segments, there SHOULD be an ACK for at least every
// second segment"), nor is one that has news besides: a repeated number, a selective acknowledgement. A hold that
// nothing replaces is ended by a timer that covers all connections, and runs only while something is held.
//
// All methods are called with the link's mutex held. The zero value is ready.
type acks struct {
	slots [256]ackSlot // by the low bits of the hash that gVisor gives each connection
	armed bool
	timer *time.Timer
}

// An ackSlot is what is known of a connection. Those that share a slot take it from each other unless something is held.
type ackSlot struct {
	hash uint32 // 0: the slot is free
	last uint32 // the number last acknowledged
	held *stack.PacketBuffer
}

// pass looks at a packet that a connection of the stack sends now, and reports whether it was held.
func (a *acks) pass(p *stack.PacketBuffer, mtu int) (held bool) {
	if p.GSOOptions.Type == stack.GSONone || p.Hash == 0 {
		return false
	}
	s := &a.slots[p.Hash%uint32(len(a.slots))]
	if s.hash != p.Hash && s.held != nil {
		return false
	}
	tcp := p.TransportHeader().Slice()
	if len(tcp) < header.TCPMinimumSize || tcp[tcpFlags]&tcpACK == 0 {
		return false
	}
	ack := binary.BigEndian.Uint32(tcp[tcpAck:])
	fresh := int32(ack - s.last)
	known, second := s.hash == p.Hash, s.held != nil
	if second && fresh >= 0 {
		s.held.DecRef()
		s.held = nil
	}
	s.hash, s.last = p.Hash, ack
	if !known || second || fresh <= 0 || int(fresh) > mtu || !isBareAck(p, tcp) {
		return false
	}
	s.held = p.IncRef()
	return true
}

// isBareAck reports whether p, with the header tcp, acknowledges and does nothing else.
func isBareAck(p *stack.PacketBuffer, tcp []byte) bool {
	const timestamps = 12 // bytes of that option, with two of padding in front
	return p.Data().Size() == 0 && tcp[tcpFlags] == tcpACK && (len(tcp) == header.TCPMinimumSize ||
		len(tcp) == header.TCPMinimumSize+timestamps && tcp[header.TCPMinimumSize+2] == header.TCPOptionTS)
}

// take gives all that is held to f, which takes over the references.
func (a *acks) take(f func(*stack.PacketBuffer)) {
	for i := range a.slots {
		if s := &a.slots[i]; s.held != nil {
			f(s.held)
			s.held = nil
		}
	}
}

// holdsBack reports whether p waits for something to travel with, and sees to it that it does not wait long. l.mu is
// held.
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

// endHold sends all acknowledgements that are held.
func (l *link) endHold() {
	defer l.running.Done()
	l.mu.Lock()
	l.acks.armed = false
	l.acks.take(l.push)
	mine := !l.busy && len(l.queue) > 0
	if mine {
		l.busy = true
		l.running.Add(1)
	}
	l.mu.Unlock()
	if mine {
		l.drain()
	}
}

// dropHeld forgets what is held and stops the timer. l.mu is held.
func (l *link) dropHeld() {
	l.acks.take((*stack.PacketBuffer).DecRef)
	if l.acks.armed && l.acks.timer.Stop() {
		l.acks.armed = false
		l.running.Done()
	}
}
