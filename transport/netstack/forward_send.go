package netstack

import (
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// checkForeign returns an error if the Net cannot send a datagram with the source address from to a UDP source, whose address is
// to.
func (fw *forwarder) checkForeign(from, to netip.AddrPort) error {
	wrong := func(why string) error { return &net.AddrError{Err: why, Addr: from.String()} }
	switch a := from.Addr(); {
	case !a.IsValid() || a.Is4() != to.Addr().Is4():
		return wrong("want an address of the family of " + to.String())
	case !isForwardable(a):
		return wrong("want the address of one host that can be reached from outside")
	}
	if fw.net.owns(from.Addr()) {
		return wrong("this address is the Net's: send from it with ListenUDP")
	}
	return nil
}

// udpHeader returns the header of a datagram of n bytes, without a checksum.
func udpHeader(from, to netip.AddrPort, n int) []byte {
	h := make([]byte, header.UDPMinimumSize)
	putUDP(h, from, to, n)
	return h
}

func putUDP(h []byte, from, to netip.AddrPort, n int) {
	binary.BigEndian.PutUint16(h, from.Port())
	binary.BigEndian.PutUint16(h[2:], to.Port())
	binary.BigEndian.PutUint16(h[udpLength:], uint16(header.UDPMinimumSize+n))
}

// datagram sends b as a UDP datagram from the address from to the address to. mtu is the MTU of the path, or 0 if it is not known.
func (fw *forwarder) datagram(from, to netip.AddrPort, b []byte, mtu int) error {
	var h [header.UDPMinimumSize]byte
	putUDP(h[:], from, to, len(b))
	return fw.write(from.Addr(), to.Addr(), protoUDP, h[:], b, mtu)
}

// refuse sends the ICMP error for r, as the answer to a packet of the flow with the given key. transport is that packet's
// transport header and payload. refuse sends nothing if the peer has used up its limit of ICMP errors; see mayComplain.
func (fw *forwarder) refuse(key flowKey, transport []byte, r Refusal) error {
	if !fw.net.link.mayComplain(key.src.Addr()) {
		return nil
	}
	l3 := header.IPv6MinimumSize
	if key.src.Addr().Is4() {
		l3 = header.IPv4MinimumSize
	}
	b := make([]byte, l3+len(transport))
	packet.PutIP(b, len(b), key.src.Addr(), key.dst.Addr(), key.proto, 0)
	copy(b[l3:], transport)
	if b = r.icmp(key.proto).About(b); b == nil {
		return nil // cannot happen: the packet is not an ICMP error, and its addresses are those of hosts
	}
	return fw.send(b)
}

// write sends a packet of the protocol proto. Its transport header is head, which has an even length, and its payload is body.
// write fills in the checksum. It sends fragments if the packet is larger than the link's MTU, or larger than the MTU of the
// path. mtu is the MTU of the path, or 0 if that is not known.
func (fw *forwarder) write(src, dst netip.Addr, proto uint8, head, body []byte, mtu int) error {
	n := len(head) + len(body)
	var ip [header.IPv6MinimumSize]byte
	var most int
	if dst.Is4() {
		most = 65535 - header.IPv4MinimumSize
	} else {
		most = 65535
	}
	if n > most {
		return syscall.EMSGSIZE
	}
	l3 := packet.PutIP(ip[:], min(header.IPv6MinimumSize+n, 65535), src, dst, proto, 0)
	putChecksum(proto, head, body, ip[:l3])
	if mtu == 0 || mtu > fw.net.mtu {
		mtu = fw.net.mtu
	}
	id := fw.fragment.Add(1)
	if l3+n <= mtu {
		return fw.writeFragment(ip[:l3], id, head, body, 0, n, false)
	}
	room := mtu - l3
	if !dst.Is4() {
		room -= header.IPv6FragmentHeaderSize
	}
	room &^= 7 // offsets are in units of 8 bytes
	for at := 0; at < n; at += room {
		if err := fw.writeFragment(ip[:l3], id, head, body, at, min(room, n-at), true); err != nil {
			return err
		}
	}
	return nil
}

// putChecksum writes the checksum of a UDP datagram or an ICMP message into its header head, where the checksum must be zero
// before. ip is the IP header of the packet.
func putChecksum(proto uint8, head, body, ip []byte) {
	at, sum := 2, uint16(0)
	if proto != protoICMP4 {
		sum = packet.PseudoSum(ip, len(head)+len(body))
	}
	if proto == protoUDP {
		at = udpChecksum
	}
	sum = ^packet.Sum(body, packet.Sum(head, sum))
	if sum == 0 && proto == protoUDP {
		sum = 0xffff // RFC 768: "If the computed checksum is zero, it is transmitted as all ones"
	}
	binary.BigEndian.PutUint16(head[at:], sum)
}

// writeFragment sends the n bytes that begin at the offset at of the IP payload, which is head followed by body. ip is the IP
// header of the whole packet.
func (fw *forwarder) writeFragment(ip []byte, id uint32, head, body []byte, at, n int, fragmented bool) error {
	l3, more := len(ip), at+n < len(head)+len(body)
	if l3 == header.IPv6MinimumSize && fragmented {
		l3 += header.IPv6FragmentHeaderSize
	}
	v := buffer.NewViewSize(l3 + n)
	b := v.AsSlice()
	copy(b, ip)
	if len(ip) == header.IPv4MinimumSize {
		h := header.IPv4(b)
		h.SetTotalLength(uint16(l3 + n))
		h.SetID(uint16(id))
		if more {
			h.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, uint16(at))
		} else {
			h.SetFlagsFragmentOffset(0, uint16(at))
		}
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	} else {
		binary.BigEndian.PutUint16(b[ip6Length:], uint16(l3+n-len(ip)))
		if fragmented {
			f := b[len(ip):l3]
			f[0], f[1] = b[ip6Next], 0
			b[ip6Next] = ip6Fragments
			binary.BigEndian.PutUint16(f[2:], uint16(at))
			if more {
				f[3] |= 1
			}
			binary.BigEndian.PutUint32(f[4:], id)
		}
	}
	b = b[l3:]
	if at < len(head) {
		k := copy(b, head[at:])
		b, at = b[k:], at+k
	}
	copy(b, body[at-len(head):])
	return fw.sendView(v)
}

// send sends the whole packet b.
func (fw *forwarder) send(b []byte) error { return fw.sendView(buffer.NewViewWithData(b)) }

// sendView sends the packet in v. It takes ownership of v.
func (fw *forwarder) sendView(v *buffer.View) error {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	defer p.DecRef()
	if err := fw.net.link.WritePacket(p); err != nil {
		return systemError("sendto", err)
	}
	return nil
}

// takeError handles the ICMP error p if p is about a datagram that a UDPSource sent, and reports whether it is. The IP header
// of p is intact, and link.believes has accepted p. gVisor handles errors about its own endpoints.
func (fw *forwarder) takeError(p []byte) bool {
	if _, dst := addressesOf(p); fw.net.owns(dst) {
		return false
	}
	q := quoted(p)
	if q == nil {
		return false // gVisor drops p
	}
	from, to, ok := datagramOf(q)
	if !ok {
		return false
	}
	fw.mu.Lock()
	defer fw.mu.Unlock()
	s := fw.sources[to]
	if s == nil {
		return false
	}
	const l3 = header.IPv6MinimumSize
	switch {
	case p[0]>>4 == 4:
		if at := int(p[0]&15) * 4; header.ICMPv4Type(p[at]) == header.ICMPv4DstUnreachable && header.ICMPv4Code(p[at+1]) == header.ICMPv4PortUnreachable {
			s.fail(from, syscall.ECONNREFUSED)
		}
	case header.ICMPv6Type(p[l3]) == header.ICMPv6DstUnreachable && header.ICMPv6Code(p[l3+1]) == header.ICMPv6PortUnreachable:
		s.fail(from, syscall.ECONNREFUSED)
	case header.ICMPv6Type(p[l3]) == header.ICMPv6PacketTooBig:
		// RFC 8201, section 4: "A node MUST NOT reduce its estimate of the Path MTU below the IPv6 minimum link MTU".
		if mtu := binary.BigEndian.Uint32(p[l3+4:]); mtu < uint32(fw.net.mtu) {
			s.mtu.Store(int32(max(mtu, header.IPv6MinimumMTU)))
		}
	}
	return true
}

// quoted returns the packet that the ICMP error p quotes, or nil if the quoted IP header is not whole. IP options may be cut
// off.
func quoted(p []byte) []byte {
	const quote = header.ICMPv4MinimumSize // how far the quoted packet is behind the start of the ICMP header, for IPv4 and IPv6
	l3, least := header.IPv6MinimumSize, header.IPv6MinimumSize
	if p[0]>>4 == 4 {
		l3, least = int(p[0]&15)*4, header.IPv4MinimumSize
	}
	if len(p) < l3+quote+least || p[l3+quote]>>4 != p[0]>>4 {
		return nil
	}
	return p[l3+quote:]
}

// datagramOf returns the source and the destination of the packet q, which quoted returned. ok is false if q is neither a UDP
// datagram nor the first fragment of one.
func datagramOf(q []byte) (from, to netip.AddrPort, ok bool) {
	l4, least, proto := header.IPv6MinimumSize, header.IPv6MinimumSize, q[ip6Next]
	if q[0]>>4 == 4 {
		l4, least, proto = int(q[0]&15)*4, header.IPv4MinimumSize, q[ip4Protocol]
		if isFragment4(q) && q[ip4Fragment]&0x1f|q[ip4Fragment+1] != 0 {
			return from, to, false
		}
	} else if proto == ip6Fragments && len(q) >= l4+header.IPv6FragmentHeaderSize && q[l4+2] == 0 && q[l4+3]&^7 == 0 {
		proto, l4 = q[l4], l4+header.IPv6FragmentHeaderSize
	}
	if proto != protoUDP || l4 < least || len(q) < l4+4 {
		return from, to, false
	}
	src, dst := addressesOf(q)
	return netip.AddrPortFrom(src, binary.BigEndian.Uint16(q[l4:])), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(q[l4+2:])), true
}
