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

// seqAt is the offset of a packet's number, after the IPv4 and UDP headers.
const seqAt = 20 + 8

// A flow is one direction of traffic through a tunnel. Its source makes numbered packets of one size. Its sink counts the packets
// and checks their numbers. Source and sink do the same work for both libraries: per packet, the source copies the template, and
// the sink compares one number.
type flow struct {
	template []byte

	ahead  sync.Mutex    // guards window, limit and sent
	window int64         // largest number of packets in flight; 0 means as many as the tunnel accepts
	limit  int64         // the source stops after this many packets
	sent   int64         // number of packets that the source has sent or is about to send
	wake   chan struct{} // holds at most one token, which tells the source to check its limits again

	behind   sync.Mutex // guards next
	next     int64      // the number that the next packet should have
	received atomic.Int64
	late     atomic.Int64  // number of packets that arrived twice, or after a packet with a higher number
	mangled  atomic.Int64  // number of packets whose length has changed
	arrival  chan struct{} // holds at most one token, which says that packets have arrived

	unordered bool                   // the sink does not check the packets' numbers
	report    atomic.Pointer[report] // receives the count of packets; nil means no report
}

// newFlow makes a flow of packets of size bytes between two addresses.
func newFlow(size int, from, to netip.Addr) *flow {
	f := &flow{
		template: make([]byte, size),
		wake:     make(chan struct{}, 1),
		arrival:  make(chan struct{}, 1),
	}
	f.address(from, to)
	return f
}

// address turns the template into an IPv4/UDP packet between two addresses. UDP without a checksum is legal in IPv4. Call
// address only while the source has reached its limit.
func (f *flow) address(from, to netip.Addr) {
	p := f.template
	clear(p)
	packet.PutIP(p, len(p), from, to, packet.UDP, 0)
	binary.BigEndian.PutUint16(p[20:], 5001)
	binary.BigEndian.PutUint16(p[22:], 5001)
	binary.BigEndian.PutUint16(p[24:], uint16(len(p)-20))
}

// take waits until the source may send. It returns the number of the next packet (first), and how many packets the source may
// send (count): at most n, or 0 once down is closed. If the source sends fewer, it must tell giveBack how many it did not send.
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

// giveBack tells the flow that the source did not send the last n packets of its latest call of take, so that they do not count as
// sent.
func (f *flow) giveBack(n int) {
	f.ahead.Lock()
	f.sent -= int64(n)
	f.ahead.Unlock()
}

// fill writes packet number seq to the buffer room, which must be as long as the template.
func (f *flow) fill(room []byte, seq int64) {
	copy(room, f.template)
	binary.LittleEndian.PutUint64(room[seqAt:], uint64(seq))
}

// A tally counts the packets of one batch for the sink of a flow. The mutex flow.behind is locked from the call of flow.begin to
// the call of tally.end.
type tally struct {
	f                       *flow
	next                    int64
	received, late, mangled int64
}

func (f *flow) begin() tally {
	f.behind.Lock()
	return tally{f: f, next: f.next}
}

// add counts the packet p and checks its number.
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

// open lets the source send any number of packets, with at most inFlight of them in flight. 0 means as many as the tunnel
// accepts.
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

// stop stops the source. Packets that it still sends after stop has returned are already counted as sent.
func (f *flow) stop() { f.allow(0) }

// missing returns how many of the packets that the source has sent or may still send have not arrived.
func (f *flow) missing() int64 {
	f.ahead.Lock()
	defer f.ahead.Unlock()
	return max(f.limit, f.sent) - f.received.Load()
}

var errNothingArrives = errors.New("packets that were sent did not arrive")

// drain waits until no packet is missing, or until no packet has arrived for the duration patience.
func (f *flow) drain(patience time.Duration) error {
	tick := time.NewTicker(patience / 100)
	defer tick.Stop()
	for idle := 0; f.missing() > 0; {
		select {
		case <-f.arrival:
			idle = 0
		case <-tick.C: // the ticks are also needed because giveBack can reduce the missing packets to zero without an arrival
			if idle++; idle > 100 {
				return errNothingArrives
			}
		}
	}
	return nil
}

// A plain is the plaintext side of one node. The node's device sends the packets of the flow in the field out, and delivers the
// packets that it receives to the flow in the field in.
type plain struct {
	mtu     int
	out, in *flow
	down    chan struct{}
	once    sync.Once
}

// close ends the wait of the source in flow.take.
func (p *plain) close() { p.once.Do(func() { close(p.down) }) }

// newPlains makes the plaintext sides of two nodes, a and b. The flow ab leads from a to b, and ba leads back.
func newPlains(ab, ba *flow) (a, b *plain) {
	mtu := max(mtu, len(ab.template))
	return &plain{mtu: mtu, out: ab, in: ba, down: make(chan struct{})}, &plain{mtu: mtu, out: ba, in: ab, down: make(chan struct{})}
}
