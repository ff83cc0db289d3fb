package netstack

import (
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// gVisor's queue of connections that wait for Accept counts the connections of all peers together, and does not count their
// memory. So a listener empties that queue as soon as a handshake is complete, and keeps the connections itself:
//
//	SYN ▶ mayOpen ▶ half-open, in gVisor ▶ complete ▶ arrive ▶ waitingConns ▶ Accept
//
// Each waiting connection counts as waitingCost. A peer that has its share of them cannot open more: the link drops its SYNs,
// which their sender repeats. Handshakes that were half-open by then may still complete, until the waiting connections of all
// peers exceed their limit by an eighth of the budget. Beyond that, connections are reset.
//
// Half-open connections count before they exist: a listener reserves memory for all that it may have, which is half of what earlier
// listeners left. While it has that many half-open connections, gVisor answers SYNs with cookies and keeps nothing, so other peers
// still connect. A connection that began with a cookie has no window scale and no selective acknowledgements.

const (
	// waitingCost is what a connection that waits for Accept may hold, in bytes: 5 KiB, and its receive buffer with the overhead of
	// the segments in it. 17,772 bytes were measured with segments of one byte.
	waitingCost = 20 << 10
	// halfOpenCost is the memory of a half-open connection, in bytes; 3,268 were measured.
	halfOpenCost = 4 << 10
	// leastHalfOpen is how many half-open connections each listener may have, whatever others have.
	leastHalfOpen = 16
)

// A waitingConns is the queue of a listener.
type waitingConns struct {
	net   *Net
	ep    tcpip.Endpoint
	entry waiter.Entry
	ready chan struct{} // has an element if there may be a connection to accept

	halfOpen holder // stands for this listener in the accounts of half-open connections
	reserved int    // the memory that is accounted to halfOpen, in bytes

	mu      sync.Mutex // guards the rest
	conns   []waitingConn
	running bool // a goroutine empties gVisor's queue
	again   bool // that goroutine must look again
	closed  bool
}

// A waitingConn is a connection that waits for Accept.
type waitingConn struct {
	ep  tcpip.Endpoint
	q   *waiter.Queue
	who holder
}

// reserve takes memory for half-open connections from the budget, and returns how many there may be.
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

// listen begins to empty the queue of ep, which listens.
func (w *waitingConns) listen(ep tcpip.Endpoint, q *waiter.Queue) {
	w.ep, w.ready = ep, make(chan struct{}, 1)
	w.entry = waiter.NewFunctionEntry(waiter.ReadableEvents, func(waiter.EventMask) { w.arrive() })
	q.EventRegister(&w.entry)
	w.arrive()
}

// arrive makes a goroutine empty gVisor's queue. gVisor may hold the listener's lock, so arrive cannot empty the queue itself.
func (w *waitingConns) arrive() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closed:
	case w.running:
		w.again = true
	default:
		w.running = true
		w.net.link.accepting.Add(1) // with mu held and not closed, and so before Net.Close waits for accepting
		go w.empty()
	}
}

// empty moves the connections out of gVisor's queue.
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

// push appends a connection, or resets and counts it.
func (w *waitingConns) push(ep tcpip.Endpoint, q *waiter.Queue) {
	c := waitingConn{ep: ep, q: q}
	if a, err := ep.GetRemoteAddress(); err == nil {
		c.who.party = w.net.link.partyOf(addr(a.Addr))
	}
	if !w.keep(c) {
		ep.Abort()
	}
}

// keep appends c, or counts it and returns false.
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

// pop returns the connection that waits longest. ok is false if there is none.
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

// close resets all connections. The listener's endpoint no longer listens.
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

// mayOpen reports whether the party of the SYN p may open a connection to a listener.
func (l *link) mayOpen(p []byte) bool {
	src, _ := addressesOf(p)
	b := l.owner.budget
	if b.may(&b.held.waiting, holder{party: l.partyOf(src)}) {
		return true
	}
	l.drops.connections.Add(1)
	return false
}
