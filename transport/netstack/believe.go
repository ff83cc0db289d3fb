package netstack

import (
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// gVisor believes every ICMP error that names the addresses and ports of a TCP connection. Any host behind any peer can forge
// such an error, and so end a handshake or make the segments of a connection smaller. RFC 5927 says what to check. The link
// drops the following errors, and counts them:
//
//   - An error that does not come from the peer to which the quoted packet was sent. The source of a true error is the destination
//     of the quoted packet, or a router between the peer and that destination. So the AllowedIPs of that peer contain the source of
//     a true error as well as the destination of the quoted packet.
//   - An error about a connection, if the quoted sequence number is not in flight. RFC 5927, section 4.1: "TCP SHOULD check that
//     the TCP sequence number contained in the payload of the ICMP error message is within the range SND.UNA =< SEG.SEQ <
//     SND.NXT".
//   - An error about a handshake, if the quoted sequence number is not that of the SYN or SYN-ACK.
//   - "Packet too big" about a TCP packet that is not larger than the MTU in the error.
//
// The remaining errors can end only handshakes: gVisor never ends an established connection because of an error. RFC 5927, section
// 5.2, recommends to keep such a connection even after a "hard" error.

// believes reports whether the stack may get the packet p. It returns false only for an ICMP error that must be dropped.
// raiseMTU has checked that the headers of p are whole.
func (l *link) believes(p []byte) bool {
	at, isError := icmpErrorAt(p)
	if !isError {
		return true
	}
	const quote = header.ICMPv4MinimumSize // how far the quoted packet is behind the start of the ICMP header, for IPv4 and IPv6
	if len(p) < at+quote {
		return true // gVisor drops p
	}
	q := p[at+quote:]
	l4, tcp, ok := quotedHeader(q)
	if !ok || q[0]>>4 != p[0]>>4 {
		return true // gVisor drops p
	}
	src, _ := addressesOf(p)
	if _, about := addressesOf(q); l.peers.Load() != nil && l.partyOf(src) != l.partyOf(about) {
		return false
	}
	if !tcp {
		return true
	}
	if len(q) < l4+8 { // 8 bytes: the ports and the sequence number
		return false
	}
	if mtu, is := tooBig(p, at); is && totalLength(q) <= mtu {
		return false
	}
	return l.windows.heard.isInFlight(flowOf(q, l4, false), binary.BigEndian.Uint32(q[l4+tcpSeq:]))
}

// icmpErrorAt returns the offset of the ICMP header in the ICMP error p. isError is false if p is not an ICMP error.
func icmpErrorAt(p []byte) (at int, isError bool) {
	if p[0]>>4 == 4 {
		at = int(p[0]&15) * 4
		return at, p[ip4Protocol] == protoICMP4 && !isFragment4(p) && len(p) > at && isICMP4Error(p[at])
	}
	at, proto, ok := upper6(p)
	return at, ok && proto == protoICMP6 && len(p) > at && isICMP6Error(p[at])
}

// quotedHeader returns the offset of the transport header in the quoted packet q, and whether that is a TCP header. ok is false if
// q is too short. A connection of the Net sends neither fragments nor IPv6 extension headers. If q is a TCP packet that is a
// fragment or has an extension header, l4 is the length of q, so that q seems to lack the ports and believes drops the error.
func quotedHeader(q []byte) (l4 int, tcp, ok bool) {
	if len(q) < header.IPv4MinimumSize {
		return 0, false, false
	}
	if q[0]>>4 == 4 {
		if l4 = int(q[0]&15) * 4; l4 < header.IPv4MinimumSize {
			return 0, false, false
		}
		if tcp = q[ip4Protocol] == protoTCP; tcp && isFragment4(q) {
			l4 = len(q)
		}
		return l4, tcp, true
	}
	if len(q) < header.IPv6MinimumSize {
		return 0, false, false
	}
	l4, proto, ok := upper6(q)
	if tcp = proto == protoTCP; tcp && l4 != header.IPv6MinimumSize {
		l4 = len(q)
	}
	return l4, tcp, ok
}

// tooBig reports whether the ICMP error p says that a packet was too big, and returns the MTU in p. at is the offset of the
// ICMP header.
func tooBig(p []byte, at int) (mtu int, is bool) {
	if len(p) < at+icmpRest {
		return 0, false
	}
	if p[0]>>4 == 4 {
		icmp := header.ICMPv4(p[at:])
		return int(icmp.MTU()), icmp.Type() == header.ICMPv4DstUnreachable && icmp.Code() == header.ICMPv4FragmentationNeeded
	}
	icmp := header.ICMPv6(p[at:])
	return int(min(icmp.MTU(), 1<<16)), icmp.Type() == header.ICMPv6PacketTooBig
}

// totalLength returns how many bytes the IP packet p has according to its header.
func totalLength(p []byte) int {
	if p[0]>>4 == 4 {
		return int(binary.BigEndian.Uint16(p[ip4Length:]))
	}
	return header.IPv6MinimumSize + int(binary.BigEndian.Uint16(p[ip6Length:]))
}

// isInFlight reports whether the connection f has sent the byte with the number seq, and the byte is not acknowledged yet. For
// a handshake, it reports whether seq is the number of the SYN or SYN-ACK.
func (c *heardConns) isInFlight(f flow, seq uint32) bool {
	if h := c.of(f); h != nil {
		return h.isInFlight(seq)
	}
	at, tag := c.synOf(&f)
	return at.Load() == uint64(tag)<<32|uint64(seq)
}

func (h *heard) isInFlight(seq uint32) bool {
	sent := h.sent.Load()
	if sent == 0 {
		return false
	}
	acked := h.first.Load()
	if last := h.last.Load(); last != 0 {
		acked = uint32(last)
	}
	return int32(seq-acked) >= 0 && int32(uint32(sent)-seq) > 0
}

// synOf returns the element of c.syns for the connection f, and the tag of f. An element has the tag of its connection in the bits
// above the sequence number.
func (c *heardConns) synOf(f *flow) (at *atomic.Uint64, tag uint32) {
	h := maphash.Bytes(flowSeed, f[:])
	return &c.syns[h%uint64(len(c.syns))], uint32(h>>32) | 1
}

// noteSYN notes the sequence number of p, which gVisor sends, if p is a SYN or a SYN-ACK. If a SYN-ACK has no window scale
// option, noteSYN also notes a scale of 0: then neither end scales its windows, even if the peer's SYN has a scale.
func (l *link) noteSYN(p *stack.PacketBuffer) {
	if p.TransportProtocolNumber != header.TCPProtocolNumber {
		return
	}
	tcp := p.TransportHeader().Slice()
	if len(tcp) < header.TCPMinimumSize || !header.TCPFlags(tcp[tcpFlags]).Intersects(header.TCPFlagSyn) {
		return
	}
	ip := p.NetworkHeader().Slice()
	h := make([]byte, 0, header.IPv6MinimumSize+header.IPv4MaximumHeaderSize+4)
	f := flowOf(append(append(h, ip...), tcp[:4]...), len(ip), false)
	at, tag := l.windows.heard.synOf(&f)
	at.Store(uint64(tag)<<32 | uint64(binary.BigEndian.Uint32(tcp[tcpSeq:])))
	if tcp[tcpFlags]&tcpACK != 0 && header.ParseSynOptions(tcp[header.TCPMinimumSize:], true).WS < 0 {
		l.windows.heard.noteScale(&f, 0)
	}
}
