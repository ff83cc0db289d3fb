package main

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

const (
	wireBatch = 128  // largest number of datagrams per batch
	wireRoom  = 2048 // memory per datagram of a landing, on average, in bytes
)

// A wire carries datagrams between two devices in memory, for either library. It loses no datagrams, keeps their order, and makes
// a sender wait when it is full.
//
// The receiving end offers memory, called a landing. The sender copies its datagrams into the landing and passes the landing to
// the receiver. The libraries differ only in who provides the memory. wireguard-go calls its bind with buffers to fill, and these
// buffers are the landing. This library's bind lends memory to the device, so the bind has landings of its own and reuses them in
// turn.
type wire struct{ ends [2]end }

// An end is one of the two ends of a wire. One device uses it.
type end struct {
	out, in *lane
	addr    netip.AddrPort // used only in configurations and logs, because a datagram can only go to the other end
	remote  netip.AddrPort
	cut     <-chan struct{}
	void    atomic.Bool  // if true, this end discards the datagrams that its device sends
	voided  atomic.Int64 // number of datagrams discarded so far
}

// A lane carries datagrams in one direction. Empty landings go from the receiver to the sender through the channel offered, and
// filled landings come back through the channel arrived.
type lane struct{ offered, arrived chan *landing }

// A landing is memory for up to wireBatch datagrams. It has either one buffer per datagram (bufs), or one block that holds the
// datagrams back to back (mem).
type landing struct {
	bufs [][]byte
	mem  []byte
	used int
	size [wireBatch]int
	n    int
}

// newWire makes a wire with the given number of landings at each end. The number is zero if the device provides buffers when it
// receives.
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

// A wireSocket is an end that a device has opened. A device may open an end again before it closes the previous socket.
type wireSocket struct {
	*end
	down chan struct{}
	once sync.Once
}

func (e *end) open() *wireSocket { return &wireSocket{end: e, down: make(chan struct{})} }

func (s *wireSocket) close() { s.once.Do(func() { close(s.down) }) }

// swallow reports whether the end discards the datagrams that its device sends. If so, it counts n discarded datagrams.
func (e *end) swallow(n int) bool {
	if !e.void.Load() {
		return false
	}
	e.voided.Add(int64(n))
	return true
}

// A crossing is the state of one call of Send, which fills one landing after another.
type crossing struct {
	s *wireSocket
	l *landing
}

// put copies a datagram into a landing. If no landing is available, it waits for one.
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

// end passes the landing that was filled last to the receiver.
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

// land first offers the landing l to the sender, unless l is nil. In both cases it then waits for the next filled landing, and
// returns that.
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
		// The buffers in l go back to the device now, so take l back from the sender.
		select {
		case <-s.in.offered:
		case <-s.in.arrived:
		}
	}
	return nil, net.ErrClosed
}
