package netstack

import (
	"github.com/seed-86b749af/wireguard/internal/packet"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// A coalescer joins consecutive TCP segments of one connection into one large packet, within one call of WritePackets. It keeps the
// packets until Flush, without copying them. The embedded Coalescer calls Single for each packet that is not joined to others, and
// Merged for each run of segments to join.
type coalescer struct {
	packet.Coalescer
	link *link
}

// segment checks a received TCP packet p and adds it to the packets to join. The IP header of p is l3 bytes long and already
// checked.
func (c *coalescer) segment(p []byte, l3 int) {
	l := c.link
	l4, ok := packet.TCPEnd(p, l3)
	if !ok {
		l.drops.malformed.Add(1)
		return
	}
	if packet.TransportSum(p, l3) != 0xffff {
		l.drops.checksum.Add(1)
		return
	}
	if p[l3+tcpFlags]&uint8(header.TCPFlagSyn|header.TCPFlagAck) == uint8(header.TCPFlagSyn) && l.isOwn(p) && !l.mayOpen(p) {
		return
	}
	p = l.withoutPayload(p, l3, l4)
	v := l.windows.inbound(p, l3, l4)
	if len(v.again) > 0 {
		l.sendAgain(v.again)
	}
	if v.drop {
		return
	}
	c.Add(c, p, l3, l4, false, true)
}

// Single delivers the packet p, which was not joined to others.
func (c *coalescer) Single(p []byte, l4 int) { c.link.deliver(networkOf(p), p, l4, true) }

// Merged delivers the run r as one packet. If the stack forwards packets, Merged delivers each packet of r alone.
func (c *coalescer) Merged(r *packet.Run) {
	network := networkOf(r.Packets[0])
	if !c.link.forwards(network) {
		if to := c.link.portOf(r.Packets[0]); to != nil {
			c.link.hand(to, network, merge(r), true)
		}
		return
	}
	for _, p := range r.Packets {
		c.Single(p, r.L4)
	}
}

// merge copies a run into one packet. The packet keeps the TCP checksum of the first segment. The checksum of each segment has
// been checked before, and nothing reads the packet's checksum.
func merge(r *packet.Run) (b buffer.Buffer) {
	var headers [packet.MaxHeaders]byte
	appendHeaders(&b, headers[:r.Headers(headers[:])])
	left := r.Total - r.L4
	v := buffer.NewView(min(left, viewSize))
	for _, p := range r.Packets {
		for p = p[r.L4:]; len(p) > 0; {
			n := min(len(p), left, viewSize-v.Size())
			_, _ = v.Write(p[:n])
			p, left = p[n:], left-n
			if v.Size() == viewSize && left > 0 {
				_ = b.Append(v)
				v = buffer.NewView(min(left, viewSize))
			}
		}
	}
	_ = b.Append(v)
	return b
}
