package netstack

import (
	"encoding/binary"
	"math"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// A longPath replaces gVisor's congestion control and loss recovery for a connection whose round trip time is at least
// shortestTrip. On such a connection, gVisor's own congestion control and loss recovery use only a small part of what the path
// can carry:
//
//   - Slow start ends when a queue on the path overflows. By then gVisor has sent far more than the path and the queue hold.
//     Hundreds of segments are lost at once, and so are some of their retransmissions. gVisor detects that a retransmission was
//     lost only by a timeout, and then sends everything again. Until then, gVisor visits every segment in flight at each
//     acknowledgement (SetPipe), which may cost seconds of processor time.
//   - Each loss reduces the congestion window by 3/10. With one loss per thousand segments, a connection uses only a few per cent
//     of a fast path.
//
// So the link itself finds out which bytes are missing (holes.go) and sends them again (again.go). It limits the bytes in flight to
// what the path delivers (capacity.go) by lowering the window in each acknowledgement before gVisor sees it. The link hides from
// gVisor the acknowledgements that would make gVisor send less: selective and repeated ones. gVisor's congestion window then grows
// without limit, and only the lowered window limits the bytes in flight. The link does not change gVisor's timeout: if the link's
// retransmissions of a segment fail, gVisor sends the segment again. After such a timeout, gVisor begins with slow start, which
// would soon end; see verdict.revive.
//
// This is safe for TCP. The peer sees a sender that uses selective acknowledgements. The link never changes an acknowledgement
// number, so no byte counts as acknowledged before it has arrived, and gVisor keeps all bytes until then. The link only lowers
// windows. While bytes are missing, later bytes that have arrived are no longer in flight, although the acknowledgement number
// does not cover them. The lowered window rises by the number of these later bytes, but never beyond the window that the peer
// announced.
//
// If the last segments are lost, no acknowledgement reveals the loss. gVisor then sends these segments again after its timeout.
// Connections without selective acknowledgements have no longPath.
type longPath struct {
	link *link

	mu sync.Mutex // guards all fields below; a goroutine that holds it locks no other mutex

	closed  bool
	sent    uint32       // the sequence number after the last byte that was sent
	acked   uint32       // the sequence number after the last byte that was acknowledged
	total   int64        // how many bytes were acknowledged
	probe   uint32       // the sequence number of a byte; the measured round trip ends when this byte has arrived
	probed  time.Time    // when the byte with the number probe was sent; zero if no round trip is measured
	news    time.Time    // when an acknowledgement last showed that new bytes had arrived
	ackedAt time.Time    // when the acknowledgement number last rose
	full    bool         // whether at least three quarters of path.bound were in flight at the time probed
	hides   bool         // the link hides the present holes from gVisor
	still   int64        // the value of path.bound when the first of the present holes appeared
	window  uint16       // the window in the last acknowledgement that gVisor saw
	held    sentSegments // the segments that are not acknowledged
	header  sentHeader   // the header of the newest segment

	timer *time.Timer   // sends missing bytes again; nil until bytes are missing for the first time
	armed bool          // the timer runs
	wait  time.Duration // how long the timer runs

	resent bool   // gVisor has sent bytes again, and not all bytes before upTo have been acknowledged
	upTo   uint32 // the number after the last byte that had been sent when gVisor last sent bytes again
	silent bool   // no bytes had arrived for a while before gVisor sent bytes again
	skips  bool   // gVisor needs to send only the first segment again, because bytes had arrived shortly before

	path  capacity
	holes holes

	// front describes the first unacknowledged segment if that segment seems to be missing and there are no holes. front.from and
	// front.to are not used. front.since is zero if the segment does not seem to be missing. recover is the sequence number after
	// the last byte that had been sent when the segment first seemed to be missing.
	front   hole
	recover uint32
}

const (
	// A missing segment counts as lost as soon as reorderedSegments later segments have arrived (RFC 6675, DupThresh); see
	// hole.lost for the other conditions.
	reorderedSegments = 3

	// After each acknowledgement, the link sends again at most about burstSegments segments, or burstTimes times the bytes that
	// the acknowledgement newly reports as arrived, whichever is more. So after an interruption of the path, the link does not
	// send all lost bytes again at once.
	burstSegments = 10
	burstTimes    = 2

	// The link ends a longPath because the path is short only while at most fewBytes bytes have been acknowledged. Later, gVisor's
	// congestion window is too large to limit the bytes in flight again.
	fewBytes = 64 << 10
)

// newLongPath returns the longPath of a connection that is about to send its first byte, with the number seq.
func newLongPath(l *link, seq uint32) *longPath {
	return &longPath{link: l, sent: seq, acked: seq, holes: holes{end: seq}}
}

// send records that the connection sends the packet p, which carries the bytes with the numbers [seq, end), possibly none. room is
// how many bytes the connection's send buffer may hold. The result needless says that p need not be sent. The result deaf says that
// more than room bytes seem to be in flight. That means that the link did not recognize some acknowledgements that gVisor got,
// because they came in fragments or behind extension headers. The caller must then end the longPath, which would otherwise never
// release its packets. Calls for one connection do not overlap.
func (c *longPath) send(p *stack.PacketBuffer, seq, end uint32, room int64) (needless, deaf bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false, false
	}
	c.header.set(p)
	smaller := c.segment() < c.path.segment
	c.path.segment = c.segment()
	switch {
	case seq == end || int32(end-c.acked) <= 0: // p carries no bytes, or probes a closed window
	case int32(end-c.sent) <= 0:
		return c.sendAgain(seq, end, smaller), false
	default:
		if c.probed.IsZero() {
			c.probe, c.probed = c.sent, time.Now()
			c.full = 4*(int64(end-c.acked)-c.arrived()) >= 3*c.path.bound
		}
		c.sent = end
		c.held.add(p, seq, end)
		deaf = c.inFlight() > room
	}
	return false, deaf
}

// inFlight returns how many bytes have been sent and not acknowledged.
func (c *longPath) inFlight() int64 { return int64(c.sent - c.acked) }

// isDeaf reports whether more bytes seem to be in flight than gVisor's send buffer contains; see send. room is how many bytes
// the buffer contains at most.
func (c *longPath) isDeaf(room int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inFlight() > room
}

// sendAgain records that gVisor sends the bytes with the numbers [seq, end) again: after a timeout, because gVisor itself has
// detected a loss, or because a packet was too big. smaller says that segments have become smaller. sendAgain reports whether
// sending these bytes again is needless.
//
// After a timeout, gVisor begins with the first segment in flight, and would then send all later segments again. If bytes were
// still arriving before the timeout, the timeout only means that the first segment was lost more than once. The link itself sends
// the other missing bytes again. If no bytes were arriving, all bytes in flight may be lost. The peer may even have dropped bytes
// that it acknowledged selectively, so these bytes count as missing from then on (RFC 2018, section 8).
func (c *longPath) sendAgain(seq, end uint32, smaller bool) (needless bool) {
	front := int32(seq-c.acked) <= 0
	switch {
	case smaller:
		c.skips = false
	case front && !c.silent && c.isSilent():
		c.silent, c.skips = true, false
		c.holes, c.hides, c.front = holes{end: c.acked}, false, hole{}
		c.path.fall()
	case front && !c.silent && !c.resent:
		c.skips = c.hides
	}
	c.probed = time.Time{} // an acknowledgement would not show which of the two copies arrived
	c.resent, c.upTo = true, c.sent
	return !front && (c.skips && (c.hides || !c.holes.any()) || c.hides && int32(end-c.holes.end) <= 0)
}

// isSilent reports whether the peer has got no new bytes during the last round trip time, or none since gVisor last restarted its
// timeout. The pause between the acknowledgements of one round trip and those of the next is not silence.
func (c *longPath) isSilent() bool {
	gap := time.Since(c.news)
	return gap >= min(c.path.trip, tcp.MinRTO) && (gap >= c.path.trip || c.news.Equal(c.ackedAt))
}

// segment returns how many bytes of payload a full segment has.
func (c *longPath) segment() int64 { return int64(c.header.gso.MSS) }

// arrived returns how many bytes have arrived, according to selective acknowledgements, beyond the acknowledgement number.
func (c *longPath) arrived() int64 { return int64(int32(c.holes.end-c.acked)) - c.holes.missing }

// A verdict says what the link does with a received acknowledgement, and what else follows from it.
type verdict struct {
	again []*stack.PacketBuffer // packets that the link sends again; the verdict owns a reference to each
	drop  bool                  // gVisor must not see the acknowledgement
	short bool                  // the path is short, so the connection should have no longPath
	long  bool                  // the first round trip has shown that the path is long

	// gVisor's congestion window is small because gVisor has sent bytes again. All bytes that had been sent by then have now
	// arrived, so the congestion window should restart.
	revive bool
}

// hear evaluates a received acknowledgement with the header tcp, and sets the window in the header to at most window, in units of
// 1<<scale bytes. bare says that the segment is only an acknowledgement, without payload or other flags.
func (c *longPath) hear(tcp []byte, window uint16, scale uint8, bare bool) (v verdict) {
	now := time.Now()
	selective := selectiveOption(tcp)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return v
	}
	was := c.total + c.arrived()
	news := c.acknowledge(binary.BigEndian.Uint32(tcp[tcpAck:]), now)
	if news {
		c.news, c.ackedAt, c.silent = now, now, false
	}
	missed, before := c.holes.any(), c.path.delivered
	c.selected(selective, now)
	if c.total+c.arrived() > was {
		c.news = now
	}
	known := c.path.trip > 0
	if v.short = !c.measure(now); v.short {
		return v
	}
	v.long = !known && c.path.trip > 0
	switch {
	case !c.holes.any():
		c.hides = false
	case !missed:
		c.still, c.hides = c.path.bound, c.path.trip > 0
	}
	c.guess(news, bare && selective == nil && window > 0, now)
	if c.isMissing() {
		v.again = c.repair(now, max(burstSegments*c.segment(), burstTimes*(c.path.delivered-before)))
		c.arm(news)
	}
	if c.resent && int32(c.acked-c.upTo) >= 0 {
		c.resent, c.silent, c.skips, v.revive = false, false, false, true
	}
	window = min(window, c.limit(scale))
	if c.hides {
		for i := range selective {
			selective[i] = header.TCPOptionNOP
		}
		// With a closed window, gVisor must see the answers to its probes.
		v.drop = bare && !news && window == c.window && window > 0
	}
	c.window = window
	binary.BigEndian.PutUint16(tcp[tcpWindow:], window)
	return v
}

// acknowledge records that all bytes before the number n have arrived. It returns false if an earlier acknowledgement already
// covered these bytes.
func (c *longPath) acknowledge(n uint32, now time.Time) bool {
	if int32(n-c.acked) <= 0 {
		return false
	}
	if int32(n-c.sent) > 0 {
		n = c.sent // the number beyond it is that of the FIN
	}
	c.total += int64(n - c.acked)
	c.acked = n
	c.held.drop(n)
	c.holes.acknowledge(n, now, c.path.trip)
	return true
}

// selected records which bytes have arrived. option is the SACK option of a segment, or nil if the segment has none.
func (c *longPath) selected(option []byte, now time.Time) {
	for b := option; len(b) >= optionHeader+8; b = b[8:] {
		from, to := binary.BigEndian.Uint32(b[optionHeader:]), binary.BigEndian.Uint32(b[optionHeader+4:])
		if to == c.sent+1 {
			to = c.sent // the number beyond it is that of the FIN
		}
		// Compare distances from acked. Comparing the numbers in pairs would accept some blocks that span nearly half of all numbers.
		if f, t := from-c.acked, to-c.acked; 0 < f && f < t && t <= c.sent-c.acked {
			c.holes.arrived(from, to, now, c.path.trip)
		}
	}
	c.path.lose(-c.holes.early)
	c.holes.early = 0
}

// limit returns the largest window that the link lets gVisor see, in units of 1<<scale bytes. The result is never 0.
func (c *longPath) limit(scale uint8) uint16 {
	bound := c.path.bound
	switch {
	case c.hides && bound > 0:
		bound += c.arrived()
	case c.holes.any():
		bound = c.still // gVisor counts an acknowledgement as a duplicate only if the window is unchanged
	}
	if bound == 0 {
		return math.MaxUint16
	}
	return uint16(min((bound+1<<scale-1)>>scale, math.MaxUint16))
}

// measure updates the estimates of the path with the bytes that have arrived. It returns false if the path is short.
func (c *longPath) measure(now time.Time) bool {
	delivered := max(c.path.delivered, c.total+c.arrived())
	if !c.probed.IsZero() && int32(c.holes.end-c.probe) > 0 {
		trip := now.Sub(c.probed)
		if trip < shortestTrip && c.total <= fewBytes && !c.isMissing() {
			return false
		}
		c.path.endTrip(max(trip, shortestTrip), delivered, c.full, now)
		c.probed = time.Time{}
	}
	c.path.deliver(delivered, now)
	return true
}

// guess detects losses from acknowledgements without the selective option. A peer that uses gVisor sends only such acknowledgements
// once it has closed its half of the connection, and gVisor as a sender ignores them. If such an acknowledgement does not
// acknowledge new bytes, the first segment in flight seems to be missing. If the segment is still not acknowledged a round trip
// later, it is lost. The link then sends the segment again. If the acknowledgement of that copy does not cover all bytes before
// c.recover, the next segment is lost too (RFC 6582). news says that the present acknowledgement covers new bytes. plain says that
// the acknowledgement is not selective, carries nothing else, and leaves the window open.
func (c *longPath) guess(news, plain bool, now time.Time) {
	g := &c.front
	// answer says that the acknowledgement answers the copy that was sent again, not the first copy.
	answer := !g.again.IsZero() && now.Sub(g.again) >= c.path.trip*3/4
	switch {
	case c.holes.any() || c.acked == c.sent:
		*g = hole{}
	case g.since.IsZero():
		if plain && !news && c.path.trip > 0 {
			*g, c.recover = hole{since: now}, c.sent
		}
	case news && answer && int32(c.acked-c.recover) < 0:
		*g = hole{since: now.Add(-c.path.trip)}
	case news:
		*g = hole{}
	}
}

// isMissing reports whether bytes are missing that the link, rather than gVisor, sends again.
func (c *longPath) isMissing() bool { return c.hides || !c.front.since.IsZero() }

// repair returns packets with lost bytes, about n bytes at most. If c.held, the list of sent segments, lacks some bytes of a hole,
// the link no longer hides the holes from gVisor.
func (c *longPath) repair(now time.Time, n int64) (ps []*stack.PacketBuffer) {
	if g := &c.front; !g.since.IsZero() && g.lost(now, c.path.trip, false) {
		n := min(uint32(c.segment()), c.sent-c.acked)
		ps, _ = c.held.again(ps, c.acked, c.acked+n, &c.header)
		if g.again.IsZero() {
			c.path.lose(int64(n))
		}
		g.again = now
	}
	if !c.hides {
		return ps
	}
	reordered := reorderedSegments * int(c.segment())
	if c.holes.end == c.sent {
		reordered = 0 // no later bytes are in flight that could arrive
	}
	c.holes.lost(now, c.path.trip, reordered, n, func(g *hole) bool {
		if ps, c.hides = c.held.again(ps, g.from, g.to, &c.header); !c.hides {
			return false
		}
		if g.again.IsZero() {
			c.path.lose(int64(g.to - g.from))
		}
		g.again = now
		return true
	})
	return ps
}

// arm starts the timer if it is not running. When the timer expires, the method expire sends lost bytes again, because hear does so
// only when an acknowledgement arrives. news says that an acknowledgement of new bytes has arrived. Until the next acknowledgement
// of new bytes, each run of the timer is twice as long as the run before.
func (c *longPath) arm(news bool) {
	if news || c.wait == 0 {
		c.wait = c.path.trip * 3 / 2
	}
	if c.armed {
		return
	}
	c.armed = true
	if c.timer == nil {
		c.timer = time.AfterFunc(c.wait, c.expire)
	} else {
		c.timer.Reset(c.wait)
	}
}

func (c *longPath) expire() {
	c.mu.Lock()
	c.armed = false
	var again []*stack.PacketBuffer
	if c.isMissing() {
		again = c.repair(time.Now(), c.segment())
	}
	c.mu.Unlock()
	if !c.link.sendAgain(again) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isMissing() {
		c.wait *= 2
		c.arm(false)
	}
}

// close drops all packets that c holds. From then on, the link sends nothing again for this connection.
func (c *longPath) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held.clear()
	c.closed, c.hides, c.front = true, false, hole{}
	if c.timer != nil {
		c.timer.Stop()
	}
}

// optionHeader is how many bytes the fields kind and length of a TCP option have together.
const optionHeader = 2

// selectiveOption returns the SACK option of the TCP header tcp, or nil.
func selectiveOption(tcp []byte) []byte {
	for o := tcp[header.TCPMinimumSize:]; len(o) >= optionHeader; {
		n := int(o[1])
		switch {
		case o[0] == header.TCPOptionNOP:
			n = 1
		case o[0] == header.TCPOptionEOL || n < optionHeader || n > len(o):
			return nil
		case o[0] == header.TCPOptionSACK:
			return o[:n]
		}
		o = o[n:]
	}
	return nil
}

// setReno makes gVisor use the congestion control Reno for a connection that has a longPath. The congestion window restarts at
// its initial size, with slow start. The default, CUBIC, would end slow start when acknowledgements arrive late (HyStart),
// although the window of a longPath already limits slow start. If the handshake took as long as on a long path, the connection
// gets Reno when it is made. Otherwise it gets Reno after its first round trip, if that was long. On a short path, the connection
// keeps CUBIC, because CUBIC ends slow start early and so keeps queues short. But a short path may seem long at first, for
// example because the TCP handshake waited for the WireGuard handshake. Such a connection keeps Reno even after its longPath has
// ended. Nothing changes Reno back to CUBIC: if that happened while gVisor recovers losses, CUBIC's window would overflow at the
// end of the recovery, and the connection would stop.
func setReno(ep tcpip.Endpoint) {
	reno := tcpip.CongestionControlOption("reno")
	_ = ep.SetSockOpt(&reno)
}

// revive calls setReno on another goroutine, because setReno waits for the endpoint's lock.
func (l *link) revive(ep tcpip.Endpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.running.Go(func() { setReno(ep) })
	}
}
