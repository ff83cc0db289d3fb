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

// gVisor treats the window in each acknowledgement as the peer's present window, and counts it from the last acknowledged byte
// (snd.go, handleRcvdSegment). That stops a connection for good in two cases:
//
//   - An old acknowledgement arrives late, and announces a larger window than the peer now has. The peer then drops the data
//     that gVisor sends beyond its window. It also drops gVisor's acknowledgements, because their sequence numbers lie beyond
//     its window.
//   - The first lost segment does not fit into the window. gVisor sends a segment again only if the window has room for the whole
//     segment, or for as many bytes as a full segment carries. Otherwise gVisor sends nothing and sets no timer (maybeSendSegment):
//     gVisor waits for an acknowledgement, and the peer waits for the segment. The window can become smaller than the number of
//     bytes in flight, because the peer rounds the window to the unit of its window scale.
//
// So the link corrects the windows before gVisor reads them. An old acknowledgement gets the window of the newest one. A small
// window is raised to the number of bytes in flight, but at most to a full segment. TCP allows both. By RFC 9293, section
// 3.10.7.4, only new acknowledgements change the window ("The check here prevents using old segments to update the window"). By
// section 3.8.6, a sender may send again what it has sent, even beyond the right edge of a window that shrank. A window of 0
// stays as it is, because gVisor probes it.
//
// The link does not remember the window of an acknowledgement of bytes that were never sent. Otherwise, any host behind the same
// peer could stop a connection with one forged segment: all real acknowledgements would then get the window of the forged one.

// A heard records which bytes a connection has sent, and which acknowledgements it has received. It is a field of the connection's
// portion, which is the connection's part of the memory budget.
type heard struct {
	flow  flow
	scale uint8         // the peer's window scale; see heardConns.syn
	sent  atomic.Uint64 // the sequence number after the last byte sent, with a 1 in bit 32; 0 if nothing was sent
	first atomic.Uint32 // the sequence number of the first byte sent; written before sent
	acked atomic.Uint32 // the acknowledgement number that the connection sent last; written before sent
	last  atomic.Uint64 // the newest received acknowledgement number, its window in bits 32 to 47, a 1 in bit 48; 0 if none

	ep   tcpip.Endpoint           // the connection's endpoint; nil if the peer does not support selective acknowledgements
	reno bool                     // gVisor has used Reno since the connection was made
	long atomic.Pointer[longPath] // nil before the first byte is sent, and after endLong
}

const (
	// smallWindow is the smallest window that hear does not raise. It is in the units of a TCP header, before scaling. With the
	// usual scales of 4 and more, it is larger than a full segment.
	smallWindow = 128

	maxScales    = 1024
	maxScale     = 14 // RFC 7323, section 2.3
	unknownScale = 15 // the scale is not known, and windows are not raised
	scaleBits    = 4
)

// send notes that the connection sends the bytes with the sequence numbers [first, n). Its calls for one connection do not
// overlap.
func (h *heard) send(first, n uint32) {
	old := h.sent.Load()
	if old == 0 {
		h.first.Store(first)
	}
	if old == 0 || int32(n-uint32(old)) > 0 {
		h.sent.Store(1<<32 | uint64(n))
	}
}

// hear notes the acknowledgement in a received segment, whose TCP header is tcp, and corrects the window in that header. payload is
// the number of bytes of data in the segment. bare says that the segment is nothing but an acknowledgement. full is the size of a
// full segment in bytes.
func (h *heard) hear(tcp []byte, payload int, bare bool, full int) (v verdict) {
	ack, window := binary.BigEndian.Uint32(tcp[tcpAck:]), binary.BigEndian.Uint16(tcp[tcpWindow:])
	sent := h.sent.Load()
	ahead := int(int32(uint32(sent) - ack)) // bytes that were sent after the acknowledged ones
	if sent == 0 || ahead < -1 {            // -1: the peer acknowledges a FIN, which sent does not count
		return v
	}
	at := int32(binary.BigEndian.Uint32(tcp[tcpSeq:]) - h.acked.Load())
	if at > maxWindow || at < 0 && at+int32(payload) <= 0 {
		return v // gVisor does not accept such a segment; see header.Acceptable
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

// The link calls noteSegment with each packet p that it is about to send. If p is a segment of a connection, noteSegment notes
// which bytes the connection has sent, and whether the connection holds out-of-order segments. It reports whether sending p is
// needless. The connection's lock is held, so calls for one connection do not overlap.
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
	const timestamps = 12 // bytes of the timestamps option, with two bytes of padding in front
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

// note notes that the connection sends p, whose TCP header is tcp. On a long path, the link l sends the bytes in p again if
// they are lost. room returns how many bytes the connection's send buffer may hold. note reports whether sending p is needless.
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
	return needless && !acks // a new acknowledgement in p makes p necessary: gVisor would not repeat it
}

// isDeaf reports whether the link counts more bytes in flight than the connection's send buffer may contain. room is the size
// of this buffer in bytes. See longPath.send.
func (h *heard) isDeaf(room int64) bool {
	c := h.long.Load()
	return c != nil && c.isDeaf(room)
}

// A heardConns maps each connection to its heard. The zero value is ready.
type heardConns struct {
	mu    sync.RWMutex // guards conns; while mu is held, no other lock is taken than that of a longPath
	conns map[flow]*heard
	found [1024]atomic.Pointer[heard] // the heards that were added or found last; indexed by a hash of the connection's ports

	// scales holds the window scales of recently received SYNs, because gVisor does not report them. add reads a scale when the
	// connection is made. A secret hash of the connection chooses the element, and each SYN overwrites what is there. So after
	// a flood of SYNs, the scale of a new connection may be unknown.
	scales [maxScales]atomic.Uint32

	// syns holds the sequence numbers of the SYNs and SYN-ACKs that were sent recently. The same hash chooses the element. If a
	// flood of SYNs overwrites a number, no ICMP error can end the handshake, which then lasts until it times out.
	syns [maxScales]atomic.Uint64
}

// scaleOf returns the element of c.scales for the connection f, and the tag of f. An element has the tag of its connection in the
// bits above the scale.
func (c *heardConns) scaleOf(f *flow) (at *atomic.Uint32, tag uint32) {
	h := maphash.Bytes(flowSeed, f[:])
	return &c.scales[h%uint64(len(c.scales))], uint32(h>>32)>>scaleBits | 1
}

// syn notes the window scale in tcp, the header of a received SYN of the connection f. A SYN without a scale means that windows
// are not scaled.
func (c *heardConns) syn(f flow, tcp []byte) {
	c.noteScale(&f, max(header.ParseSynOptions(tcp[header.TCPMinimumSize:], false).WS, 0))
}

func (c *heardConns) noteScale(f *flow, scale int) {
	at, tag := c.scaleOf(f)
	at.Store(tag<<scaleBits | uint32(min(scale, maxScale)))
}

// add adds h, the heard of the connection f.
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
	if old := c.conns[f]; old != nil { // the peer has reset the old connection, but the program has not closed it yet
		old.endLong()
	}
	c.conns[f] = h
	c.place(&f).Store(h)
}

// remove ends the longPath of h and, if c still contains h, removes h.
func (c *heardConns) remove(h *heard) {
	h.endLong()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns[h.flow] == h {
		delete(c.conns, h.flow)
	}
	c.place(&h.flow).CompareAndSwap(h, nil)
}

// place returns the element of c.found for the connection f.
func (c *heardConns) place(f *flow) *atomic.Pointer[heard] {
	ports := binary.BigEndian.Uint32(f[32:])
	return &c.found[ports*0x9e3779b1>>22]
}

// of returns c's record of the connection whose flow is f, or nil if c has none.
func (c *heardConns) of(f flow) *heard {
	at := c.place(&f)
	if h := at.Load(); h != nil && h.flow == f {
		return h
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	h := c.conns[f]
	if h != nil {
		at.Store(h) // mu is held, so a concurrent remove clears the element afterwards
	}
	return h
}
