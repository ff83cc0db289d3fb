package netstack

import (
	"encoding/binary"
	"hash/maphash"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// gVisor takes the window of each acknowledgement for the present one, and counts it from the last byte that was acknowledged
// (snd.go, handleRcvdSegment). That stops connections for good in two ways:
//
//   - An old, reordered acknowledgement announces more than the peer has room for. What gVisor then sends is dropped, and so are
//     its acknowledgements, which now lie beyond the peer's window.
//   - The first lost segment does not fit into the window. gVisor sends a segment again only if all of it fits, or as much of it as
//     a full segment has. Otherwise gVisor sends nothing and sets no timer (maybeSendSegment): it waits for an acknowledgement, and
//     the peer waits for the segment. A window becomes smaller than what was sent because the peer rounds it.
//
// So an old acknowledgement gets the window of the newest one, and a small window is raised to what was sent, at most to a full
// segment. This is safe for TCP: by RFC 9293, section 3.10.7.4, only new acknowledgements change the window ("The check here
// prevents using old segments to update the window"). And by section 3.8.6, a sender may send again what it has sent, even beyond
// the right edge of a window that shrank. A window of 0 stays as it is, because gVisor probes it.
//
// An acknowledgement of bytes that were never sent changes nothing here. Otherwise anybody behind the same peer could stop a
// connection with one forged segment, whose window all real acknowledgements would get from then on.

// A heard is what a connection sent and heard of its peer. Its portion holds it.
type heard struct {
	flow  flow
	scale uint8         // of the peer's windows; see heardConns.syn
	sent  atomic.Uint64 // the number after the last byte that was sent, with a 1 in bit 32; 0 if nothing was sent
	first atomic.Uint32 // the number of the first byte that was sent; written before sent
	acked atomic.Uint32 // what this end acknowledged last; written before sent
	last  atomic.Uint64 // the newest acknowledgement, its window in bits 32 to 47, a 1 in bit 48; 0 if there is none

	ep   tcpip.Endpoint           // nil if the peer does not know selective acknowledgements
	reno bool                     // gVisor has used Reno since the connection was made
	long atomic.Pointer[longPath] // nil before the first byte is sent, and once the path is known to be short
}

const (
	// smallWindow is a window as a header announces it, without its scale. With the usual scales, which are 4 or more, it is more
	// than a full segment.
	smallWindow = 128

	maxScales    = 1024
	maxScale     = 14 // RFC 7323, section 2.3
	unknownScale = 15 // windows are not raised
	scaleBits    = 4
)

// send notes that the bytes from the number first to the one before n are sent. Its calls for one connection do not overlap.
func (h *heard) send(first, n uint32) {
	old := h.sent.Load()
	if old == 0 {
		h.first.Store(first)
	}
	if old == 0 || int32(n-uint32(old)) > 0 {
		h.sent.Store(1<<32 | uint64(n))
	}
}

// hear notes a received acknowledgement, and corrects its window. payload is how many bytes the segment carries, and bare says that
// it is nothing but an acknowledgement. full is how many bytes a full segment has.
func (h *heard) hear(tcp []byte, payload int, bare bool, full int) (v verdict) {
	ack, window := binary.BigEndian.Uint32(tcp[tcpAck:]), binary.BigEndian.Uint16(tcp[tcpWindow:])
	sent := h.sent.Load()
	ahead := int(int32(uint32(sent) - ack)) // bytes that were sent after those that are acknowledged
	if sent == 0 || ahead < -1 {            // the end of a connection, FIN, counts as a byte
		return v
	}
	at := int32(binary.BigEndian.Uint32(tcp[tcpSeq:]) - h.acked.Load())
	if at > maxWindow || at < 0 && at+int32(payload) <= 0 {
		return v // gVisor does not accept it; see header.Acceptable
	}
	for {
		old := h.last.Load()
		if old != 0 && int32(ack-uint32(old)) < 0 {
			window = uint16(old >> 32)
			break
		}
		if h.last.CompareAndSwap(old, 1<<48|uint64(window)<<32|uint64(ack)) {
			break
		}
	}
	if c := h.long.Load(); c != nil {
		v = c.hear(tcp, window, h.scale, bare)
		switch {
		case v.short:
			h.endLong()
		case v.revive, v.long && !h.reno:
			c.link.revive(h.ep)
		}
		window = binary.BigEndian.Uint16(tcp[tcpWindow:])
	}
	if 0 < window && window < smallWindow && h.scale <= maxScale {
		units := (min(ahead, full) + 1<<h.scale - 1) >> h.scale
		window = max(window, uint16(min(max(units, 0), 65535)))
	}
	binary.BigEndian.PutUint16(tcp[tcpWindow:], window)
	return v
}

// endLong ends the longPath, if there is one. gVisor then controls congestion and recovers losses.
func (h *heard) endLong() {
	if c := h.long.Swap(nil); c != nil {
		c.close()
	}
}

// noteSegment is called with a segment p that a connection is about to send. It notes how far the connection has sent, and whether
// the connection holds out-of-order segments. It reports whether sending p is needless. The connection's lock is held, so calls for
// one connection do not overlap.
func (l *link) noteSegment(p *stack.PacketBuffer) (needless bool) {
	s, ok := p.Owner.(*portion)
	if !ok {
		return false
	}
	tcp := p.TransportHeader().Slice()
	if len(tcp) < header.TCPMinimumSize {
		return false
	}
	needless = s.heard.note(l, p, tcp, s.sendLimit)
	const timestamps = 12 // bytes of that option, with two bytes of padding in front
	options := tcp[header.TCPMinimumSize:]
	holes := len(options) > timestamps || len(options) == timestamps && options[2] != header.TCPOptionTS
	if s.holes.Load() != holes {
		s.holes.Store(holes)
	}
	if s.recv.was.Load() > 0 {
		if !holes {
			s.recv.was.Store(0)
		}
		s.applyRecv()
	}
	return needless
}

// note notes that the connection sends p, whose header is tcp. l sends the bytes in p again if they are lost on a long path. note
// reports whether sending p is needless. room returns how many bytes the connection's send buffer may hold.
func (h *heard) note(l *link, p *stack.PacketBuffer, tcp []byte, room func() int64) (needless bool) {
	n := uint32(p.Data().Size())
	seq := binary.BigEndian.Uint32(tcp[tcpSeq:])
	flags := header.TCPFlags(tcp[tcpFlags])
	ack := binary.BigEndian.Uint32(tcp[tcpAck:])
	acks := flags.Intersects(header.TCPFlagAck) && h.acked.Swap(ack) != ack
	if n > 0 {
		if h.sent.Load() == 0 && h.ep != nil && h.scale <= maxScale {
			h.long.Store(newLongPath(l, seq))
		}
		h.send(seq, seq+n)
	}
	c := h.long.Load()
	if c == nil || flags.Intersects(header.TCPFlagRst) {
		return false
	}
	needless, deaf := c.send(p, seq, seq+n, room())
	if deaf {
		h.endLong()
	}
	return needless && !acks // gVisor would not send that acknowledgement again
}

// isDeaf reports whether more is in flight, as far as the link knows, than the send buffer holds. See longPath.send.
func (h *heard) isDeaf(holds int64) bool {
	c := h.long.Load()
	return c != nil && c.isDeaf(holds)
}

// heardConns finds the heard of a connection. The zero value is ready.
type heardConns struct {
	mu    sync.RWMutex // guards conns; taken last
	conns map[flow]*heard
	found [1024]atomic.Pointer[heard] // those that were found last, by their ports

	// scales holds the scales of the SYNs that arrived lately, until a connection is made of them. gVisor does not report them. A
	// secret hash chooses the place of each scale, and a SYN overwrites what is there. So a flood of SYNs may leave a connection
	// without a scale.
	scales [maxScales]atomic.Uint32

	// syns holds the numbers of the SYNs that were sent lately, in the same way. If a flood of SYNs overwrites a number, no ICMP
	// error can end its handshake, which then lasts until it times out.
	syns [maxScales]atomic.Uint64
}

// scaleOf returns where the scale of f is noted, and the tag of f, which stands above it.
func (c *heardConns) scaleOf(f *flow) (at *atomic.Uint32, tag uint32) {
	h := maphash.Bytes(flowSeed, f[:])
	return &c.scales[h%uint64(len(c.scales))], uint32(h>>32)>>scaleBits | 1
}

// syn notes the scale in tcp, the header of a SYN for the connection f. A SYN without one means that windows are not scaled.
func (c *heardConns) syn(f flow, tcp []byte) {
	c.noteScale(&f, max(header.ParseSynOptions(tcp[header.TCPMinimumSize:], false).WS, 0))
}

func (c *heardConns) noteScale(f *flow, scale int) {
	at, tag := c.scaleOf(f)
	at.Store(tag<<scaleBits | uint32(min(scale, maxScale)))
}

// add adds the connection f.
func (c *heardConns) add(h *heard, f flow) {
	at, tag := c.scaleOf(&f)
	h.flow, h.scale = f, unknownScale
	if noted := at.Load(); noted>>scaleBits == tag {
		h.scale = uint8(noted & (1<<scaleBits - 1))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns == nil {
		c.conns = make(map[flow]*heard)
	}
	if old := c.conns[f]; old != nil { // its peer has reset it and connects again, but the program has not closed it yet
		old.endLong()
	}
	c.conns[f] = h
	c.place(&f).Store(h)
}

// remove removes h, if it is there.
func (c *heardConns) remove(h *heard) {
	h.endLong()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns[h.flow] == h {
		delete(c.conns, h.flow)
	}
	c.place(&h.flow).CompareAndSwap(h, nil)
}

// place returns where f is among found.
func (c *heardConns) place(f *flow) *atomic.Pointer[heard] {
	ports := binary.BigEndian.Uint32(f[32:])
	return &c.found[ports*0x9e3779b1>>22]
}

// of returns the heard of the connection f, or nil.
func (c *heardConns) of(f flow) *heard {
	at := c.place(&f)
	if h := at.Load(); h != nil && h.flow == f {
		return h
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	h := c.conns[f]
	if h != nil {
		at.Store(h) // with mu held, so that remove comes after it
	}
	return h
}
