package netstack

import (
	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/packet"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// These are the offsets of fields, in bytes, from the start of the header to which they belong.
const (
	ip4ID, ip4Checksum = 4, 10

	ip4Length, ip4Fragment, ip4Protocol, ip4Addresses = packet.IP4Length, packet.IP4Fragment, packet.IP4Protocol, packet.IP4Addresses
	ip6Length, ip6Next, ip6Addresses                  = packet.IP6Length, packet.IP6Next, packet.IP6Addresses

	tcpSeq, tcpAck, tcpFlags, tcpWindow, tcpChecksum = packet.TCPSeq, packet.TCPAck, packet.TCPFlags, packet.TCPWindow, packet.TCPChecksum

	udpLength, udpChecksum = packet.UDPLength, packet.UDPChecksum
)

const (
	protoICMP4 = uint8(header.ICMPv4ProtocolNumber)
	protoTCP   = uint8(header.TCPProtocolNumber)
	protoUDP   = uint8(header.UDPProtocolNumber)
	protoICMP6 = uint8(header.ICMPv6ProtocolNumber)

	tcpACK = packet.ACK
	tcpFIN = packet.FIN
	tcpSYN = uint8(header.TCPFlagSyn)
)

// An exit copies packets from gVisor's memory to a device. Only the goroutine with the link's turn uses it. It copies each byte
// once, to the memory in which the device encrypts it and from which the device sends it. It computes the checksum of the bytes
// while they are in the first-level cache.
type exit struct {
	to      outlet
	batch   *wireguard.Batch
	drops   *drops
	windows *windows
	first   []*stack.PacketBuffer // acknowledgements to send before the next packet; the exit owns a reference to each

	template packet.Template // put and split build the headers of segments in it
}

// putFirst moves the acknowledgements from x.first to the batch.
func (x *exit) putFirst() {
	for i, p := range x.first {
		x.put(p)
		p.DecRef()
		x.first[i] = nil
	}
	x.first = x.first[:0]
}

// put cuts p into segments if necessary, appends them to the batch, and sends the batch whenever it is full.
func (x *exit) put(p *stack.PacketBuffer) {
	c := newCursor(p)
	size := p.Size()
	gso := &p.GSOOptions
	if gso.Type == stack.GSONone {
		if room := x.next(size); room != nil {
			c.read(room)
			if !p.NetworkPacketInfo.IsForwardedPacket {
				lowerSYN(room)
			}
			x.batch.Commit(size)
		}
		return
	}
	var headers [packet.MaxHeaders]byte
	h := headers[:min(size, len(headers))]
	c.read(h)
	l3, l4, ok := tcpHeaders(h)
	if ok {
		x.windows.outbound(h[:l4], l3, size == l4)
	}
	if !ok || gso.MSS == 0 || !x.template.Set(h[:l4], l3, false, packet.PseudoSum(h, 0)) {
		x.drops.malformed.Add(1) // cannot happen: gVisor marks only its own TCP packets for segmentation
		return
	}
	c = newCursor(p)
	c.skip(l4)
	x.split(&c, size-l4, int(gso.MSS))
}

// tcpHeaders finds the offsets at which the IP header (l3) and the TCP header (l4) end. ok is true only if b contains both whole
// headers, with nothing between them.
func tcpHeaders(b []byte) (l3, l4 int, ok bool) {
	if len(b) < packet.IP4Header {
		return 0, 0, false
	}
	var proto uint8
	switch b[0] >> 4 {
	case 4:
		l3, proto = int(b[0]&15)*4, b[ip4Protocol]
	case 6:
		l3, proto = packet.IP6Header, b[ip6Next]
	}
	if l3 < packet.IP4Header || proto != protoTCP {
		return 0, 0, false
	}
	l4, ok = packet.TCPEnd(b, l3)
	return l3, l4, ok
}

// split cuts n bytes of payload into segments of mss bytes, each with its own headers. n may be 0, for a segment without
// payload.
func (x *exit) split(payload *cursor, n, mss int) {
	l4 := x.template.Headers()
	for i, at := 0, 0; ; i, at = i+1, at+mss {
		size := min(mss, n-at)
		last := at+size == n
		room := x.next(l4 + size)
		if room == nil {
			return
		}
		payload.read(room[l4:])
		x.template.Put(room, i, at, last, packet.Sum(room[l4:], 0))
		x.batch.Commit(len(room))
		if last {
			return
		}
	}
}

// next returns memory for a packet of n bytes in the batch. If the batch is full, next sends it first.
func (x *exit) next(n int) []byte {
	if room := x.batch.Next(n); room != nil {
		return room
	}
	x.flush()
	room := x.batch.Next(n)
	if room == nil {
		x.drops.malformed.Add(1) // n is larger than any IP packet
	}
	return room
}

// flush sends the batch. It ignores errors of Send, because a device that is down or closed counts the packets that it drops.
func (x *exit) flush() {
	if x.batch.Len() > 0 {
		_ = x.to.Send(x.batch)
	}
}

// A cursor reads the bytes of a packet, headers included, from all its views in order.
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

// fill moves to the next view if all bytes of the present view have been read. It reports whether b has unread bytes.
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

// read fills dst. The packet must have enough bytes left.
func (c *cursor) read(dst []byte) {
	for len(dst) > 0 && c.fill() {
		k := copy(dst, c.b)
		c.b, dst = c.b[k:], dst[k:]
	}
}
