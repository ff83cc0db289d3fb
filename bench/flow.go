package main

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// seqAt is where a packet carries its number: behind an IPv4 and a UDP header.
const seqAt = 20 + 8

// A flow is one direction of traffic through a tunnel: a source that makes ready packets of one size, numbered, and a
// sink that counts them and looks at their numbers. Source and sink cost both libraries the same: a copy of the
// template a packet, and a comparison.
type flow struct {
	template []byte

	ahead  sync.Mutex    // guards the three below
	window int64         // packets in flight at most; 0: as many as the tunnel takes
	limit  int64         // the source stops when it has sent so many
	sent   int64         // packets sent, or about to be
	wake   chan struct{} // one token: the source may look again

	behind   sync.Mutex // guards next
	next     int64      // the number that should come next
	received atomic.Int64
	late     atomic.Int64  // packets behind one that was sent after them, or for the second time
	mangled  atomic.Int64  // packets of another length than they were sent with
	arrival  chan struct{} // one token: something was received

	unordered bool                   // the packets are not numbered
	report    atomic.Pointer[report] // who is told of what was received; nil: nobody
}

// newFlow makes a flow of packets of size bytes from one address to another.
func newFlow(size int, from, to netip.Addr) *flow {
	f := &flow{
		template: make([]byte, size),
		wake:     make(chan struct{}, 1),
		arrival:  make(chan struct{}, 1),
	}
	f.address(from, to)
	return f
}

// address makes the template an IPv4/UDP packet between two addresses. UDP without a checksum is legal in IPv4. The
// source must be at its limit.
func (f *flow) address(from, to netip.Addr) {
	p := f.template
	clear(p)
	packet.PutIP(p, len(p), from, to, packet.UDP, 0)
	binary.BigEndian.PutUint16(p[20:], 5001)
	binary.BigEndian.PutUint16(p[22:], 5001)
	binary.BigEndian.PutUint16(p[24:], uint16(len(p)-20))
}

// take waits until the source may send and returns the number of its next packet and how many it may send, at most n:
// none once down is closed. What it does not send after all, it gives back.
func (f *flow) take(n int, down <-chan struct{}) (first int64, count int) {
	for {
		f.ahead.Lock()
		first = f.sent
		may := f.limit - first
		if f.window > 0 {
			may = min(may, f.received.Load()+f.window-first)
		}
		if may > 0 {
			count = int(min(may, int64(n)))
			f.sent += int64(count)
			f.ahead.Unlock()
			return first, count
		}
		f.ahead.Unlock()
		select {
		case <-f.wake:
		case <-down:
			return 0, 0
		}
	}
}

// giveBack undoes the last n of what take handed out last.
func (f *flow) giveBack(n int) {
	f.ahead.Lock()
	f.sent -= int64(n)
	f.ahead.Unlock()
}

// fill writes the packet of number seq to room, which is as long as the template.
func (f *flow) fill(room []byte, seq int64) {
	copy(room, f.template)
	binary.LittleEndian.PutUint64(room[seqAt:], uint64(seq))
}

// A tally is one batch on its way into the sink.
type tally struct {
	f                       *flow
	next                    int64
	received, late, mangled int64
}

func (f *flow) begin() tally {
	f.behind.Lock()
	return tally{f: f, next: f.next}
}

// add counts one packet.
func (t *tally) add(p []byte) {
	t.received++
	if len(p) != len(t.f.template) {
		t.mangled++
		return
	}
	if t.f.unordered {
		return
	}
	seq := int64(binary.LittleEndian.Uint64(p[seqAt:]))
	if seq < t.next {
		t.late++
		return
	}
	t.next = seq + 1
}

func (t *tally) end() {
	f := t.f
	f.next = t.next
	received := f.received.Add(t.received)
	if t.late+t.mangled > 0 {
		f.late.Add(t.late)
		f.mangled.Add(t.mangled)
	}
	if r := f.report.Load(); r != nil {
		r.received(received)
	}
	f.behind.Unlock()
	nudge(f.arrival)
	nudge(f.wake)
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// open lets the source send without an end, with so many packets in flight at most; 0 is as many as the tunnel takes.
func (f *flow) open(inFlight int64) {
	f.ahead.Lock()
	f.window, f.limit = inFlight, 1<<62
	f.ahead.Unlock()
	nudge(f.wake)
}

// allow lets the source send until it has sent n packets in all.
func (f *flow) allow(n int64) {
	f.ahead.Lock()
	f.limit = n
	f.ahead.Unlock()
	nudge(f.wake)
}

// stop ends the source where it is: what it sends after the return was counted before.
func (f *flow) stop() { f.allow(0) }

// missing is how many packets have not arrived of those that were sent or may be.
func (f *flow) missing() int64 {
	f.ahead.Lock()
	defer f.ahead.Unlock()
	return max(f.limit, f.sent) - f.received.Load()
}

var errNothingArrives = errors.New("packets that were sent did not arrive")

// drain waits until nothing is missing, or until nothing has arrived for the time of patience.
func (f *flow) drain(patience time.Duration) error {
	tick := time.NewTicker(patience / 100)
	defer tick.Stop()
	for idle := 0; f.missing() > 0; {
		select {
		case <-f.arrival:
			idle = 0
		case <-tick.C: // also because giveBack ends the waiting without an arrival
			if idle++; idle > 100 {
				return errNothingArrives
			}
		}
	}
	return nil
}

// A plain is the plaintext side of one node: its device reads the packets of out and delivers to in.
type plain struct {
	mtu     int
	out, in *flow
	down    chan struct{}
	once    sync.Once
}

// close unblocks the source.
func (p *plain) close() { p.once.Do(func() { close(p.down) }) }

// newPlains makes both sides of a tunnel between a and b, and the flow from a to b.
func newPlains(ab, ba *flow) (a, b *plain) {
	mtu := max(mtu, len(ab.template))
	return &plain{mtu: mtu, out: ab, in: ba, down: make(chan struct{})}, &plain{mtu: mtu, out: ba, in: ab, down: make(chan struct{})}
}
