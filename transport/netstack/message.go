package netstack

import (
	"net"
	"net/netip"
	"syscall"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// ReadMsgUDP is like ReadFrom, and writes control messages about the datagram to oob, in the operating system's format. The
// messages report the destination, the type of service (with the ECN bits) and the TTL, in this order and as far as they fit. A
// program need not enable them first. Packages ipv4 and ipv6 of golang.org/x/net can parse them. flags has the bits MSG_TRUNC and
// MSG_CTRUNC of recvmsg(2) set if the datagram or the control messages did not fit. Only Linux, Darwin, FreeBSD and OpenBSD have
// control messages; elsewhere, oobn is 0.
func (c *UDPConn) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, addr *net.UDPAddr, err error) {
	n, oobn, flags, from, err := c.ReadMsgUDPAddrPort(b, oob)
	if err != nil {
		return n, oobn, flags, nil, err
	}
	return n, oobn, flags, net.UDPAddrFromAddrPort(from), nil
}

// ReadMsgUDPAddrPort is like ReadMsgUDP, but does not allocate.
func (c *UDPConn) ReadMsgUDPAddrPort(b, oob []byte) (n, oobn, flags int, addr netip.AddrPort, err error) {
	var m received
	n, addr, err = c.read(b, &m)
	if err != nil {
		return 0, 0, 0, addr, c.wrap("read", nil, err)
	}
	oobn, all := m.put(oob)
	if m.length > n {
		flags |= flagTruncated
	}
	if len(oob) > 0 && !all {
		flags |= flagControlTruncated
	}
	return n, oobn, flags, addr, nil
}

// WriteMsgUDP is like WriteTo with the options in oob, which are control messages in the operating system's format. The messages
// may set the source address, the type of service (with the ECN bits) and the TTL. On Linux, they may also contain UDP_SEGMENT,
// which divides b into several datagrams. addr must be nil if c was dialed. Only Linux, Darwin, FreeBSD and OpenBSD have control
// messages; elsewhere, oob must be empty.
func (c *UDPConn) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	var to netip.AddrPort
	if addr != nil {
		to = addr.AddrPort()
		if c.remote == nil && !to.Addr().IsValid() {
			return 0, 0, c.wrap("write", addr, &net.AddrError{Err: "not an IP address", Addr: addr.String()})
		}
	}
	return c.WriteMsgUDPAddrPort(b, oob, to)
}

// WriteMsgUDPAddrPort is like WriteMsgUDP. If c was dialed, addr must be the zero AddrPort.
func (c *UDPConn) WriteMsgUDPAddrPort(b, oob []byte, addr netip.AddrPort) (n, oobn int, err error) {
	switch {
	case c.remote != nil && addr.IsValid():
		err = net.ErrWriteToConnected
	case c.remote == nil && !addr.IsValid():
		err = errMissingRemote
	case len(oob) == 0:
		n, err = c.write(b, addr)
	default:
		n, err = c.writeMessage(b, oob, addr)
	}
	if err != nil {
		var remote net.Addr
		if addr.IsValid() {
			remote = net.UDPAddrFromAddrPort(addr)
		}
		return n, 0, c.wrap("write", remote, err)
	}
	return n, len(oob), nil
}

// The type received holds what the control messages of one datagram report about this datagram.
type received struct {
	length   int        // how many bytes the datagram had, even if some of them did not fit
	to       netip.Addr // the destination; invalid if unknown
	tos, ttl uint8
}

// take fills m from the result of the endpoint's read. The endpoint reports all fields because of reportAll.
func (m *received) take(res *tcpip.ReadResult) {
	m.length = res.Total
	switch cm := &res.ControlMessages; {
	case cm.HasIPPacketInfo:
		m.to, m.tos, m.ttl = addr(cm.PacketInfo.DestinationAddr), cm.TOS, cm.TTL
	case cm.HasIPv6PacketInfo:
		m.to, m.tos, m.ttl = addr(cm.IPv6PacketInfo.Addr), uint8(cm.TClass), cm.HopLimit
	}
}

// reportAll makes gVisor report all that the type received contains.
func reportAll(o *tcpip.SocketOptions) {
	o.SetReceivePacketInfo(true)
	o.SetReceiveTOS(true)
	o.SetReceiveTTL(true)
	o.SetIPv6ReceivePacketInfo(true)
	o.SetReceiveTClass(true)
	o.SetReceiveHopLimit(true)
}

// A message contains the options of one call of WriteMsgUDP.
type message struct {
	from     netip.Addr // the source; invalid means that the Net chooses
	tos, ttl int        // negative means the value that the connection has for all datagrams
	segment  int        // how many bytes each datagram except the last has; 0 means one datagram with all bytes
}

// writeMessage sends b with the options in oob. It makes the datagrams itself, because gVisor's endpoint cannot change the
// type of service or the IPv4 source for one datagram.
func (c *UDPConn) writeMessage(b, oob []byte, to netip.AddrPort) (int, error) {
	m := message{tos: -1, ttl: -1}
	if err := m.parse(oob); err != nil {
		return 0, err
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if err := c.usable(&c.writes); err != nil {
		return 0, err
	}
	if err := c.arrivals.takeError(); err != nil {
		return 0, c.failure("sendmsg", err)
	}
	if err := c.ep.LastError(); err != nil {
		return 0, c.failure("sendmsg", err)
	}
	if !to.IsValid() {
		to = c.remote.AddrPort()
	}
	o, err := c.outbound(&m, c.net.self(unmap(to)))
	if err != nil {
		return 0, err
	}
	defer o.route.Release()
	for sent := 0; ; {
		piece := b[sent:]
		if m.segment > 0 && len(piece) > m.segment {
			piece = piece[:m.segment]
		}
		if err := c.sendPiece(o, piece); err != nil {
			return sent, err
		}
		if sent += len(piece); sent == len(b) {
			return sent, nil
		}
	}
}

// An outbound contains what all datagrams of one call of WriteMsgUDP have in common.
type outbound struct {
	route    *stack.Route
	from, to uint16 // ports
	params   stack.NetworkHeaderParams
}

// outbound finds the route to the destination (to) and sets the header fields according to m. The caller releases the route.
func (c *UDPConn) outbound(m *message, to netip.AddrPort) (o outbound, err error) {
	n := c.net
	if err := c.reaches("sendmsg", to.Addr()); err != nil {
		return o, err
	}
	if to.Port() == 0 {
		return o, refused("sendmsg", syscall.EINVAL, "port 0 is not a destination")
	}
	from := c.bound
	if m.from.IsValid() && !m.from.IsUnspecified() {
		if can := m.from == from || !from.IsValid() && n.owns(m.from); !can || m.from.Is4() != to.Addr().Is4() {
			return o, refused("sendmsg", syscall.EINVAL, "the control message asks for the source "+m.from.String()+
				", which the connection cannot send from to "+to.Addr().String())
		}
		from = m.from
	}
	var source tcpip.Address
	if from.IsValid() {
		source = tcpip.AddrFromSlice(from.AsSlice())
	}
	remote := tcpip.AddrFromSlice(to.Addr().AsSlice())
	s := n.stack
	if c.foreign {
		s = n.link.forward.stack
	}
	r, terr := s.FindRoute(0, source, remote, protocolOf(to.Addr()), c.ep.SocketOptions().GetMulticastLoop())
	if terr != nil {
		return o, c.failure("sendmsg", terr)
	}
	o = outbound{route: r, from: uint16(c.local.Port), to: to.Port(), params: stack.NetworkHeaderParams{
		Protocol: udp.ProtocolNumber, DF: c.whole.Load(),
		TOS: uint8(c.option(m.tos, tcpip.IPv4TOSOption, tcpip.IPv6TrafficClassOption, to.Addr())),
	}}
	ttl := m.ttl
	switch {
	case ttl >= 0:
	case to.Addr().IsMulticast():
		ttl = c.option(ttl, tcpip.MulticastTTLOption, tcpip.MulticastTTLOption, to.Addr())
	default:
		ttl = c.option(ttl, tcpip.IPv4TTLOption, tcpip.IPv6HopLimitOption, to.Addr())
		if to.Addr().Is4() && ttl == tcpip.UseDefaultIPv4TTL || to.Addr().Is6() && ttl == tcpip.UseDefaultIPv6HopLimit {
			ttl = int(r.DefaultTTL())
		}
	}
	o.params.TTL = uint8(ttl)
	return o, nil
}

// option returns v or, if v is negative, the value of the connection's option ip4 or ip6, depending on the family of the
// destination (to).
func (c *UDPConn) option(v int, ip4, ip6 tcpip.SockOptInt, to netip.Addr) int {
	if v >= 0 {
		return v
	}
	name := ip4
	if to.Is6() {
		name = ip6
	}
	v, _ = c.ep.GetSockOptInt(name) // there is no error, because gVisor knows all these options
	return v
}

// sendPiece sends one datagram. c.writeMu is held.
func (c *UDPConn) sendPiece(o outbound, b []byte) error {
	if err := c.fits("sendmsg", len(b), o.route.NetProto() == header.IPv4ProtocolNumber); err != nil {
		return err
	}
	for {
		if err := c.waitForRoom(); err != nil {
			return err
		}
		switch err := o.send(b).(type) {
		case nil:
			c.net.stack.Stats().UDP.PacketsSent.Increment()
			return nil
		case *tcpip.ErrNoBufferSpace: // meanwhile, other senders have filled the link's queue
			if err := c.usable(&c.writes); err != nil {
				return err
			}
		default:
			return c.failure("sendmsg", err)
		}
	}
}

// send sends one datagram with the payload b.
func (o outbound) send(b []byte) tcpip.Error {
	r := o.route
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.UDPMinimumSize + int(r.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(b),
	})
	defer p.DecRef()
	p.TransportProtocolNumber = udp.ProtocolNumber
	h := header.UDP(p.TransportHeader().Push(header.UDPMinimumSize))
	length := uint16(p.Size())
	h.Encode(&header.UDPFields{SrcPort: o.from, DstPort: o.to, Length: length})
	sum := packet.Sum(b, packet.Sum(h, header.PseudoHeaderChecksum(udp.ProtocolNumber, r.LocalAddress(), r.RemoteAddress(), length)))
	// RFC 768: "If the computed checksum is zero, it is transmitted as all ones".
	if sum != 0xffff {
		sum = ^sum
	}
	h.SetChecksum(sum)
	return r.WritePacket(o.params, p)
}

// maxDatagram is the largest payload that the length of a UDP header can express.
const maxDatagram = header.UDPMaximumPacketSize - header.UDPMinimumSize

// fits returns an error if a datagram of size bytes is too long for the connection.
func (c *UDPConn) fits(call string, size int, is4 bool) error {
	most := maxDatagram
	if is4 {
		most -= header.IPv4MinimumSize
	}
	if c.whole.Load() {
		most = c.net.mtu - header.UDPMinimumSize - header.IPv6MinimumSize
		if is4 {
			most = c.net.mtu - header.UDPMinimumSize - header.IPv4MinimumSize
		}
	}
	if size > most {
		return systemError(call, &tcpip.ErrMessageTooLong{})
	}
	return nil
}
