package netstack

import (
	"encoding/binary"
	"net"
	"sync"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// WritePackets delivers packets that arrived through the tunnel to the stack, on the caller's goroutine. It joins consecutive
// segments of one connection into one large packet, as a network card does. WritePackets copies the bytes that it keeps, never
// waits, and is safe for concurrent use. It drops and counts packets that are malformed or have a wrong checksum, and returns no
// error for them.
func (n *Net) WritePackets(pkts [][]byte) (int, error) {
	select {
	case <-n.done:
		return 0, net.ErrClosed
	default:
	}
	c := coalescers.Get().(*coalescer)
	c.link = n.link
	for _, p := range pkts {
		n.link.receive(c, p)
	}
	c.Flush(c)
	c.link = nil
	coalescers.Put(c)
	return len(pkts), nil
}

var coalescers = sync.Pool{New: func() any { return new(coalescer) }}

// receive checks one packet, and delivers it to the stack or passes it to the coalescer c.
func (l *link) receive(c *coalescer, p []byte) {
	if len(p) < header.IPv4MinimumSize {
		l.drops.malformed.Add(1)
		return
	}
	switch p[0] >> 4 {
	case 4:
		l.receive4(c, p)
	case 6:
		l.receive6(c, p)
	default:
		l.drops.malformed.Add(1)
	}
}

func (l *link) receive4(c *coalescer, p []byte) {
	l3 := int(p[0]&15) * 4
	if l3 < header.IPv4MinimumSize || l3 > len(p) || int(binary.BigEndian.Uint16(p[ip4Length:])) != len(p) {
		l.drops.malformed.Add(1)
		return
	}
	if packet.Sum(p[:l3], 0) != 0xffff {
		l.drops.checksum.Add(1)
		return
	}
	if p[ip4Addresses] == 127 || p[ip4Addresses+4] == 127 {
		l.drops.malformed.Add(1) // gVisor would also drop the packet, and log a line to standard error
		return
	}
	if isFragment4(p) {
		if !l.forwards(ipv4.ProtocolNumber) || l.isForNet(p) {
			l.fragment(c, p, l3, part4)
			return
		}
		// The stack forwards fragments without reassembly.
		if p[ip4Protocol] == protoICMP4 {
			l.errors.put(l, p) // the fragment may be part of an ICMP error
			return
		}
		l.deliver(ipv4.ProtocolNumber, p, l3, false)
		return
	}
	switch p[ip4Protocol] {
	case protoTCP:
		c.segment(p, l3)
	case protoUDP:
		l.datagram(p, l3)
	case protoICMP4:
		if len(p) > l3 && isICMP4Error(p[l3]) {
			l.icmpError(p, packet.Sum(p[l3:], 0))
			return
		}
		l.deliver(ipv4.ProtocolNumber, p, l3, false)
	default:
		l.deliver(ipv4.ProtocolNumber, p, l3, false)
	}
}

func (l *link) receive6(c *coalescer, p []byte) {
	const l3 = header.IPv6MinimumSize
	if len(p) < l3 || int(binary.BigEndian.Uint16(p[ip6Length:]))+l3 != len(p) {
		l.drops.malformed.Add(1)
		return
	}
	switch p[ip6Next] {
	case protoTCP:
		c.segment(p, l3)
	case protoUDP:
		l.datagram(p, l3)
	case protoICMP6:
		if len(p) > l3 && isICMP6Error(p[l3]) {
			l.icmpError(p, packet.TransportSum(p, l3))
			return
		}
		l.deliver(ipv6.ProtocolNumber, p, l3, false)
	case ip6Fragments, ip6HopByHop, ip6Routing, ip6Destination:
		if at, ok := fragment6(p); ok && (!l.forwards(ipv6.ProtocolNumber) || l.isForNet(p)) {
			l.fragment(c, p, at, part6)
			return
		}
		if p[ip6Next] != ip6Fragments {
			l.errors.put(l, p) // an ICMP error may follow the extension headers
			return
		}
		if len(p) > l3 && (p[l3] == protoTCP || p[l3] == protoUDP) {
			l.deliver(ipv6.ProtocolNumber, p, l3, false)
			return
		}
		l.errors.put(l, p)
	default:
		l.deliver(ipv6.ProtocolNumber, p, l3, false)
	}
}

// fragment parses the fragment p with the function read and passes it to reassemble. If p completes a packet, fragment passes the
// whole packet to receive. A reassembled IPv6 packet that is itself a fragment is malformed.
func (l *link) fragment(c *coalescer, p []byte, at int, read func([]byte, int) (part, bool)) {
	f, ok := read(p, at)
	if !ok {
		l.drops.malformed.Add(1)
		return
	}
	whole := l.reassemble(f)
	if whole == nil {
		return
	}
	if whole[0]>>4 == 6 {
		if _, again := fragment6(whole); again {
			l.drops.malformed.Add(1)
			return
		}
	}
	l.receive(c, whole)
}

// These are the extension headers that gVisor parses.
const (
	ip6HopByHop    = uint8(header.IPv6HopByHopOptionsExtHdrIdentifier)
	ip6Routing     = uint8(header.IPv6RoutingExtHdrIdentifier)
	ip6Fragments   = uint8(header.IPv6FragmentExtHdrIdentifier)
	ip6Destination = uint8(header.IPv6DestinationOptionsExtHdrIdentifier)
)

// isFragment4 reports whether the IPv4 packet p is a fragment.
func isFragment4(p []byte) bool {
	return binary.BigEndian.Uint16(p[ip4Fragment:])&^(uint16(header.IPv4FlagDontFragment)<<13) != 0
}

// datagram checks the checksum of a UDP packet and delivers the packet.
func (l *link) datagram(p []byte, l3 int) {
	udp := p[l3:]
	if len(udp) < header.UDPMinimumSize {
		l.drops.malformed.Add(1)
		return
	}
	n := int(binary.BigEndian.Uint16(udp[udpLength:]))
	if n < header.UDPMinimumSize || n > len(udp) {
		l.drops.malformed.Add(1)
		return
	}
	is4 := p[0]>>4 == 4
	// RFC 768: "An all zero transmitted checksum value means that the transmitter generated no checksum". RFC 8200,
	// section 8.1, forbids that for IPv6.
	if sent := binary.BigEndian.Uint16(udp[udpChecksum:]); sent != 0 || !is4 {
		if sent == 0 || packet.TransportSum(p[:l3+n], l3) != 0xffff {
			l.drops.checksum.Add(1)
			return
		}
	}
	l.deliver(networkOf(p), p, l3+header.UDPMinimumSize, true)
}

func networkOf(p []byte) tcpip.NetworkProtocolNumber {
	if p[0]>>4 == 4 {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// deliver hands a copy of the packet p to the stack. headers is the offset of the payload, or of the first byte that the link has
// not parsed. checked says that all checksums of p are right, as gVisor assumes for packets from the interface. If checked is
// false, deliver passes the packet to gVisor's network endpoint instead, which verifies the checksums.
func (l *link) deliver(proto tcpip.NetworkProtocolNumber, p []byte, headers int, checked bool) {
	to := l.portOf(p)
	if to == nil {
		return
	}
	var b buffer.Buffer
	appendHeaders(&b, p[:headers])
	appendPayload(&b, p[headers:])
	l.hand(to, proto, b, checked)
}

// portOf returns the port (the interface of one of the Net's stacks) to which the link delivers the packet p. The IP header of p
// must be intact. If p must be dropped, portOf counts p and returns nil.
func (l *link) portOf(p []byte) *port {
	if l.forward == nil {
		return &l.own
	}
	return l.forward.portOf(p)
}

func (l *link) hand(to *port, proto tcpip.NetworkProtocolNumber, b buffer.Buffer, checked bool) {
	if checked && to != &l.own {
		to.handTransport(proto, b)
		return
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: b})
	defer p.DecRef()
	d := to.dispatcher.Load()
	switch {
	case d == nil:
	case checked:
		(*d).DeliverNetworkPacket(proto, p)
	case proto == ipv4.ProtocolNumber:
		to.endpoint4.HandlePacket(p)
	default:
		to.endpoint6.HandlePacket(p)
	}
}

// forwards reports whether the stack forwards packets. Only a program that uses [Net.Stack] can turn forwarding on. If it is on,
// the link joins no segments, because a joined packet would be too big for the next hop.
func (l *link) forwards(proto tcpip.NetworkProtocolNumber) bool {
	on, err := l.owner.stack.NICForwarding(NICID, proto)
	return on && err == nil
}

// appendHeaders puts the headers into a separate view with a small chunk of memory, because gVisor copies the whole chunk if it
// parses the headers while the chunk is shared. It puts the headers at the end of the chunk, because gVisor would fill free
// memory behind them with the bytes of the next view.
func appendHeaders(b *buffer.Buffer, headers []byte) {
	v := buffer.NewView(len(headers))
	v.Grow(v.Capacity())
	free := v.Capacity() - len(headers)
	_, _ = v.WriteAt(headers, free)
	v.TrimFront(free)
	_ = b.Append(v)
}

// viewSize is the size, in bytes, of the chunks of memory for payload. It must be one of the sizes that gVisor pools: the powers
// of two up to 64 KiB. With 64 KiB, receiving a train of packets takes 8 % less time, but a connection whose data the program
// does not read could use twice the memory that the budget counts for it.
const viewSize = 16 << 10

func appendPayload(b *buffer.Buffer, p []byte) {
	for len(p) > 0 {
		n := min(len(p), viewSize)
		_ = b.Append(buffer.NewViewWithData(p[:n]))
		p = p[n:]
	}
}
