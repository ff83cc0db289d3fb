package netstack

import (
	"encoding/binary"

	"github.com/seed-86b749af/wireguard"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Offsets of fields, from the start of their header.
const (
	ip4Length, ip4ID, ip4Fragment, ip4Protocol, ip4Checksum, ip4Addresses = 2, 4, 6, 9, 10, 12
	ip6Length, ip6Next, ip6Addresses                                      = 4, 6, 8

	tcpSeq, tcpAck, tcpOffset, tcpFlags, tcpWindow, tcpChecksum, tcpUrgent = 4, 8, 12, 13, 14, 16, 18

	udpLength, udpChecksum = 4, 6
)

const (
	protoICMP4 = uint8(header.ICMPv4ProtocolNumber)
	protoTCP   = uint8(header.TCPProtocolNumber)
	protoUDP   = uint8(header.UDPProtocolNumber)
	protoICMP6 = uint8(header.ICMPv6ProtocolNumber)

	// maxHeaders is the longest that an IP and a TCP header are together.
	maxHeaders = header.IPv4MaximumHeaderSize + header.TCPHeaderMaximumSize

	tcpFIN, tcpPSH, tcpACK, tcpCWR = 0x01, 0x08, 0x10, 0x80
)

// An exit carries packets from gVisor's memory to a device. It belongs to whoever has the link's turn. Each byte is
// copied once, to where it will be sealed and sent from, and summed while it is in the first-level cache.
type exit struct {
	to    outlet
	batch *wireguard.Batch
	drops *drops
}

// put appends p to the batch, in as many segments as it takes, and sends the batch whenever it is full.
func (x *exit) put(p *stack.PacketBuffer) {
	c := newCursor(p)
	size := p.Size()
	gso := &p.GSOOptions
	if gso.Type == stack.GSONone {
		if room := x.next(size); room != nil {
			c.read(room)
			x.batch.Commit(size)
		}
		return
	}
	var headers [maxHeaders]byte
	h := headers[:min(size, maxHeaders)]
	c.read(h)
	l3, l4, ok := tcpHeaders(h)
	if !ok || gso.MSS == 0 {
		x.drops.malformed.Add(1) // cannot be: gVisor asks this of its own TCP only
		return
	}
	c = newCursor(p)
	c.skip(l4)
	x.split(h[:l3], h[l3:l4], &c, size-l4, int(gso.MSS))
}

// split cuts n bytes of payload into segments of mss bytes, each with its own headers: ip and tcp hold those of the
// whole, and are changed. n may be 0, for a segment without payload.
func (x *exit) split(ip, tcp []byte, payload *cursor, n, mss int) {
	var (
		is4    = ip[0]>>4 == 4
		seq    = binary.BigEndian.Uint32(tcp[tcpSeq:])
		flags  = tcp[tcpFlags]
		l4     = len(ip) + len(tcp)
		pseudo = pseudoSum(ip)
		id     uint16
		ipSum  uint16 // of what all segments have in common
	)
	tcp[tcpChecksum], tcp[tcpChecksum+1] = 0, 0
	if is4 {
		id = binary.BigEndian.Uint16(ip[ip4ID:])
		clear(ip[ip4Length : ip4ID+2])
		clear(ip[ip4Checksum : ip4Checksum+2])
		ipSum = sum(ip, 0)
	}
	for at := 0; ; at += mss {
		size := min(mss, n-at)
		last := at+size == n
		room := x.next(l4 + size)
		if room == nil {
			return
		}
		if is4 {
			total := uint16(l4 + size)
			binary.BigEndian.PutUint16(ip[ip4Length:], total)
			binary.BigEndian.PutUint16(ip[ip4ID:], id)
			binary.BigEndian.PutUint16(ip[ip4Checksum:], ^checksum.Combine(checksum.Combine(ipSum, total), id))
			id++
		} else {
			binary.BigEndian.PutUint16(ip[ip6Length:], uint16(len(tcp)+size))
		}
		binary.BigEndian.PutUint32(tcp[tcpSeq:], seq+uint32(at))
		tcp[tcpFlags] = flags
		if !last {
			tcp[tcpFlags] &^= tcpFIN | tcpPSH
		}
		if at > 0 {
			tcp[tcpFlags] &^= tcpCWR
		}
		copy(room, ip)
		segment := room[len(ip):]
		copy(segment, tcp)
		payload.read(segment[len(tcp):])
		binary.BigEndian.PutUint16(segment[tcpChecksum:], ^sum(segment, checksum.Combine(pseudo, uint16(len(segment)))))
		x.batch.Commit(len(room))
		if last {
			return
		}
	}
}

// next is room for n bytes in the batch, which is sent first if it is full.
func (x *exit) next(n int) []byte {
	if room := x.batch.Next(n); room != nil {
		return room
	}
	x.flush()
	room := x.batch.Next(n)
	if room == nil {
		x.drops.malformed.Add(1) // larger than any IP packet
	}
	return room
}

// flush sends what is in the batch. An error of Send is the device's to count: it is down, or closed.
func (x *exit) flush() {
	if x.batch.Len() > 0 {
		_ = x.to.Send(x.batch)
	}
}

// tcpHeaders finds where the IP header ends and where the TCP header behind it. ok is false unless b holds both whole,
// with nothing between them.
func tcpHeaders(b []byte) (l3, l4 int, ok bool) {
	if len(b) < header.IPv4MinimumSize {
		return 0, 0, false
	}
	var proto uint8
	switch b[0] >> 4 {
	case 4:
		l3, proto = int(b[0]&15)*4, b[ip4Protocol]
	case 6:
		l3, proto = header.IPv6MinimumSize, b[ip6Next]
	}
	if l3 < header.IPv4MinimumSize || proto != protoTCP || len(b) < l3+header.TCPMinimumSize {
		return 0, 0, false
	}
	l4 = l3 + int(b[l3+tcpOffset]>>4)*4
	return l3, l4, l4 >= l3+header.TCPMinimumSize && l4 <= len(b)
}

// pseudoSum is the sum of the pseudo-header for the transport header behind ip, but for the length.
func pseudoSum(ip []byte) uint16 {
	if ip[0]>>4 == 4 {
		return sum(ip[ip4Addresses:ip4Addresses+8], uint16(ip[ip4Protocol]))
	}
	return sum(ip[ip6Addresses:ip6Addresses+32], uint16(ip[ip6Next]))
}

// A cursor reads the bytes of a packet, headers included, across the views that hold them.
type cursor struct {
	view *buffer.View
	b    []byte // unread bytes of view
}

func newCursor(p *stack.PacketBuffer) cursor {
	views, offset := p.AsViewList()
	c := cursor{view: views.Front()}
	if c.view != nil {
		c.b = c.view.AsSlice()
	}
	c.skip(offset)
	return c
}

// fill makes some bytes available and reports whether there are any.
func (c *cursor) fill() bool {
	for len(c.b) == 0 {
		if c.view == nil {
			return false
		}
		if c.view = c.view.Next(); c.view != nil {
			c.b = c.view.AsSlice()
		}
	}
	return true
}

func (c *cursor) skip(n int) {
	for n > 0 && c.fill() {
		k := min(n, len(c.b))
		c.b = c.b[k:]
		n -= k
	}
}

// read fills dst. The packet has as many bytes left.
func (c *cursor) read(dst []byte) {
	for len(dst) > 0 && c.fill() {
		k := copy(dst, c.b)
		c.b, dst = c.b[k:], dst[k:]
	}
}
