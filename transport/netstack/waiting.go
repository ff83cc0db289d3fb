package netstack

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// gVisor's queue of connections that wait for Accept has one limit for all peers together, and does not count memory. So as soon
// as a handshake is complete, a listener takes the connection out of gVisor's queue and puts it into its own:
//
//	SYN ▶ mayOpen ▶ half-open, in gVisor ▶ complete ▶ arrive ▶ waitingConns ▶ Accept
//
// Each waiting connection counts as waitingCost bytes. A peer whose waiting connections have reached its limit cannot open more:
// the link drops the peer's SYNs. The sender repeats a dropped SYN later. Connections that are already half-open may still complete
// their handshakes and wait, until the waiting connections of all peers exceed their common limit by an eighth of the budget. From
// then on, the listener resets connections that complete their handshakes.
//
// When a listener is made, it reserves memory for all half-open connections that it may have: half of the memory for half-open
// connections that earlier listeners have not reserved. While the listener has as many half-open connections as it may have, gVisor
// answers SYNs with SYN cookies and stores nothing, so other peers can still connect. A connection that began with a SYN cookie
// has no window scale and no selective acknowledgements.

const (
	// waitingCost is how many bytes the budget counts for a connection that waits for Accept: 5 KiB, plus its receive buffer and
	// the overhead of the segments in the buffer. With segments of one byte, the measured memory was 17,772 bytes.
	waitingCost = 20 << 10
	// halfOpenCost is how many bytes the budget counts for a half-open connection. The measured memory was 3,268 bytes.
	halfOpenCost = 4 << 10
	// leastHalfOpen is how many half-open connections each listener may have at least, even if other listeners have reserved all
	// memory.
	leastHalfOpen = 16
)

// A waitingConns is a listener's queue of connections that wait for Accept.
type waitingConns struct {
	net   *Net
	ep    tcpip.Endpoint
	entry waiter.Entry
	ready chan struct{} // contains an element if a connection may be waiting for Accept

	halfOpen holder // the holder to which the budget charges this listener's half-open connections
	reserved int    // how many bytes the budget charges to halfOpen

	mu      sync.Mutex // guards the fields below
	conns   []waitingConn
	running bool // a goroutine is emptying gVisor's queue
	again   bool // that goroutine must check gVisor's queue again
	closed  bool
}

// A waitingConn is a connection that waits for Accept.
type waitingConn struct {
	ep  tcpip.Endpoint
	q   *waiter.Queue
	who holder
}

// reserve takes memory for half-open connections from the budget, and returns how many half-open connections the listener may
// have.
func (w *waitingConns) reserve(n *Net) int {
	w.net, w.halfOpen = n, holder{socket: new(arrivals)}
	b := n.budget
	h := &b.held
	h.mu.Lock()
	free := (h.handshakes.limit - h.handshakes.total) / halfOpenCost
	h.mu.Unlock()
	most := min(max(free/2, leastHalfOpen), backlog)
	w.reserved = most * halfOpenCost
	b.force(&h.handshakes, w.halfOpen, w.reserved)
	return most
}

// listen begins to empty gVisor's queue of the listening endpoint ep.
func (w *waitingConns) listen(ep tcpip.Endpoint, q *waiter.Queue) {
	w.ep, w.ready = ep, make(chan struct{}, 1)
	w.entry = waiter.NewFunctionEntry(waiter.ReadableEvents, func(waiter.EventMask) { w.arrive() })
	q.EventRegister(&w.entry)
	w.arrive()
}

// arrive makes a goroutine empty gVisor's queue. It does not empty the queue itself, because gVisor may hold the listener's lock
// when it calls arrive.
func (w *waitingConns) arrive() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closed:
	case w.running:
		w.again = true
	default:
		w.running = true
		// mu is held and closed is false, so this Add comes before Net.Close waits for accepting.
		w.net.link.accepting.Add(1)
		go w.empty()
	}
}

// empty moves the connections from gVisor's queue to w.
func (w *waitingConns) empty() {
	defer w.net.link.accepting.Done()
	for {
		ep, q, err := w.ep.Accept(nil)
		if err == nil {
			w.push(ep, q)
			continue
		}
		w.mu.Lock()
		if w.again && !w.closed {
			w.again = false
			w.mu.Unlock()
			continue
		}
		w.running = false
		w.mu.Unlock()
		return
	}
}

// push appends the connection of ep to w. If keep refuses the connection, push resets it.
func (w *waitingConns) push(ep tcpip.Endpoint, q *waiter.Queue) {
	c := waitingConn{ep: ep, q: q}
	if a, err := ep.GetRemoteAddress(); err == nil {
		c.who.party = w.net.link.partyOf(addr(a.Addr))
	}
	if !w.keep(c) {
		ep.Abort()
	}
}

// keep appends c to w and returns true. It returns false if w is closed or the budget refuses c; in the second case, it counts c
// as dropped.
func (w *waitingConns) keep(c waitingConn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.net.budget
	if w.closed {
		return false
	}
	if !b.takeBeyond(&b.held.waiting, c.who, waitingCost, int(b.total/8)) {
		w.net.link.drops.connections.Add(1)
		return false
	}
	w.conns = append(w.conns, c)
	select {
	case w.ready <- struct{}{}:
	default:
	}
	return true
}

// pop removes the connection that has waited longest and returns it. ok is false if no connection waits.
func (w *waitingConns) pop() (c waitingConn, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.conns) == 0 {
		return c, false
	}
	c, w.conns[0] = w.conns[0], waitingConn{}
	w.conns = w.conns[1:]
	b := w.net.budget
	b.give(&b.held.waiting, c.who, waitingCost)
	return c, true
}

// close resets all waiting connections. The listener's endpoint must no longer listen when close is called.
func (w *waitingConns) close() {
	w.mu.Lock()
	w.closed = true
	cs := w.conns
	w.conns = nil
	w.mu.Unlock()
	b := w.net.budget
	for _, c := range cs {
		b.give(&b.held.waiting, c.who, waitingCost)
		c.ep.Abort()
	}
	b.give(&b.held.handshakes, w.halfOpen, w.reserved)
}

// mayOpen reports whether the party that sent the SYN p may open a connection to a listener. If not, it counts the SYN as
// dropped.
func (l *link) mayOpen(p []byte) bool {
	src, _ := addressesOf(p)
	b := l.owner.budget
	if b.may(&b.held.waiting, holder{party: l.partyOf(src)}) {
		return true
	}
	l.drops.connections.Add(1)
	return false
}
