package netstack

import (
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// gVisor believes every ICMP error that names the addresses and ports of a TCP connection. Any host behind any peer can forge one,
// and so end a handshake or shrink the segments of a connection. RFC 5927 says what to check. The link drops these errors, and
// counts them:
//
//   - An error that does not come from the peer to which the quoted packet was sent. The addresses of an error's sender are in
//     the AllowedIPs of its peer. So are those of each router between the peer and the destination.
//   - An error about a connection, if the quoted sequence number is not in flight. RFC 5927, section 4.1: "TCP SHOULD check that
//     the TCP sequence number contained in the payload of the ICMP error message is within the range SND.UNA =< SEG.SEQ <
//     SND.NXT".
//   - An error about a handshake, if the quoted sequence number is not that of the SYN or SYN-ACK.
//   - "Packet too big" about a TCP packet that is not larger than the MTU in the error.
//
// The errors that are not dropped can end only handshakes: gVisor never ends an established connection because of an error. RFC
// 5927, section 5.2, wants that even for "hard" errors.

// believes reports whether the stack may get p: p is not an ICMP error, or it is an error that the stack may believe. raiseMTU
// has checked that the headers of p are whole.
func (l *link) believes(p []byte) bool {
	at, isError := icmpErrorAt(p)
	if !isError {
		return true
	}
	const quote = header.ICMPv4MinimumSize // how far the quoted packet is behind the start of the ICMP header, for IPv4 and IPv6
	if len(p) < at+quote {
		return true // gVisor drops it
	}
	q := p[at+quote:]
	l4, tcp, ok := quotedHeader(q)
	if !ok || q[0]>>4 != p[0]>>4 {
		return true // gVisor drops it
	}
	src, _ := addressesOf(p)
	if _, about := addressesOf(q); l.peers.Load() != nil && l.partyOf(src) != l.partyOf(about) {
		return false
	}
	if !tcp {
		return true
	}
	if len(q) < l4+8 { // the ports and the sequence number
		return false
	}
	if mtu, is := tooBig(p, at); is && totalLength(q) <= mtu {
		return false
	}
	return l.windows.heard.isInFlight(flowOf(q, l4, false), binary.BigEndian.Uint32(q[l4+tcpSeq:]))
}

// icmpErrorAt returns where the header of the ICMP error p begins. isError is false if p is something else.
func icmpErrorAt(p []byte) (at int, isError bool) {
	if p[0]>>4 == 4 {
		at = int(p[0]&15) * 4
		return at, p[ip4Protocol] == protoICMP4 && !isFragment4(p) && len(p) > at && isICMP4Error(p[at])
	}
	at, proto, ok := upper6(p)
	return at, ok && proto == protoICMP6 && len(p) > at && isICMP6Error(p[at])
}

// quotedHeader returns where the upper layer of the quoted packet q begins, and whether that is TCP. ok is false if q is too
// short. A connection sends neither fragments nor extension headers. If q is TCP with either, l4 is the length of q, so that q
// seems too short for the ports.
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

// tooBig returns the MTU in the ICMP error p, whose header begins at at, if it has one.
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

// totalLength returns how many bytes the IP packet p has, as its header says.
func totalLength(p []byte) int {
	if p[0]>>4 == 4 {
		return int(binary.BigEndian.Uint16(p[ip4Length:]))
	}
	return header.IPv6MinimumSize + int(binary.BigEndian.Uint16(p[ip6Length:]))
}

// isInFlight reports whether the connection or the handshake f has sent the number seq, and its peer has not acknowledged it.
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

// synOf returns where the number of f's SYN is noted, and the tag of f, which is in the bits above the number.
func (c *heardConns) synOf(f *flow) (at *atomic.Uint64, tag uint32) {
	h := maphash.Bytes(flowSeed, f[:])
	return &c.syns[h%uint64(len(c.syns))], uint32(h>>32) | 1
}

// noteSYN notes the sequence number of p if p is a SYN or a SYN-ACK; gVisor sends p. If a SYN-ACK has no window scale option,
// noteSYN also notes a scale of 0, because then neither end scales its windows, whatever the peer's SYN says.
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
