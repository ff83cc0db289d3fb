package netstack

import (
	"bytes"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// maxErrors is how many ICMP errors may wait for delivery.
const maxErrors = 64

// An errorQueue delivers ICMP errors to the stack on a separate goroutine. It also delivers packets that may hide an
// ICMP error: fragments, and packets with extension headers. For an error, gVisor takes the lock of the connection that
// the error is about. The holder of that lock may be waiting for room in WritePacket, or be in Device.Send. So the
// receiving goroutine must not deliver errors: it would wait. The zero value is ready.
type errorQueue struct {
	mu      sync.Mutex // guards the fields below
	packets [][]byte
	running bool // whether a goroutine is delivering
	closed  bool
}

// icmpError takes the ICMP error p. sum is the sum over p, including the checksum field.
func (l *link) icmpError(p []byte, sum uint16) {
	if sum != 0xffff {
		l.drops.checksum.Add(1)
		return
	}
	l.errors.put(l, p)
}

// put copies p. The goroutine ends when the queue is empty.
func (q *errorQueue) put(l *link, p []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.packets) == maxErrors {
		l.drops.errors.Add(1)
		return
	}
	q.packets = append(q.packets, bytes.Clone(p))
	if !q.running {
		q.running = true
		l.running.Add(1) // before close returns, and so before Close waits for running
		go l.deliverErrors()
	}
}

func (q *errorQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.packets = nil
	q.mu.Unlock()
}

func (l *link) deliverErrors() {
	defer l.running.Done()
	q := &l.errors
	for {
		q.mu.Lock()
		if len(q.packets) == 0 {
			q.running = false
			q.packets = nil
			q.mu.Unlock()
			return
		}
		p := q.packets[0]
		q.packets = q.packets[1:]
		q.mu.Unlock()

		l.deliverError(p)
	}
}

// deliverError hands a packet from the queue to the stack and, if it is an error, to the pings and the UDPSources.
func (l *link) deliverError(p []byte) {
	if !raiseMTU(p) {
		l.drops.malformed.Add(1)
		return
	}
	if p[0]>>4 == 4 {
		if !isFragment4(p) {
			l.owner.pings.fail(p)
			if l.forward != nil && l.forward.takeError(p) {
				return
			}
		}
		l.deliver(ipv4.ProtocolNumber, p, int(p[0]&15)*4, false)
		return
	}
	if p[ip6Next] == protoICMP6 {
		l.owner.pings.fail(p)
		if l.forward != nil && l.forward.takeError(p) || l.deliverUnreachable6(p) {
			return
		}
	}
	l.deliver(ipv6.ProtocolNumber, p, header.IPv6MinimumSize, false)
}

// deliverUnreachable6 tells the connection that the ICMPv6 error p is about that its peer cannot be reached, and
// reports whether p was such an error. gVisor itself knows two of the seven codes, and "address unreachable", which a
// device sends, is not one of them.
func (l *link) deliverUnreachable6(p []byte) bool {
	const icmp, quote = header.IPv6MinimumSize, header.IPv6MinimumSize + header.ICMPv6DstUnreachableMinimumSize
	if len(p) < quote+header.IPv6MinimumSize || header.ICMPv6Type(p[icmp]) != header.ICMPv6DstUnreachable {
		return false
	}
	switch header.ICMPv6Code(p[icmp+1]) {
	case header.ICMPv6NetworkUnreachable, header.ICMPv6PortUnreachable:
		return false
	}
	to := l.portOf(p)
	if to == nil {
		return true
	}
	d := to.dispatcher.Load()
	if d == nil {
		return true
	}
	t, ok := (*d).(stack.TransportDispatcher) // gVisor's interfaces implement both
	if !ok {
		return false
	}
	quoted := header.IPv6(p[quote:])
	var b buffer.Buffer
	appendPayload(&b, p[quote+header.IPv6MinimumSize:])
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: b})
	defer pkt.DecRef()
	pkt.NetworkProtocolNumber = ipv6.ProtocolNumber
	t.DeliverTransportError(quoted.SourceAddress(), quoted.DestinationAddress(), ipv6.ProtocolNumber,
		tcpip.TransportProtocolNumber(quoted[ip6Next]), unreachable6Error{code: p[icmp+1]}, pkt)
	return true
}

// An unreachable6Error is the ICMPv6 error "destination unreachable" in gVisor's words.
type unreachable6Error struct{ code uint8 }

func (unreachable6Error) Origin() tcpip.SockErrOrigin { return tcpip.SockExtErrorOriginICMP6 }
func (unreachable6Error) Type() uint8                 { return uint8(header.ICMPv6DstUnreachable) }
func (e unreachable6Error) Code() uint8               { return e.code }
func (unreachable6Error) Info() uint32                { return 0 }
func (unreachable6Error) Kind() stack.TransportErrorKind {
	return stack.DestinationHostUnreachableTransportError
}

func isICMP4Error(t byte) bool {
	switch header.ICMPv4Type(t) {
	case header.ICMPv4DstUnreachable, header.ICMPv4SrcQuench, header.ICMPv4Redirect, header.ICMPv4TimeExceeded, header.ICMPv4ParamProblem:
		return true
	}
	return false
}

// RFC 4443, section 2.1: "error messages are identified as such by a zero in the high-order bit of their message Type
// field values".
func isICMP6Error(t byte) bool { return t < 128 }
