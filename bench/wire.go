package main

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

const (
	wireBatch = 128  // most datagrams per batch
	wireRoom  = 2048 // average room per datagram, in bytes
)

// A wire joins two ends in memory, for either library. It loses no datagrams, keeps their order, and makes a sender wait when it is
// full.
//
// A receiver offers memory, called a landing. A sender copies its datagrams there once and passes the landing on. The libraries
// differ only in the source of that memory. wireguard-go calls its bind with buffers to fill, and those buffers are the landing.
// Our bind lends memory to the device, so it has its own landings and reuses them in turn.
type wire struct{ ends [2]end }

// An end is one of the two ends of a wire.
type end struct {
	out, in *lane
	addr    netip.AddrPort // only for configurations and logs, because a wire has only two ends
	remote  netip.AddrPort
	cut     <-chan struct{}
	void    atomic.Bool  // discard what this end sends
	voided  atomic.Int64 // datagrams discarded so far
}

// A lane carries datagrams in one direction.
type lane struct{ offered, arrived chan *landing }

// A landing is memory for up to wireBatch datagrams. It has one buffer per datagram, or one block that holds them back to back.
type landing struct {
	bufs [][]byte
	mem  []byte
	used int
	size [wireBatch]int
	n    int
}

// newWire makes a wire with this many landings at each end. Use zero for sockets whose caller provides buffers.
func newWire(st *stage, landings int) *wire {
	cut := make(chan struct{})
	st.atCut(func() { close(cut) })
	var lanes [2]*lane
	for i := range lanes {
		lanes[i] = &lane{make(chan *landing, max(landings, 1)), make(chan *landing, max(landings, 1))}
		for range landings {
			lanes[i].offered <- &landing{mem: make([]byte, wireBatch*wireRoom)}
		}
	}
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(loopback, port) }
	return &wire{[2]end{
		{out: lanes[0], in: lanes[1], addr: at(1001), remote: at(1002), cut: cut},
		{out: lanes[1], in: lanes[0], addr: at(1002), remote: at(1001), cut: cut},
	}}
}

// A wireSocket is an end while a device has it open. A device may open an end again before it closes the old socket.
type wireSocket struct {
	*end
	down chan struct{}
	once sync.Once
}

func (e *end) open() *wireSocket { return &wireSocket{end: e, down: make(chan struct{})} }

func (s *wireSocket) close() { s.once.Do(func() { close(s.down) }) }

// swallow counts n datagrams and reports true if the end discards what it sends.
func (e *end) swallow(n int) bool {
	if !e.void.Load() {
		return false
	}
	e.voided.Add(int64(n))
	return true
}

// A crossing is one call of Send. It fills one landing after another.
type crossing struct {
	s *wireSocket
	l *landing
}

// put copies a datagram into a landing.
func (c *crossing) put(datagram []byte) error {
	if c.l != nil && !c.l.fits(datagram) {
		c.end()
	}
	if c.l == nil {
		select {
		case c.l = <-c.s.out.offered:
		case <-c.s.down:
			return net.ErrClosed
		case <-c.s.cut:
			return net.ErrClosed
		}
	}
	if !c.l.fits(datagram) {
		return errOversized
	}
	c.l.put(datagram)
	return nil
}

var errOversized = errors.New("a datagram is too large for the wire")

// end passes the last landing to the receiver.
func (c *crossing) end() {
	if c.l != nil {
		c.s.out.arrived <- c.l
		c.l = nil
	}
}

func (l *landing) fits(datagram []byte) bool {
	if l.mem != nil {
		return l.n < wireBatch && l.used+len(datagram) <= len(l.mem)
	}
	return l.n < min(wireBatch, len(l.bufs)) && len(datagram) <= len(l.bufs[l.n])
}

func (l *landing) put(datagram []byte) {
	if l.mem != nil {
		l.used += copy(l.mem[l.used:], datagram)
	} else {
		copy(l.bufs[l.n], datagram)
	}
	l.size[l.n] = len(datagram)
	l.n++
}

// land offers l if it is not nil, and waits for the next filled landing.
func (s *wireSocket) land(l *landing) (*landing, error) {
	if l != nil {
		l.n, l.used = 0, 0
		s.in.offered <- l
	}
	select {
	case l := <-s.in.arrived:
		return l, nil
	case <-s.down:
	case <-s.cut:
	}
	if l != nil && l.bufs != nil {
		// The buffers return to their owner now, so no sender may hold them any more.
		select {
		case <-s.in.offered:
		case <-s.in.arrived:
		}
	}
	return nil, net.ErrClosed
}
