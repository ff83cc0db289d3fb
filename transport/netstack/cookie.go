package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// When a segment with a SYN cookie arrives, the listener makes a connection and passes the segment to it. gVisor then counts the
// memory of that segment twice: for the listener, and for the connection (accept.go, handleListenSegment; segment.go, setOwner).
// Later it subtracts the memory only once, from the connection's count. So the listener's count grows for ever, and at some point
// gVisor begins to drop all segments with payload that reach the listener. With 1,000 bytes of payload per segment, gVisor began to
// drop segments after six handshakes. From then on, a handshake is never completed if its last acknowledgement, which has no
// payload, is lost: the peer now sends only segments with payload, and gVisor drops them.
//
// gVisor always passes segments without payload to the listener. So when a listener has begun to drop segments, the link
// removes the payload of further segments that arrive for it. The cookie in such a segment still makes a connection, and the
// peer sends the payload again. The link cannot correct the listener's count, but the count has no other effect.

// withoutPayload returns the TCP segment p. If p is for a listener that would drop the payload, withoutPayload removes the
// payload. The TCP header of p begins at l3, and its payload at l4.
func (l *link) withoutPayload(p []byte, l3, l4 int) []byte {
	if len(p) == l4 || l.cookies.Value() == 0 || !l.isOwn(p) {
		return p
	}
	if l.windows.heard.of(flowOf(p, l3, true)) != nil || !l.listenerDrops(p, l3) {
		return p
	}
	p = p[:l4]
	p[l3+tcpFlags] &^= uint8(header.TCPFlagFin) // the FIN follows the payload, so it is removed too
	if p[0]>>4 == 4 {
		put16(p[ip4Length:], p[ip4Checksum:], uint16(l4))
	} else {
		binary.BigEndian.PutUint16(p[ip6Length:], uint16(l4-l3))
	}
	return p // nothing reads the checksum of TCP again
}

// listenerDrops reports whether the endpoint that gets the segment p is a listener that has dropped segments.
func (l *link) listenerDrops(p []byte, l3 int) bool {
	src, dst := addressesOf(p)
	ep := l.owner.stack.FindTransportEndpoint(networkOf(p), tcp.ProtocolNumber, stack.TransportEndpointID{
		LocalAddress: tcpip.AddrFromSlice(dst.AsSlice()), LocalPort: binary.BigEndian.Uint16(p[l3+2:]),
		RemoteAddress: tcpip.AddrFromSlice(src.AsSlice()), RemotePort: binary.BigEndian.Uint16(p[l3:]),
	}, NICID)
	e, ok := ep.(*tcp.Endpoint)
	if !ok || e.EndpointState() != tcp.StateListen {
		return false
	}
	s, ok := e.Stats().(*tcp.Stats)
	return ok && s.ReceiveErrors.SegmentQueueDropped.Value() > 0
}
