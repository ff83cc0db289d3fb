package netstack

import (
	"encoding/binary"
	"math"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A longPath replaces gVisor's congestion control and loss recovery for a connection whose round trips take shortestTrip at least.
// There, gVisor's own fill little of the path:
//
//   - Slow start ends when a queue on the path overflows. By then gVisor has sent far more than the path and the queue hold. It loses
//     hundreds of segments at once, and some of those that it sends again. It waits until a timeout for the segments that were lost
//     twice, and then sends everything again. Meanwhile it walks through all that is in flight at each acknowledgement (SetPipe),
//     which may take seconds of a core.
//   - Each loss takes 3/10 off the congestion window. One loss in a thousand segments leaves a few per cent of a fast path.
//
// So the link finds out what is missing (holes.go) and sends it again (again.go). It bounds what is in flight by what the path
// delivers (capacity.go): it lowers the window of each acknowledgement. It hides from gVisor what would make gVisor send less:
// selective acknowledgements, and repeated ones. gVisor's congestion window then grows without end, and the lowered window takes its
// place. gVisor's timeout stays as it is: if the link does not get a segment through, gVisor sends it again. It begins with slow
// start then, which soon would end; see revive.
//
// This is safe for TCP. The peer sees a sender that uses selective acknowledgements. The link never changes an acknowledgement
// number, so nothing counts as acknowledged that did not arrive, and gVisor keeps all bytes until then. The link only lowers
// windows. While something is missing, bytes that have arrived are no longer in flight, although they are not acknowledged; the
// window rises by them, but never beyond that of the peer.
//
// If the last segments are lost, no acknowledgement tells. gVisor then sends the last one again (RFC 8985, section 7), and the peer's
// answer tells what is missing. Connections without selective acknowledgements have no longPath.
type longPath struct {
	link *link

	mu sync.Mutex // guards all below; taken last

	begun  bool         // something was sent
	sent   uint32       // the number after the last byte that was sent
	acked  uint32       // the number after the last byte that was acknowledged
	total  int64        // bytes that were acknowledged
	most   int64        // the most bytes that ever counted as delivered
	probe  uint32       // a round trip ends when the byte with this number has arrived
	probed time.Time    // when it was sent; zero if no round trip is measured
	full   bool         // about as many bytes were in flight then as may be
	hides  bool         // gVisor does not see the present holes
	still  int64        // the bound when the first of the present holes appeared
	window uint16       // that gVisor saw last
	held   sentSegments // those that are not acknowledged

	segment int           // how many bytes a full segment has
	timer   *time.Timer   // sends again what is missing; nil until something is
	armed   bool          // the timer runs
	wait    time.Duration // until it sends something again

	resent bool   // gVisor has sent something again
	upTo   uint32 // the number after the last byte that was sent then

	path  capacity
	holes holes

	// front stands for the first segment that is not acknowledged, if that seems to be missing and there are no holes. Its numbers
	// are 0, and since is zero if it does not seem so. Then everything before recover was sent.
	front   hole
	recover uint32
}

const (
	// reorderedSegments is how many segments may overtake another one (RFC 6675, DupThresh).
	reorderedSegments = 3

	// An acknowledgement lets this many segments be sent again at least, and this many times as many bytes as it says have arrived.
	// So what a path lost during an interruption is not sent again all at once.
	burstSegments = 10
	burstTimes    = 2

	// leastBulk is how many bytes must have been acknowledged until gVisor's congestion window counts as large.
	leastBulk = 64 << 10
)

// send notes that p is sent, with the bytes from the number seq to the one before end. It reports false if the connection should
// have no longPath from now on. Calls for one connection do not overlap.
func (c *longPath) send(p *stack.PacketBuffer, seq, end uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.begun {
		c.begun, c.sent, c.acked, c.holes.end = true, seq, seq, seq
	}
	if int32(end-c.sent) <= 0 { // gVisor sends it again
		c.probed = time.Time{}
		c.resent, c.upTo = true, c.sent
		return true
	}
	if c.probed.IsZero() {
		c.probe, c.probed = c.sent, time.Now()
		c.full = 4*(int64(end-c.acked)-c.arrived()) >= 3*c.path.bound
	}
	c.sent, c.segment = end, int(p.GSOOptions.MSS)
	return c.held.add(p, seq, end)
}

// arrived returns how many bytes have arrived but are not acknowledged.
func (c *longPath) arrived() int64 { return int64(int32(c.holes.end-c.acked)) - c.holes.missing }

// A verdict says what becomes of an acknowledgement.
type verdict struct {
	again []*stack.PacketBuffer // to be sent, with their references
	drop  bool                  // gVisor must not see the acknowledgement
	short bool                  // the path is short, so the connection should have no longPath

	// gVisor's congestion window should begin anew. It is small because gVisor sent something again, and all of that has arrived. Or
	// it has grown without end, and nothing else bounds the connection from now on.
	revive bool
}

// hear takes an acknowledgement, whose header is tcp, and sets its window to at most window, in units of 1<<scale bytes. bare says
// that the segment carries nothing else.
func (c *longPath) hear(tcp []byte, window uint16, scale uint8, bare bool) (v verdict) {
	now := time.Now()
	selective := selectiveOption(tcp)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.begun {
		return v
	}
	news := c.acknowledge(binary.BigEndian.Uint32(tcp[tcpAck:]), now)
	missed, before := c.holes.any(), c.most
	c.selected(selective, now)
	c.measure(now)
	if c.path.trip > 0 && c.path.trip < shortestTrip {
		v.short, v.revive = true, c.total > leastBulk
		return v
	}
	switch {
	case !c.holes.any():
		c.hides = false
	case !missed:
		c.still, c.hides = c.path.bound, c.path.trip > 0
	}
	c.guess(news, bare && selective == nil && window > 0, now)
	if c.isMissing() {
		v.again = c.repair(now, max(int64(burstSegments*c.segment), burstTimes*(c.most-before)))
		c.arm(news)
	}
	if c.resent && int32(c.acked-c.upTo) >= 0 {
		c.resent, v.revive = false, true
	}
	window = min(window, c.limit(scale))
	if c.hides {
		v.drop = bare && !news && window == c.window && window > 0 // with a closed window, gVisor awaits answers to its probes
		for i := range selective {
			selective[i] = header.TCPOptionNOP
		}
	}
	c.window = window
	binary.BigEndian.PutUint16(tcp[tcpWindow:], window)
	return v
}

// acknowledge notes that all bytes before the number n have arrived. It reports whether that is news.
func (c *longPath) acknowledge(n uint32, now time.Time) bool {
	if int32(n-c.acked) <= 0 {
		return false
	}
	if int32(n-c.sent) > 0 {
		n = c.sent // the rest is the end of the connection
	}
	c.total += int64(n - c.acked)
	c.acked = n
	c.held.drop(n)
	c.holes.acknowledge(n, now, c.path.trip)
	return true
}

// selected notes what has arrived according to the option of a selective acknowledgement.
func (c *longPath) selected(option []byte, now time.Time) {
	for b := option; len(b) >= optionHeader+8; b = b[8:] {
		from, to := binary.BigEndian.Uint32(b[optionHeader:]), binary.BigEndian.Uint32(b[optionHeader+4:])
		if int32(from-c.acked) > 0 && int32(to-from) > 0 && int32(c.sent-to) >= 0 {
			c.holes.arrived(from, to, now, c.path.trip)
		}
	}
	c.path.lose(-c.holes.early)
	c.holes.early = 0
}

// limit returns the largest window that gVisor may see, in units of 1<<scale bytes.
func (c *longPath) limit(scale uint8) uint16 {
	bound := c.path.bound
	switch {
	case c.hides && bound > 0:
		bound += c.arrived()
	case c.holes.any():
		bound = c.still // gVisor counts a repeated acknowledgement only if its window is the same
	}
	if bound == 0 {
		return math.MaxUint16
	}
	return uint16(min(bound>>scale, math.MaxUint16))
}

// measure learns from what has arrived.
func (c *longPath) measure(now time.Time) {
	c.most = max(c.most, c.total+c.arrived())
	if !c.probed.IsZero() && int32(c.holes.end-c.probe) > 0 {
		c.path.endTrip(now.Sub(c.probed), c.most, c.full, now)
		c.probed = time.Time{}
	}
	c.path.deliver(c.most, now)
}

// guess learns from acknowledgements that are not selective. gVisor sends these when its end of the connection is closed, and ignores
// them as a sender. If the first segment in flight is still not acknowledged a round trip after such an acknowledgement came without
// news, the segment is lost. If the answer to what was sent again does not acknowledge everything, the next segment is lost too (RFC
// 6582). plain says that the acknowledgement is not selective, carries nothing else, and leaves the window open.
func (c *longPath) guess(news, plain bool, now time.Time) {
	g := &c.front
	answer := !g.again.IsZero() && now.Sub(g.again) >= c.path.trip*3/4 // to what was sent again, not to what was sent first
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

// isMissing reports whether something is missing that the link sends again.
func (c *longPath) isMissing() bool { return c.hides || !c.front.since.IsZero() }

// repair returns packets with what is lost, about n bytes at most. If that is not in held, gVisor sees what is missing from now on.
func (c *longPath) repair(now time.Time, n int64) (ps []*stack.PacketBuffer) {
	if g := &c.front; !g.since.IsZero() && g.lost(now, c.path.trip, false) {
		n := min(uint32(c.segment), c.sent-c.acked)
		ps, _ = c.held.again(ps, c.acked, c.acked+n)
		if g.again.IsZero() {
			c.path.lose(int64(n))
		}
		g.again = now
	}
	if !c.hides {
		return ps
	}
	reordered := reorderedSegments * c.segment
	if c.holes.end == c.sent {
		reordered = 0 // nothing else is on the way
	}
	c.holes.lost(now, c.path.trip, reordered, n, func(g *hole) bool {
		if ps, c.hides = c.held.again(ps, g.from, g.to); !c.hides {
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

// arm starts the timer. It sends again what was sent again and lost, if no acknowledgement comes that would make hear do so. news
// says that an acknowledgement has come; without one, the timer waits twice as long each time.
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
		again = c.repair(time.Now(), int64(c.segment))
		c.wait *= 2
		c.arm(false)
	}
	c.mu.Unlock()
	c.link.sendAgain(again)
}

// close drops all that is held.
func (c *longPath) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held.clear()
	c.hides, c.front = false, hole{}
	if c.timer != nil {
		c.timer.Stop()
	}
}

// optionHeader is the length of an option's kind and length.
const optionHeader = 2

// selectiveOption returns the option of tcp that is the selective acknowledgement, or nil.
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

// renoOption names gVisor's congestion control of connections with selective acknowledgements. Its alternative, CUBIC, ends slow start
// when acknowledgements arrive late (HyStart), although the window of a longPath bounds slow start already.
var renoOption = tcpip.CongestionControlOption("reno")

// revive lets a connection's congestion window begin anew with slow start.
func (l *link) revive(ep tcpip.Endpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.running.Go(func() { // it waits for the endpoint's lock
		reno := renoOption
		_ = ep.SetSockOpt(&reno)
	})
}
