package netstack

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Suppose that bulk data flows in both directions of one TCP connection, and that one end, A, drops the acknowledgements of the
// other end, B, while A's receive window is closed. A's own data then stays unacknowledged, so the program at A cannot write. If
// that program reads only after its write, as an echo server does, A's window never opens again. Then A and B wait for each other
// forever.
//
// gVisor drops these acknowledgements because their sequence number lies beyond its window. A peer may send beyond the window for
// two reasons:
//
//   - gVisor announces its window in units of 1<<scale bytes, rounded down, counted from the byte that it acknowledges. So the
//     announced right edge of the window sometimes moves back by less than a unit. gVisor accepts segments up to the right edge
//     that it announced last (rcv.go, acceptable), although the peer may have sent up to an earlier edge that was farther right.
//   - The peer's own stack takes the window of an old, reordered acknowledgement for the present window, as gVisor would do without
//     the type heard. The peer then sends more than the present window allows. Some other stacks probe a closed window with a byte
//     of new data.
//
// Package netstack handles the first reason in outbound and lowerSYN. It handles the second reason with a table of closed windows
// for each direction. This is safe for TCP:
//
//   - It never changes an acknowledgement number, and it does not create, store or delay segments. So no byte is acknowledged
//     that was not received.
//   - A smaller window than gVisor's own only makes the peer send less.
//   - It changes the sequence number only of an acknowledgement without payload, and only to the number that the receiver
//     expects while its window is closed. Such a segment occupies no sequence space, so no byte of the stream moves.
//     RFC 9293, section 3.10.7.4: "If the RCV.WND is zero, no segments will be acceptable, but special allowance should be
//     made to accept valid ACKs". The receiver checks that the acknowledgement number is valid, as always.
//
// The type windows also corrects the windows that peers announce, and recovers losses on long paths; see heard and longPath. It
// must not be copied.
type windows struct {
	own  closedWindows // windows that this end closed, with the number that it acknowledged then, its RCV.NXT
	peer closedWindows // windows that a peer closed, with the number that the peer acknowledged then

	heard heardConns
	full  int // how many bytes of payload a full segment has; see setMTU
}

// setMTU sets the size of the largest packet of this end, in bytes.
func (w *windows) setMTU(mtu int) { w.full = mtu - header.IPv4MinimumSize - header.TCPMinimumSize }

// outbound lowers the window in a segment that is about to be sent, and records whether the window is closed. h contains the
// headers of the segment. The IP header is l3 bytes long. bare says that the segment has no payload. The caller computes the
// checksum afterwards.
//
// If the peer's window is closed, the peer accepts an acknowledgement without payload only with the sequence number that it
// expects next. If this end has sent bytes beyond that number, outbound writes the expected number to the header, because the
// peer's stack may have dropped these bytes.
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

// inbound records whether the received TCP segment p closes the peer's window. The headers of p must be whole. The IP header is
// l3 bytes long; both headers together are l4 bytes long.
//
// If this end's window is closed, gVisor accepts an acknowledgement without payload only with the sequence number that it expects
// next. If p is such an acknowledgement with a number beyond that, inbound writes the expected number to the header. The sequence
// number of such a segment decides three things: whether gVisor accepts the segment, whether the segment's window counts (gVisor
// uses it in any case), and whether gVisor echoes the segment's timestamp. gVisor may thus echo a newer timestamp than RFC 7323,
// section 4.3, allows: the RFC excludes segments beyond a gap. If gVisor receives more data before it handles the segment, the
// sequence number that inbound wrote is out of date. gVisor then drops the segment and answers with an acknowledgement without
// payload, which renews the connection's entry in w.own.
//
// The caller has already verified the checksum of p. After a change of the header, the checksum is wrong, but nothing reads it
// again.
//
// If p is an acknowledgement for a connection that has a longPath, inbound returns the verdict of the longPath.
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

// forget removes the entries of a connection that ends or begins.
func (w *windows) forget(f flow) {
	w.own.forget(f)
	w.peer.forget(f)
}

// If p is a SYN, lowerSYN lowers its window by one unit and updates the checksum. p is any packet of this end that gVisor has not
// marked for segmentation. outbound lowers the window of all other segments of a connection.
//
// Let u be the unit. Let E1 and E2 be the exact right edges, without rounding, that gVisor counts when it sends two segments, one
// after the other. gVisor never moves its exact edge back, so E2 is at least E1. With the lowered window, the first segment
// announces at most E1-u to the peer. After the second segment, gVisor accepts bytes up to the edge that results from rounding E2
// down, and that edge is beyond E2-u. So rounding never makes gVisor drop bytes that it allowed the peer to send.
//
// The window field of a SYN counts bytes. The unit results from the scale that the SYN announces. Without a scale, gVisor does
// not round.
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

// A flow identifies a TCP connection: this end's address, the peer's address, this end's port and the peer's port.
type flow [16 + 16 + 2 + 2]byte

// flowOf returns the connection to which the packet p belongs.
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

// closedWindows stores a sequence number for each connection whose window is closed. Its table has entries for 4,096 connections
// and takes 32 KiB, which it allocates when the first window closes. A hash of the connection selects a set of closedWays entries,
// one of which the connection may use. The hash has a secret seed, so a peer cannot choose connections that overwrite the entry of
// a certain other connection.
//
// If all entries of a set are in use, a new entry replaces one of them. Acknowledgements of the connection that loses its entry are
// then not corrected until that connection sends its next segment, which renews the entry. The peer sends the acknowledgement that
// needs the correction in answer to such a segment. So a connection makes progress if its entry survives for one round trip, even
// if a peer keeps any number of windows closed.
//
// closedWindows needs no lock, because an entry is one word. The zero value is ready.
type closedWindows struct {
	used  atomic.Int32 // how many entries of table are in use
	table atomic.Pointer[[closedSets][closedWays]atomic.Uint64]
}

// flowSeed is the secret seed of the hash of connections.
var flowSeed = maphash.MakeSeed()

// none reports whether no window is closed.
func (c *closedWindows) none() bool { return c.used.Load() == 0 }

// find returns the connection's set, which is nil before the first call of close, and the connection's tag, which is not 0. An
// entry has the tag in its upper half and the sequence number in its lower half. A free entry is 0.
func (c *closedWindows) find(f *flow) (set *[closedWays]atomic.Uint64, tag uint32) {
	h := maphash.Bytes(flowSeed, f[:])
	if t := c.table.Load(); t != nil {
		set = &t[h%closedSets]
	}
	return set, uint32(h>>32) | 1
}

// close records that a segment closed the window of f and acknowledged the number n. It does nothing if the entry is from a newer
// segment.
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

// open removes the entry of f, because a segment with an open window acknowledged the number n. It does nothing if the entry is
// from a newer segment.
func (c *closedWindows) open(f flow, n uint32) {
	c.remove(&f, func(noted uint32) bool { return int32(n-noted) >= 0 })
}

// forget removes the entry of f.
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

// clip lowers the sequence number in seq to the number in the entry of f, if f has an entry and the sequence number is beyond
// that number.
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
