package netstack

import (
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A portion is one connection's part of the budget. gVisor records it as the owner of the connection's packets, so the link can
// find the connection of a packet.
type portion struct {
	budget *budget
	ep     tcpip.Endpoint
	queue  *waiter.Queue
	index  int // index in budget.portions; -1 after the portion has been removed; guarded by budget.mu

	recv, send buf          // guarded by budget.mu, except for atomic fields
	leaving    bool         // the connection is closed, but still has bytes to send; guarded by budget.mu
	gone       waiter.Entry // the event handler that removes the portion of a closed connection

	heard heard
	conns *heardConns // contains &heard until the budget removes the portion

	noSACK bool // the connection does not use selective acknowledgements
	// holes says that the endpoint holds out-of-order segments. The link derives holes from each segment that the connection
	// sends: gVisor puts selective acknowledgements into a segment if and only if it holds out-of-order segments.
	holes   atomic.Bool
	touched atomic.Uint32 // the budget's epoch when bytes were last read or written
}

// A buf is a portion's receive or send buffer. All sizes are bytes.
type buf struct {
	floor    int64
	reserved atomic.Int64 // the bytes that the budget counts for the buffer; more than size while the buffer may hold more
	size     atomic.Int64 // the endpoint's size, without earlyRecv; it may be larger while the endpoint holds out-of-order segments
	was      atomic.Int64 // the size before cutRecv; 0 once the endpoint is known to hold no out-of-order segments
	fixed    atomic.Bool  // the user set the size
}

func (b *buf) extra() int64 { return b.reserved.Load() - b.floor }

// have returns the extra of both buffers together, in bytes. budget.mu is held.
func (s *portion) have() int64 { return s.recv.extra() + s.send.extra() }

// shrinkRecv reduces the extra of the receive buffer to extra bytes. The budget counts the old size until the buffer is empty.
// The peer may still send what the old window allows. Bytes beyond the new size may be lost, and the peer then sends them again.
func (s *portion) shrinkRecv(extra int64) {
	f := &s.recv
	size := f.floor + extra
	if f.fixed.Load() {
		return
	}
	if f.size.Load() > size {
		s.cutRecv(size)
	}
	if s.ep.Readiness(waiter.ReadableEvents)&waiter.ReadableEvents == 0 && !s.holes.Load() {
		f.reserved.Store(size)
		f.was.Store(0)
	}
}

// cutRecv reduces the size of the receive buffer to n bytes. While the endpoint holds out-of-order segments, its buffer keeps the
// old size, because these segments might exceed the smaller size. gVisor would then refuse all data, even the missing segment
// (segment_queue.go, enqueue), and the connection would stop forever.
func (s *portion) cutRecv(n int64) {
	f := &s.recv
	old := f.size.Swap(n)
	f.was.Store(max(old, f.was.Load()))
	s.applyRecv()
}

// applyRecv sets the endpoint's receive buffer to the size that s says. It locks no mutex. Another goroutine may change the size
// meanwhile, so applyRecv repeats until nothing has changed.
func (s *portion) applyRecv() {
	due := func() int64 {
		n := s.recv.size.Load()
		if s.holes.Load() {
			n = max(n, s.recv.was.Load())
		}
		return n
	}
	for n, again := due(), int64(0); n != again; n, again = due(), n {
		s.ep.SocketOptions().SetReceiveBufferSize(n+earlyRecv, false)
	}
}

// sendLimit returns how many bytes the send buffer may hold: its size, or a larger former size if the buffer may still be that
// full. It adds one byte, because fits raises the size by one byte while it checks the buffer.
func (s *portion) sendLimit() int64 {
	return max(s.send.reserved.Load(), s.ep.SocketOptions().GetSendBufferSize()) + 1
}

// shrinkSend reduces the extra of the send buffer to extra bytes. The buffer keeps bytes that it already holds until the peer
// acknowledges them.
func (s *portion) shrinkSend(extra int64) {
	f := &s.send
	size := f.floor + extra
	if f.fixed.Load() {
		return
	}
	f.size.Store(min(size, f.size.Load()))
	if s.fits(f.size.Load()) {
		f.reserved.Store(size)
		if s.heard.isDeaf(f.size.Load() + 1) {
			s.heard.endLong()
		}
	}
}

// fits sets the size of the send buffer to size bytes, and reports whether the buffer holds no more than that.
func (s *portion) fits(size int64) bool {
	o := s.ep.SocketOptions()
	o.SetSendBufferSize(size+1, false)
	writable := s.ep.Readiness(waiter.WritableEvents)&waiter.WritableEvents != 0 // the buffer holds less than its size
	o.SetSendBufferSize(size, false)
	switch tcp.EndpointState(s.ep.State()) {
	case tcp.StateFinWait1, tcp.StateClosing, tcp.StateLastAck:
		return false // once the program has closed its half, gVisor reports every buffer as writable
	}
	return writable
}

// touch records that the program has just read or written bytes.
func (s *portion) touch() {
	if e := s.budget.epoch.Load(); s.touched.Load() != e && s.touched.Swap(e) != e {
		s.budget.awake.Add(1)
	}
}

// growRecv lets the receive buffer grow up to want bytes, unless the user has set its size.
func (s *portion) growRecv(want int64) {
	if want > s.recv.size.Load() && !s.recv.fixed.Load() {
		s.setRecv(want)
	}
}

// growSend lets the send buffer grow up to want bytes, unless the user has set its size.
func (s *portion) growSend(want int64) {
	if want > s.send.size.Load() && !s.send.fixed.Load() {
		s.setSend(want)
	}
}

// cutSend reduces the send buffer to want bytes, or to its floor if that is larger, unless the user has set its size.
func (s *portion) cutSend(want int64) {
	b := s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.index >= 0 && !s.leaving {
		have := s.have()
		s.shrinkSend(max(want-s.send.floor, 0))
		b.count(0, s.have()-have)
	}
}

// fixRecv sets the size of the receive buffer, in bytes, for good.
func (s *portion) fixRecv(n int64) {
	s.recv.fixed.Store(true)
	s.setRecv(max(n, 1))
}

// fixSend sets the size of the send buffer, in bytes, for good.
func (s *portion) fixSend(n int64) {
	s.send.fixed.Store(true)
	s.setSend(max(n, 1))
	s.ep.SocketOptions().SetSendBufferSize(s.send.size.Load(), true) // wakes writers
}

// setRecv sets the size of the receive buffer to n bytes, or to less if the budget does not allow n. If the peer waits for a
// larger window, gVisor announces it, and locks the connection for that. So the caller must not hold the budget's lock.
func (s *portion) setRecv(n int64) {
	f := &s.recv
	n = s.budget.grow(s, f, n)
	switch size := f.size.Load(); {
	case n == size:
		return
	case n < size:
		s.cutRecv(n)
		return
	}
	f.size.Store(n)
	s.ep.SocketOptions().SetReceiveBufferSize(n+earlyRecv, true)

	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	if s.index >= 0 && f.reserved.Load() < n { // meanwhile, look took memory back
		s.cutRecv(f.reserved.Load())
	}
}

// setSend sets the size of the send buffer to n bytes, or to less if the budget does not allow n.
func (s *portion) setSend(n int64) {
	f := &s.send
	n = s.budget.grow(s, f, n)
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	if s.index >= 0 {
		n = min(n, f.reserved.Load())
		f.size.Store(n)
		s.ep.SocketOptions().SetSendBufferSize(n, false)
	}
}

// leave returns the memory of a closed connection to the budget. If the endpoint still has bytes to send, the portion keeps the
// memory of the send buffer until the peer acknowledges these bytes or gVisor gives them up. empty says that the endpoint had no
// bytes to send when it was closed.
func (s *portion) leave(empty bool) {
	b := s.budget
	if !empty {
		// In the state FIN-WAIT-2, gVisor signals no EventHUp until the peer closes its half. But it signals a WritableEvent when
		// the last acknowledgement arrives.
		s.gone = waiter.NewFunctionEntry(waiter.EventHUp|waiter.WritableEvents, func(is waiter.EventMask) {
			if is&waiter.EventHUp != 0 || drained(s.ep) {
				b.drop(s)
			}
		})
		s.queue.EventRegister(&s.gone)
	}
	if empty || drained(s.ep) {
		b.drop(s)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.index < 0 {
		return
	}
	s.leaving = true
	b.count(-s.recv.floor, -s.recv.extra())
	s.recv.floor = 0
	s.recv.reserved.Store(0)
}

// drained reports whether a closed endpoint has nothing left to send: the peer has acknowledged all bytes, or gVisor has given
// them up.
func drained(ep tcpip.Endpoint) bool {
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateFinWait2, tcp.StateTimeWait, tcp.StateClose, tcp.StateError:
		return true
	}
	return false
}

// KUID and KGID make a portion a tcpip.PacketOwner. Only iptables rules would call these methods.
func (s *portion) KUID() uint32 { return 0 }
func (s *portion) KGID() uint32 { return 0 }
