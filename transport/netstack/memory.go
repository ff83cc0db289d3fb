package netstack

import (
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	defaultMemory = 64 << 20
	minMemory     = 1 << 20

	// floorRecv and floorSend are the buffers, in bytes, that every connection has. With 2,000 busy connections between two
	// Nets, 8 and 4 KiB cost twice the processor time per byte.
	floorRecv = 16 << 10
	floorSend = 8 << 10
	// waitingRecv is the receive buffer of a connection that waits for Accept. The budget counts waitingCost for it.
	waitingRecv = 8 << 10
	// earlyRecv is added to the receive buffer of each endpoint, because gVisor may take that much of it for good. If the segment that
	// completes the handshake has data, gVisor adds its size twice to what the buffer holds (accept.go, connect.go), and subtracts it
	// once. The segment has at most half of waitingRecv, which is the window during the handshake, and some hundred bytes of overhead.
	earlyRecv = waitingRecv/2 + 1<<10
	// firstRecv and firstSend are the buffers of a new connection while few exist. With less, a new connection would fill its
	// window before Read has measured the path.
	firstRecv = 256 << 10
	firstSend = 128 << 10
	// noSACKRecv is the largest receive buffer of a connection without selective acknowledgements; see portion.holes.
	noSACKRecv = 64 << 10
	// maxWindow is the largest window that a connection announces, in bytes. Its unit is then 512 bytes, which is less than
	// any full segment. A window is at most half of the receive buffer.
	maxWindow = 65535 << 9

	epoch   = time.Second // a connection that nobody used for one or two epochs is idle
	perLook = 16          // connections that one call of reclaim looks at
	maxSkip = 256         // refused calls of grow between two calls of reclaim that found nothing
)

// A budget divides Config.Memory among the TCP connections of a Net, except for what held counts.
//
// It counts buffer sizes, and not the bytes in the buffers, because gVisor accepts whatever fits into a buffer, and counts
// the memory of short and of out-of-order segments against its size. Every connection has its floor. What a connection has
// beyond that is its extra. Read and Write ask for more when the path needs it. A refusal makes the budget take back extras
// from connections that are idle, or that have more than a fair part.
//
// mu is taken outside the packets' paths: when a connection is made or closed, and at most once per
// round trip by Read and Write. Some of gVisor's leaf locks are taken with it held, but never the lock of a connection.
type budget struct {
	total int64

	epoch atomic.Uint32 // counts epochs in which a connection asked for memory
	awake atomic.Int64  // connections that were used in this epoch

	mu       sync.Mutex // guards the rest, and the fields of portions that say so
	portions []*portion
	floors   int64 // bytes
	extra    int64 // bytes that all connections have beyond their floors
	hand     int   // where reclaim continues in portions
	skip     int   // refusals to ignore before the next reclaim
	wait     int   // how many refusals to ignore after a reclaim that found nothing; 0 after one that found something
	before   int64 // connections that were used in the epoch before
	epochAt  time.Time

	held heldMemory // what the other kinds of memory hold
}

// A portion is what one connection has of the budget. gVisor knows it as the owner of the connection's packets, which leads
// the link from a packet to its connection.
type portion struct {
	budget *budget
	ep     tcpip.Endpoint
	queue  *waiter.Queue
	index  int // in budget.portions; guarded by budget.mu; -1 after release

	recv, send buf          // guarded by budget.mu, except for atomic fields
	leaving    bool         // the connection is closed, but still has bytes to send; guarded by budget.mu
	gone       waiter.Entry // releases the portion of a closed connection

	heard heard
	conns *heardConns // has heard until the budget removes the portion

	noSACK bool // the other end does not know selective acknowledgements
	// holes says that the endpoint holds out-of-order segments. The link copies it from each segment that the connection
	// sends, because gVisor sends selective acknowledgements if and only if it holds such segments.
	holes   atomic.Bool
	touched atomic.Uint32 // the budget's epoch when bytes were last read or written
}

// A buf is a portion's receive or send buffer. All sizes are bytes.
type buf struct {
	floor    int64
	reserved atomic.Int64 // what the budget counts; more than size while the buffer may hold more
	size     atomic.Int64 // the size that the endpoint has, or gets once it holds no out-of-order segments; without earlyRecv
	was      atomic.Int64 // the size before cutRecv, until the endpoint is known to hold no such segments; or 0
	fixed    atomic.Bool  // the user set the size
}

func (b *buf) extra() int64 { return b.reserved.Load() - b.floor }

// have returns the extra of both buffers. budget.mu is held.
func (s *portion) have() int64 { return s.recv.extra() + s.send.extra() }

func (c *Config) memory() int64 {
	if c.Memory == 0 {
		return defaultMemory
	}
	return int64(c.Memory)
}

func newBudget(total int64) *budget {
	b := &budget{total: total, epochAt: time.Now()}
	b.held.init(total)
	return b
}

// windowLimit returns the receive buffer size that gVisor derives the unit of windows from.
func (b *budget) windowLimit() int { return int(min(b.total/2, maxWindow)) }

// count adds to the bytes that connections have as floors, and to those that they have as extras. b.mu is held.
func (b *budget) count(floors, extra int64) {
	b.floors += floors
	b.extra += extra
	b.held.given.Add(floors + extra)
}

// free returns how many bytes connections may get beyond their floors. A quarter of the budget is reserved for that, even if the
// floors of many connections and all other memory exceed the rest. b.mu is held.
func (b *budget) free() int64 { return max(b.total-b.floors-b.others(), b.total/4) - b.extra }

// fair returns how many bytes of extra each connection may have. A few connections in use may have everything. The more there
// are, the larger the part that stays free for new ones, since these would otherwise wait until reclaim finds something for them.
// b.mu is held.
func (b *budget) fair() int64 {
	const many = 64 // so many connections together may have half of the budget
	n := max(b.awake.Load(), b.before, 1)
	return b.total / n * many / (n + many)
}

// open adds a connection to the budget and sets the sizes of its buffers. It adds the connection to conns.
func (b *budget) open(ep tcpip.Endpoint, q *waiter.Queue, mtu int, conns *heardConns) *portion {
	s := &portion{budget: b, ep: ep, queue: q, conns: conns}
	s.recv.floor = max(floorRecv, int64(4*mtu))
	s.send.floor = max(floorSend, int64(2*mtu))
	if e, ok := ep.(*tcp.Endpoint); ok {
		e.LockUser()
		e.SetOwner(s)
		s.noSACK = !e.SACKPermitted
		e.UnlockUser()
		if !s.noSACK {
			s.heard.ep = ep
			if s.heard.reno = measuredTrip(ep) >= shortestTrip; s.heard.reno {
				setReno(ep)
			}
		}
	}
	s.touched.Store(b.epoch.Load())
	b.awake.Add(1)
	own, err1 := ep.GetLocalAddress()
	peer, err2 := ep.GetRemoteAddress()

	b.mu.Lock()
	s.index = len(b.portions)
	b.portions = append(b.portions, s)
	if err1 == nil && err2 == nil {
		conns.add(&s.heard, flowBetween(addrPort(own), addrPort(peer)))
	}
	b.count(s.recv.floor+s.send.floor+earlyRecv, 0)
	s.recv.reserved.Store(s.recv.floor)
	s.send.reserved.Store(s.send.floor)
	part := b.total / 64 / int64(len(b.portions))
	recv := b.grant(s, &s.recv, max(min(part, firstRecv), s.recv.floor))
	send := b.grant(s, &s.send, max(min(part/2, firstSend), s.send.floor))
	b.mu.Unlock()

	// The argument true makes gVisor leave the sizes alone from now on.
	s.recv.size.Store(recv)
	s.send.size.Store(send)
	ep.SocketOptions().SetReceiveBufferSize(recv+earlyRecv, true)
	ep.SocketOptions().SetSendBufferSize(send, true)
	return s
}

// grant reserves up to want bytes for f, and returns how many f may have. b.mu is held.
func (b *budget) grant(s *portion, f *buf, want int64) int64 {
	if f == &s.recv && s.noSACK {
		want = min(want, noSACKRecv)
	}
	have := s.have()
	more := min(want-f.reserved.Load(), b.fair()-have, b.free())
	if more > 0 {
		f.reserved.Add(more)
		b.count(0, more)
	}
	return min(want, f.reserved.Load())
}

// grow returns how many bytes f may have, at most want. If f may not have want, grow takes memory back from other connections.
func (b *budget) grow(s *portion, f *buf, want int64) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.index < 0 {
		return f.size.Load()
	}
	if now := time.Now(); now.Sub(b.epochAt) >= epoch {
		b.epochAt = now
		b.epoch.Add(1)
		b.before = b.awake.Swap(0)
	}
	got := b.grant(s, f, want)
	if got < want && b.reclaim() {
		got = b.grant(s, f, want)
	}
	return got
}

// reclaim takes memory back from some connections, and reports whether it did. b.mu is held.
func (b *budget) reclaim() (found bool) {
	if b.skip > 0 {
		b.skip--
		return false
	}
	before := b.extra
	for n := min(perLook, len(b.portions)); n > 0 && len(b.portions) > 0; n-- {
		b.hand %= len(b.portions)
		s := b.portions[b.hand]
		b.hand++
		b.look(s)
	}
	if b.extra < before {
		b.skip, b.wait = 0, 0
		return true
	}
	b.wait = min(2*b.wait+1, maxSkip)
	b.skip = b.wait
	return false
}

// look takes back what s does not need. b.mu is held.
func (b *budget) look(s *portion) {
	have := s.have()
	if s.leaving {
		if drained(s.ep) {
			b.remove(s)
		}
		return
	}
	if have == 0 {
		return
	}
	switch {
	case b.epoch.Load()-s.touched.Load() > 1: // idle
		s.shrinkRecv(0)
		s.shrinkSend(0)
	case have > 2*b.fair():
		s.shrinkRecv(s.recv.extra() / 2)
		s.shrinkSend(s.send.extra() / 2)
	default:
		return
	}
	b.count(0, s.have()-have)
}

// shrinkRecv leaves the receive buffer the extra given. The budget counts the old size until the buffer is empty. Bytes that the
// old window lets the other end send beyond the new size may be lost, and are then sent again.
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

// cutRecv makes the receive buffer smaller. While the endpoint holds out-of-order segments, it keeps its old size. Otherwise the
// endpoint might hold more than its size. gVisor would then refuse all data, even the missing segment (segment_queue.go, enqueue),
// and the connection would stop for good.
func (s *portion) cutRecv(n int64) {
	f := &s.recv
	old := f.size.Swap(n)
	f.was.Store(max(old, f.was.Load()))
	s.applyRecv()
}

// applyRecv gives the endpoint the size of its receive buffer. It takes no lock. Another goroutine may change the size meanwhile,
// so applyRecv repeats until nothing has changed.
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

// sendLimit returns how many bytes the send buffer may hold: its size, or more if it was larger and may still hold more. One byte is
// for fits.
func (s *portion) sendLimit() int64 {
	return max(s.send.reserved.Load(), s.ep.SocketOptions().GetSendBufferSize()) + 1
}

// shrinkSend does the same for the send buffer, which keeps what it holds until that is acknowledged.
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
	writable := s.ep.Readiness(waiter.WritableEvents)&waiter.WritableEvents != 0 // it holds less than its size
	o.SetSendBufferSize(size, false)
	switch tcp.EndpointState(s.ep.State()) {
	case tcp.StateFinWait1, tcp.StateClosing, tcp.StateLastAck:
		return false // gVisor says that it is writable once the program has closed this half, whatever it holds
	}
	return writable
}

// touch notes that bytes were read or written.
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

// cutSend leaves the send buffer want bytes, or its floor, unless the user has set its size.
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

// setRecv gives the receive buffer up to n bytes. gVisor announces the larger window if the other end waits for it, and
// takes the connection's lock for that, so the caller must not hold the budget's lock.
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
	if s.index >= 0 && f.reserved.Load() < n { // look took it back meanwhile
		s.cutRecv(f.reserved.Load())
	}
}

// setSend gives the send buffer up to n bytes.
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

// leave gives the memory of a closed connection back. If its endpoint still has bytes to send, the portion keeps the memory of the
// send buffer until they are acknowledged or given up. empty says that the endpoint had none before it was closed.
func (s *portion) leave(empty bool) {
	b := s.budget
	if !empty {
		// In FIN-WAIT-2, there is no EventHUp before the peer closes its half. But the last acknowledgement is a WritableEvent.
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

// drained reports whether all that a closed endpoint had to send is acknowledged or given up.
func drained(ep tcpip.Endpoint) bool {
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateFinWait2, tcp.StateTimeWait, tcp.StateClose, tcp.StateError:
		return true
	}
	return false
}

// drop removes s from the budget. It may be called again.
func (b *budget) drop(s *portion) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.remove(s)
}

// remove is drop with b.mu held.
func (b *budget) remove(s *portion) {
	if s.index < 0 {
		return
	}
	last := len(b.portions) - 1
	b.portions[s.index] = b.portions[last]
	b.portions[s.index].index = s.index
	b.portions[last] = nil
	b.portions = b.portions[:last]
	s.index = -1
	s.conns.remove(&s.heard)
	b.count(-(s.recv.floor + s.send.floor + earlyRecv), -s.have())
}

// used returns how many bytes the connections may fill, plus how many all other kinds hold.
func (b *budget) used() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return uint64(b.floors+b.extra) + uint64(b.others())
}

// KUID and KGID make a portion a tcpip.PacketOwner. Only iptables rules would use them.
func (s *portion) KUID() uint32 { return 0 }
func (s *portion) KGID() uint32 { return 0 }
