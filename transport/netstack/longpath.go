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

// A longPath replaces gVisor's congestion control and loss recovery for a connection whose round trips take shortestTrip at least.
// On such a connection, gVisor's own congestion control and loss recovery use only a small part of what the path can carry:
//
//   - Slow start ends when a queue on the path overflows. By then gVisor has sent far more than the path and the queue hold. It
//     loses hundreds of segments at once, and some of those that it sends again. It waits until a timeout for the segments that
//     were lost twice, and then sends everything again. Meanwhile it walks through all that is in flight at each acknowledgement
//     (SetPipe), which may take seconds of a core.
//   - Each loss takes 3/10 off the congestion window. One loss in a thousand segments leaves a few per cent of a fast path.
//
// So the link finds out what is missing (holes.go) and sends it again (again.go). It bounds what is in flight by what the path
// delivers (capacity.go): it lowers the window of each acknowledgement. It hides from gVisor what would make gVisor send less:
// selective acknowledgements, and repeated ones. gVisor's congestion window then grows without end, and the lowered window takes
// its place. gVisor's timeout stays as it is: if the link does not get a segment through, gVisor sends it again. It then begins
// with slow start, which would soon end; see revive.
//
// This is safe for TCP. The peer sees a sender that uses selective acknowledgements. The link never changes an acknowledgement
// number, so no byte counts as acknowledged before it has arrived, and gVisor keeps all bytes until then. The link only lowers
// windows. While something is missing, later bytes that have arrived are no longer in flight, although they are not acknowledged.
// The lowered window rises by their number, but never beyond the window that the peer announced.
//
// If the last segments are lost, no acknowledgement reveals it. gVisor then sends them again after its timeout. Connections without
// selective acknowledgements have no longPath.
type longPath struct {
	link *link

	mu sync.Mutex // guards all below; taken last

	closed  bool
	sent    uint32       // the number after the last byte that was sent
	acked   uint32       // the number after the last byte that was acknowledged
	total   int64        // bytes that were acknowledged
	probe   uint32       // the number of a byte; the measured round trip ends when this byte has arrived
	probed  time.Time    // when that byte was sent; zero if no round trip is measured
	news    time.Time    // when bytes arrived last
	ackedAt time.Time    // when bytes were acknowledged last, not only selectively
	full    bool         // when probed was set, at least three quarters of the bound was in flight
	hides   bool         // gVisor does not see the present holes
	still   int64        // the bound when the first of the present holes appeared
	window  uint16       // the window that gVisor saw last
	held    sentSegments // the segments that are not acknowledged
	header  sentHeader   // of the newest segment

	timer *time.Timer   // sends again what is missing; nil until something is
	armed bool          // the timer runs
	wait  time.Duration // how long the timer runs

	resent bool   // gVisor has sent something again, and not all bytes before upTo have arrived
	upTo   uint32 // the number after the last byte that had been sent when gVisor last sent something again
	silent bool   // nothing had arrived for a while before gVisor sent something again
	skips  bool   // bytes had arrived shortly before gVisor sent something again, so it needs to send only the first segment

	path  capacity
	holes holes

	// front stands for the first segment that is not acknowledged, if that seems to be missing and there are no holes. Its from and
	// to are not used. Its field since is zero unless that segment seems to be missing. recover is the number after the last byte
	// that had been sent when it began to seem so.
	front   hole
	recover uint32
}

const (
	// reorderedSegments is how many segments may overtake another one (RFC 6675, DupThresh).
	reorderedSegments = 3

	// After an acknowledgement, the link sends again about burstSegments segments at most, or burstTimes times the bytes that the
	// acknowledgement says have arrived, if those are more. So it does not send again all at once what a path lost during an
	// interruption.
	burstSegments = 10
	burstTimes    = 2

	// fewBytes is how many bytes may have been acknowledged at most when the link finds that a path is short. Later, gVisor's
	// congestion window would be too large to be the bound again.
	fewBytes = 64 << 10
)

// newLongPath returns the longPath of a connection that is about to send its first byte, with the number seq.
func newLongPath(l *link, seq uint32) *longPath {
	return &longPath{link: l, sent: seq, acked: seq, holes: holes{end: seq}}
}

// send notes that p is sent, with the bytes from the number seq to the one before end, if there are any. room is how many bytes the
// connection's send buffer may hold. needless says that p need not be sent. deaf says that more than room is in flight: gVisor got
// acknowledgements that the link did not see, in fragments or behind extension headers. The connection must then have no longPath,
// because the longPath would hold the packets without end. Calls for one connection do not overlap.
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
	case seq == end || int32(end-c.acked) <= 0: // nothing, or a probe of a closed window
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

// inFlight returns how many bytes were sent and are not acknowledged.
func (c *longPath) inFlight() int64 { return int64(c.sent - c.acked) }

// isDeaf reports whether more than holds bytes are in flight, which is what gVisor's send buffer holds; see send.
func (c *longPath) isDeaf(holds int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inFlight() > holds
}

// sendAgain notes that gVisor sends the bytes from seq to the one before end again: after a timeout, because gVisor sees what is
// missing, or because a packet was too big. smaller says that segments have become smaller. sendAgain reports whether sending the
// bytes again is needless.
//
// After a timeout, gVisor begins with the first segment in flight, and would send everything after it again. If bytes were still
// arriving before the timeout, only the first segment was lost, more than once. The link finds out by itself what else is missing.
// If no bytes were arriving, everything in flight may be lost. The peer may even have dropped bytes that it acknowledged
// selectively, so these count as missing from then on (RFC 2018, section 8).
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
	c.probed = time.Time{} // an acknowledgement would not tell which of the two copies it is for
	c.resent, c.upTo = true, c.sent
	return !front && (c.skips && (c.hides || !c.holes.any()) || c.hides && int32(end-c.holes.end) <= 0)
}

// isSilent reports whether no bytes have arrived since gVisor last set its timeout, or for a round trip. The gap between the
// acknowledgements of two round trips does not count as silence.
func (c *longPath) isSilent() bool {
	gap := time.Since(c.news)
	return gap >= min(c.path.trip, tcp.MinRTO) && (gap >= c.path.trip || c.news.Equal(c.ackedAt))
}

// segment returns how many bytes a full segment has.
func (c *longPath) segment() int64 { return int64(c.header.gso.MSS) }

// arrived returns how many bytes have arrived but are not acknowledged.
func (c *longPath) arrived() int64 { return int64(int32(c.holes.end-c.acked)) - c.holes.missing }

// A verdict says what becomes of an acknowledgement.
type verdict struct {
	again []*stack.PacketBuffer // to be sent, with their references
	drop  bool                  // gVisor must not see the acknowledgement
	short bool                  // the path is short, so the connection should have no longPath
	long  bool                  // the first round trip has shown that the path is long

	// gVisor's congestion window is small because gVisor has sent something again. Everything that was sent until then has arrived,
	// so the window should restart.
	revive bool
}

// hear notes a received acknowledgement, whose header is tcp, and sets its window to at most window, in units of 1<<scale bytes.
// bare says that the segment carries nothing else.
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
		v.drop = bare && !news && window == c.window && window > 0 // with a closed window, gVisor awaits answers to its probes
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
		n = c.sent // the number beyond it is that of the FIN
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
		if to == c.sent+1 {
			to = c.sent // the number beyond it is that of the FIN
		}
		if int32(from-c.acked) > 0 && int32(to-from) > 0 && int32(c.sent-to) >= 0 {
			c.holes.arrived(from, to, now, c.path.trip)
		}
	}
	c.path.lose(-c.holes.early)
	c.holes.early = 0
}

// limit returns the largest window that gVisor may see, in units of 1<<scale bytes. That window is never 0.
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
	return uint16(min((bound+1<<scale-1)>>scale, math.MaxUint16))
}

// measure learns from what has arrived. It reports false if the path is short.
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

// guess learns from acknowledgements that are not selective. A peer that uses gVisor sends these once its end of the connection is
// closed. As a sender, gVisor ignores them. An acknowledgement of this kind without news makes the first segment in flight seem to
// be missing. If the segment is still not acknowledged a round trip later, it is lost. If the answer to what was sent again does
// not acknowledge everything, the next segment is lost too (RFC 6582). plain says that the acknowledgement is not selective,
// carries nothing else, and leaves the window open.
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

// repair returns packets with what is lost, about n bytes at most. If held lacks some of the bytes of a hole, gVisor
// sees from then on what is missing.
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
		reordered = 0 // nothing else is on the way
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

// arm starts the timer, unless it runs. When the timer ends, expire sends again what is lost, in case no acknowledgement arrives
// that would make hear do so. news says that an acknowledgement of new bytes has arrived. As long as none arrives, the timer runs
// twice as long each time.
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

// close drops all that is held. Nothing is sent again from now on.
func (c *longPath) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held.clear()
	c.closed, c.hides, c.front = true, false, hole{}
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

// setReno makes gVisor use Reno for a connection that has a longPath. The congestion window restarts at its initial size, with slow
// start. The default, CUBIC, would end slow start when acknowledgements arrive late (HyStart), although the window of a longPath
// bounds slow start already. A connection gets Reno when it is made, if the handshake took as long as on a long path, or else after
// its first round trip. On a short path it keeps CUBIC, because that end of slow start keeps queues short. But a short path may seem
// long at first, for example because TCP's handshake waited for WireGuard's. Such a connection keeps Reno even after its
// longPath has ended. Nothing changes Reno back to CUBIC: if gVisor recovers losses meanwhile, the window of CUBIC overflows when
// the recovery ends, and the connection stops.
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
