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

	// floorRecv and floorSend are the sizes of the receive and the send buffer, in bytes, that every connection has at least.
	// With 2,000 busy connections between two Nets, sizes of 8 and 4 KiB doubled the processor time per byte.
	floorRecv = 16 << 10
	floorSend = 8 << 10
	// waitingRecv is the receive buffer's size, in bytes, of a connection that waits for Accept. The budget counts waitingCost
	// bytes for such a connection.
	waitingRecv = 8 << 10
	// earlyRecv is how many bytes are added to the size of each endpoint's receive buffer, because gVisor may count up to that
	// many bytes forever. If the segment that completes the handshake carries data, gVisor counts the segment's size twice
	// (accept.go, connect.go), and subtracts it only once. That segment carries at most half of waitingRecv, which is the window
	// during the handshake, and has some hundred bytes of overhead.
	earlyRecv = waitingRecv/2 + 1<<10
	// firstRecv and firstSend are the buffer sizes, in bytes, of a new connection while few connections exist. With smaller
	// buffers, a new connection would fill its window before Read has measured the path.
	firstRecv = 256 << 10
	firstSend = 128 << 10
	// noSACKRecv is the largest receive buffer, in bytes, of a connection without selective acknowledgements; see portion.holes.
	noSACKRecv = 64 << 10
	// maxWindow is the largest window that a connection announces, in bytes. With this limit, gVisor announces windows in units
	// of at most 512 bytes, which is less than any full segment. A window is at most half of the receive buffer.
	maxWindow = 65535 << 9

	epoch   = time.Second // a connection that was not used for one or two epochs is idle
	perLook = 16          // how many connections one call of reclaim checks
	maxSkip = 256         // the maximum of budget.skip and budget.wait
)

// A budget divides Config.Memory among the TCP connections of a Net. Its field held counts the memory of all other kinds.
//
// A budget counts the sizes of buffers rather than the bytes in them, because gVisor accepts whatever fits into a buffer. The size
// bounds the memory that a buffer takes: gVisor counts all the memory of segments against it, even if they are short or out of
// order. Every connection has a guaranteed size, its floor. The bytes that a connection has beyond its floor are its extra. Read
// and Write request a larger extra when the path needs it. If the budget cannot grant all of a request, it takes back extras from
// connections that are idle, or that have more than twice the fair amount.
//
// The link does not lock mu for a packet, unless the packet ends a connection that the program has closed. Making or closing a
// connection locks mu. So does changing the size of a buffer, which Read and Write do at most once per round trip. A goroutine that
// holds mu may lock some of gVisor's leaf locks, but never the lock of a connection.
type budget struct {
	total int64

	epoch atomic.Uint32 // counts epochs; a new epoch begins only when a connection requests memory
	awake atomic.Int64  // how many connections were used in this epoch

	mu       sync.Mutex // guards the fields below, and the fields of portions whose comments say so
	portions []*portion
	floors   int64 // bytes
	extra    int64 // bytes that all connections together have beyond their floors
	hand     int   // the index in portions where the next reclaim begins
	skip     int   // how many of the next calls of reclaim return at once
	wait     int   // the value of skip after the last search, if it found nothing; otherwise 0
	before   int64 // how many connections were used in the previous epoch
	epochAt  time.Time

	held heldMemory // counts the other kinds of memory
}

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

// windowLimit returns the maximum size of receive buffers, in bytes, with which the Net configures gVisor. gVisor uses this maximum
// only to choose the window scale of TCP. It does not limit the buffers: the budget may make one larger.
func (b *budget) windowLimit() int { return int(min(b.total/2, maxWindow)) }

// count adds floors bytes to the sum of all floors, and extra bytes to the sum of all extras. b.mu is held.
func (b *budget) count(floors, extra int64) {
	b.floors += floors
	b.extra += extra
	b.held.given.Add(floors + extra)
}

// free returns how many more bytes connections may get as extras. A quarter of the budget is reserved for extras, even if the
// floors and the other kinds of memory together exceed the other three quarters. b.mu is held.
func (b *budget) free() int64 { return max(b.total-b.floors-b.others(), b.total/4) - b.extra }

// fair returns how many bytes of extra each connection may have. A few busy connections may together have nearly all of the
// budget. The more busy connections exist, the larger the part of the budget that stays free. Otherwise new connections would get
// no extra until reclaim took memory back from others. b.mu is held.
func (b *budget) fair() int64 {
	const many = 64 // with this many busy connections, they may together have half of the budget
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

	// The argument true stops gVisor from changing the sizes by itself.
	s.recv.size.Store(recv)
	s.send.size.Store(send)
	ep.SocketOptions().SetReceiveBufferSize(recv+earlyRecv, true)
	ep.SocketOptions().SetSendBufferSize(send, true)
	return s
}

// grant raises the reserved size of the buffer f to want bytes, or as far as the budget allows. It returns how many bytes f may
// have, at most want. b.mu is held.
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

// grow locks b.mu and calls grant. If the budget cannot grant want bytes, grow takes memory back from other connections and calls
// grant again.
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

// reclaim takes memory back from some connections, and reports whether it found memory to take back. b.mu is held.
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

// look takes back memory that the connection of s does not need. b.mu is held.
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

// used returns how many bytes the buffers of all connections may hold, plus the bytes of all other kinds of memory.
func (b *budget) used() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return uint64(b.floors+b.extra) + uint64(b.others())
}
