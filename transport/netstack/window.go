package netstack

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Bulk data in both directions of one TCP connection stops for good if an end whose receive window is closed drops the
// other end's acknowledgements. Its own data then stays unacknowledged, so its program cannot write. A program that
// reads only after its write, such as an echo server, does not open the window again. The two ends wait for each other
// forever.
//
// gVisor drops these acknowledgements because their sequence number lies beyond its window. A peer gets beyond the window
// for two reasons:
//
//   - gVisor announces its window in units of 1<<scale bytes, rounded down, from whatever byte it acknowledges. So the
//     announced right edge sometimes moves back by less than a unit. gVisor accepts segments up to the latest edge (rcv.go,
//     acceptable), although the peer may have filled up to an earlier one.
//   - The peer's own stack takes the window of an old, reordered acknowledgement for the present one, as gVisor does without heard.
//     The peer then sends more than the window allows. Some other stacks probe a closed window with a byte of new data.
//
// Package netstack handles the first reason in outbound and lowerSYN, and the second one with a table of closed windows in
// each direction. This is safe for TCP:
//
//   - It never makes an acknowledgement newer, because it never changes an acknowledgement number. It makes, keeps and
//     delays no segment. So nothing is acknowledged that was not received.
//   - A smaller window than gVisor's own only makes the peer send less.
//   - It changes the sequence number only of an acknowledgement without payload, and only to the number that the receiver
//     expects while its window is closed. Such a segment occupies no sequence space, so no byte of the stream moves.
//     RFC 9293, section 3.10.7.4: "If the RCV.WND is zero, no segments will be acceptable, but special allowance should be
//     made to accept valid ACKs". The receiver checks that the acknowledgement number is valid, as always.
//
// windows also corrects the windows that peers announce, and recovers losses on long paths; see heard and longPath. It must not be
// copied.
type windows struct {
	own  closedWindows // windows that this end closed; the value is the number that it acknowledged then, its RCV.NXT
	peer closedWindows // windows that a peer closed; the value is the number that the peer acknowledged then

	heard heardConns
	full  int // the most bytes of a segment; see setMTU
}

// setMTU says how large the packets of this end are.
func (w *windows) setMTU(mtu int) { w.full = mtu - header.IPv4MinimumSize - header.TCPMinimumSize }

// outbound lowers the window of a connection's segment and notes whether it is closed. h holds the headers of the segment,
// which is about to be sent. The IP header is l3 bytes long. bare says that the segment has no payload. The caller
// computes the checksum afterwards.
//
// If the peer's window is closed, the peer accepts a bare acknowledgement only with the sequence number that it expects.
// outbound puts that number in if this end has sent more. The peer's stack may have dropped what exceeds its window.
func (w *windows) outbound(h []byte, l3 int, bare bool) {
	tcp := h[l3:]
	window, flags := binary.BigEndian.Uint16(tcp[tcpWindow:]), header.TCPFlags(tcp[tcpFlags])
	if window > 0 {
		window-- // see lowerSYN
		binary.BigEndian.PutUint16(tcp[tcpWindow:], window)
	}
	if window > 0 && w.own.none() && w.peer.none() {
		return
	}
	f := flowOf(h, l3, false)
	switch {
	case flags.Intersects(header.TCPFlagRst):
		w.forget(f)
		return
	case window == 0:
		w.own.close(f, binary.BigEndian.Uint32(tcp[tcpAck:]))
	default:
		w.own.open(f, binary.BigEndian.Uint32(tcp[tcpAck:]))
	}
	if bare && flags == header.TCPFlagAck {
		w.peer.clip(f, tcp[tcpSeq:])
	}
}

// inbound notes whether the window of the peer is closed in the TCP segment p, whose headers are whole. The IP header is
// l3 bytes long, both headers together are l4 bytes long.
//
// If this end's window is closed, gVisor accepts a bare acknowledgement only with the sequence number that it expects.
// inbound puts that number in if the peer has sent more. The sequence number of a segment without payload and flags decides
// three things: whether gVisor accepts the segment, whether its window counts (gVisor takes it in any case), and whether
// gVisor echoes its timestamp. The echoed timestamp may be newer than in RFC 7323, section 4.3, which excludes segments
// beyond a gap. If gVisor receives more data before it handles the segment, the sequence number that inbound put in is out of
// date. gVisor then drops the segment and answers with a bare acknowledgement, which renews the connection's entry in w.own.
//
// The checksum of p, which the caller has checked, is then wrong. Nothing reads it again.
//
// If p is an acknowledgement, the verdict is that of its connection's longPath.
func (w *windows) inbound(p []byte, l3, l4 int) (v verdict) {
	tcp := p[l3:l4]
	window, flags := binary.BigEndian.Uint16(tcp[tcpWindow:]), header.TCPFlags(tcp[tcpFlags])
	if !flags.Intersects(header.TCPFlagAck | header.TCPFlagRst | header.TCPFlagSyn) {
		return v
	}
	f := flowOf(p, l3, true)
	if flags.Intersects(header.TCPFlagSyn) {
		w.heard.syn(f, tcp)
	} else if h := w.heard.of(f); h != nil && flags&(header.TCPFlagAck|header.TCPFlagRst) == header.TCPFlagAck {
		v = h.hear(tcp, len(p)-l4, l4 == len(p) && flags == header.TCPFlagAck, w.full)
		window = binary.BigEndian.Uint16(tcp[tcpWindow:])
	}
	switch {
	case window > 0 && w.own.none() && w.peer.none():
		return v
	case flags.Intersects(header.TCPFlagRst | header.TCPFlagSyn):
		w.forget(f)
		return v
	case window == 0:
		w.peer.close(f, binary.BigEndian.Uint32(tcp[tcpAck:]))
	default:
		w.peer.open(f, binary.BigEndian.Uint32(tcp[tcpAck:]))
	}
	if l4 == len(p) && !flags.Intersects(header.TCPFlagFin) {
		w.own.clip(f, tcp[tcpSeq:])
	}
	return v
}

// forget drops what is known of a connection that ends or begins.
func (w *windows) forget(f flow) {
	w.own.forget(f)
	w.peer.forget(f)
}

// lowerSYN takes one unit off the window of a SYN and keeps its checksum right. outbound does the same for all other segments
// of a connection. p is any packet that gVisor made whole.
//
// Let u be the unit, and E1 and E2 the right edges that gVisor counts, without rounding, when it sends two segments. gVisor
// never moves its edge back, so E2 is at least E1. The first segment tells the peer at most E1-u. When gVisor sends the
// second one, it accepts what lies before E2 rounded down, which is beyond E2-u. So rounding never makes gVisor drop what
// the peer was allowed to send.
//
// The window of a SYN counts bytes, and the scale that the SYN announces gives the unit. Without a scale, nothing is
// rounded.
func lowerSYN(p []byte) {
	l3, l4, ok := tcpHeaders(p)
	if !ok || p[0]>>4 == 4 && isFragment4(p) || !header.TCPFlags(p[l3+tcpFlags]).Intersects(header.TCPFlagSyn) {
		return
	}
	tcp := p[l3:l4]
	scale := header.ParseSynOptions(tcp[header.TCPMinimumSize:], false).WS
	if scale <= 0 {
		return
	}
	window := binary.BigEndian.Uint16(tcp[tcpWindow:])
	lowered := uint16(max(int(window)-1<<scale, 0))
	put16(tcp[tcpWindow:], tcp[tcpChecksum:], lowered)
}

// put16 writes v to field and keeps the checksum sum of the header right. RFC 1624, section 3: "HC' = ~(~HC + ~m + m')".
func put16(field, sum []byte, v uint16) {
	was := binary.BigEndian.Uint16(field)
	binary.BigEndian.PutUint16(field, v)
	binary.BigEndian.PutUint16(sum, ^packet.Add(packet.Add(^binary.BigEndian.Uint16(sum), ^was), v))
}

// A flow is a TCP connection: this end's address and the peer's, then this end's port and the peer's.
type flow [16 + 16 + 2 + 2]byte

// flowOf returns the connection of the packet p.
func flowOf(p []byte, l3 int, inbound bool) (f flow) {
	at, n := ip4Addresses, 4
	if p[0]>>4 == 6 {
		at, n = ip6Addresses, 16
	}
	own, peer := p[at:at+n], p[at+n:at+2*n]
	ownPort, peerPort := p[l3:l3+2], p[l3+2:l3+4]
	if inbound {
		own, peer, ownPort, peerPort = peer, own, peerPort, ownPort
	}
	copy(f[:], own)
	copy(f[16:], peer)
	copy(f[32:], ownPort)
	copy(f[34:], peerPort)
	return f
}

// flowBetween returns the connection from own to peer.
func flowBetween(own, peer netip.AddrPort) (f flow) {
	copy(f[:], own.Addr().AsSlice())
	copy(f[16:], peer.Addr().AsSlice())
	binary.BigEndian.PutUint16(f[32:], own.Port())
	binary.BigEndian.PutUint16(f[34:], peer.Port())
	return f
}

const (
	closedSets = 1024
	closedWays = 4
)

// closedWindows holds a number for each connection whose window is closed. It has room for 4,096 connections in 32 KiB,
// which it allocates when the first window closes. The hash of a connection is secret, so a peer cannot aim at the entry
// of another one.
//
// If a set is full, a new connection replaces another one. Nothing then corrects the acknowledgements of the other one
// until its next segment is sent, which renews the entry. The acknowledgement that needs the entry answers such a
// segment. So a connection gets through if its entry outlives one round trip, even if a peer keeps any number of
// windows closed.
//
// It takes no lock: an entry is one word. The zero value is ready.
type closedWindows struct {
	used  atomic.Int32 // entries in table
	table atomic.Pointer[[closedSets][closedWays]atomic.Uint64]
}

// flowSeed keys the hash of connections.
var flowSeed = maphash.MakeSeed()

// none reports whether no window is closed.
func (c *closedWindows) none() bool { return c.used.Load() == 0 }

// find returns the set of a connection, nil before the first close, and the connection's tag. An entry is a tag, which is
// not 0, in the upper half of the word, and a number in the lower half. 0 is a free entry.
func (c *closedWindows) find(f *flow) (set *[closedWays]atomic.Uint64, tag uint32) {
	h := maphash.Bytes(flowSeed, f[:])
	if t := c.table.Load(); t != nil {
		set = &t[h%closedSets]
	}
	return set, uint32(h>>32) | 1
}

// close notes that a segment closed the window of f and acknowledged n. An older segment than the one that is noted
// changes nothing.
func (c *closedWindows) close(f flow, n uint32) {
	if c.table.Load() == nil {
		c.table.CompareAndSwap(nil, new([closedSets][closedWays]atomic.Uint64))
	}
	set, tag := c.find(&f)
	entry, victim := uint64(tag)<<32|uint64(n), &set[n%closedWays]
	for i := range set {
		e := &set[i]
		for old := e.Load(); uint32(old>>32) == tag; old = e.Load() {
			if int32(n-uint32(old)) <= 0 || e.CompareAndSwap(old, entry) {
				return
			}
		}
		if e.Load() == 0 {
			victim = e
		}
	}
	if victim.Swap(entry) == 0 {
		c.used.Add(1)
	}
}

// open notes that a segment with an open window acknowledged n. An older segment than the one that is noted changes
// nothing.
func (c *closedWindows) open(f flow, n uint32) {
	c.remove(&f, func(noted uint32) bool { return int32(n-noted) >= 0 })
}

// forget drops the entry of f.
func (c *closedWindows) forget(f flow) { c.remove(&f, func(uint32) bool { return true }) }

func (c *closedWindows) remove(f *flow, old func(noted uint32) bool) {
	if c.none() {
		return
	}
	set, tag := c.find(f)
	for i := range set {
		e := &set[i]
		for v := e.Load(); uint32(v>>32) == tag && old(uint32(v)); v = e.Load() {
			if e.CompareAndSwap(v, 0) {
				c.used.Add(-1)
			}
		}
	}
}

// clip writes the number of f to seq, if the window of f is closed and seq is beyond that number.
func (c *closedWindows) clip(f flow, seq []byte) {
	if c.none() {
		return
	}
	set, tag := c.find(&f)
	for i := range set {
		if v := set[i].Load(); uint32(v>>32) == tag {
			if n := uint32(v); int32(binary.BigEndian.Uint32(seq)-n) > 0 {
				binary.BigEndian.PutUint32(seq, n)
			}
			return
		}
	}
}
