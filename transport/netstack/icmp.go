package netstack

import (
	"bytes"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// maxErrors is how many ICMP errors may wait for delivery. An error of more than 2 KiB counts several times: its size divided
	// by 2 KiB, rounded up.
	maxErrors = 1024
	// maxPeerErrors is how many ICMP errors of one peer may wait, counted as for maxErrors. The largest packet counts 32 times.
	maxPeerErrors = 64
	errorSize     = 2 << 10
)

// An errorQueue delivers ICMP errors to the stack on a separate goroutine. It also delivers packets that may contain an ICMP error:
// packets with extension headers and, if the stack forwards packets, fragments. To handle an error, gVisor locks the connection
// that the error is about. Another goroutine may hold that lock while it waits in WritePacket because the link's queue is full, or
// while it is in Device.Send. The goroutine that received the error must not wait for that lock, so it does not deliver the error
// itself. The zero value is ready.
type errorQueue struct {
	mu      sync.Mutex // guards the fields below
	packets []waitingError
	total   int           // the sum of the field size of all packets
	held    map[party]int // the sum of the field size of each party's packets; has only parties with packets in the queue
	running bool          // whether a goroutine is delivering
	closed  bool
}

// A waitingError is a packet in an errorQueue.
type waitingError struct {
	p     []byte
	party party
	size  int // how many times p counts; see maxErrors
}

// mayComplain reports whether this end may send another ICMP error to a. Each party (a peer, or an address that belongs to no peer)
// has a separate limit. gVisor's own limit, which is off, would count all parties together.
func (l *link) mayComplain(a netip.Addr) bool {
	now := l.owner.stack.Clock().NowMonotonic().Sub(tcpip.MonotonicTime{})
	to := l.partyOf(a)
	if l.complaints.Allow(to[:], int64(now)) {
		return true
	}
	l.drops.errors.Add(1)
	return false
}

// complains reports whether p, an outbound packet of gVisor, is an ICMP error.
func complains(p *stack.PacketBuffer) bool {
	var isError func(byte) bool
	switch p.TransportProtocolNumber {
	case header.ICMPv4ProtocolNumber:
		isError = isICMP4Error
	case header.ICMPv6ProtocolNumber:
		isError = isICMP6Error
	default:
		return false
	}
	h := p.TransportHeader().Slice()
	return len(h) > 0 && isError(h[0])
}

// icmpError queues the ICMP error p, or drops it if its checksum is wrong. sum is the ones' complement sum of p, including the
// checksum field. It is 0xffff if the checksum is right.
func (l *link) icmpError(p []byte, sum uint16) {
	if sum != 0xffff {
		l.drops.checksum.Add(1)
		return
	}
	l.errors.put(l, p)
}

// put appends a copy of p to the queue, or drops p if too many packets wait. If no goroutine delivers packets, put starts one,
// which ends when the queue is empty.
func (q *errorQueue) put(l *link, p []byte) {
	src, _ := addressesOf(p)
	from := l.partyOf(src)
	q.mu.Lock()
	defer q.mu.Unlock()
	size := max(1, (len(p)+errorSize-1)/errorSize)
	if q.closed || q.total+size > maxErrors || q.held[from]+size > maxPeerErrors {
		l.drops.errors.Add(1)
		return
	}
	if q.held == nil {
		q.held = make(map[party]int)
	}
	q.held[from] += size
	q.total += size
	q.packets = append(q.packets, waitingError{bytes.Clone(p), from, size})
	if !q.running {
		q.running = true
		l.running.Add(1) // this Add comes before errorQueue.close returns, and so before Net.Close waits
		go l.deliverErrors()
	}
}

func (q *errorQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.packets, q.held, q.total = nil, nil, 0
	q.mu.Unlock()
}

// take removes the oldest packet from the queue and returns it. If the queue is empty, take returns nil and sets q.running to
// false, because the caller's goroutine then ends.
func (q *errorQueue) take() []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.packets) == 0 {
		q.running, q.packets, q.held = false, nil, nil
		return nil
	}
	w := q.packets[0]
	q.packets[0] = waitingError{}
	q.packets = q.packets[1:]
	q.total -= w.size
	if q.held[w.party] -= w.size; q.held[w.party] == 0 {
		delete(q.held, w.party)
	}
	return w.p
}

func (l *link) deliverErrors() {
	defer l.running.Done()
	for p := l.errors.take(); p != nil; p = l.errors.take() {
		l.deliverError(p)
	}
}

// deliverError handles a packet from the queue. It drops forged errors, and reports an error to the ping or the UDPSource whose
// packet the error quotes. It delivers the packet to the stack if neither takeError nor deliverUnreachable6 has handled it.
func (l *link) deliverError(p []byte) {
	if !raiseMTU(p) {
		l.drops.malformed.Add(1)
		return
	}
	if !l.believes(p) {
		l.drops.forged.Add(1)
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

// deliverUnreachable6 reports whether p is an ICMPv6 error "destination unreachable" with a code that gVisor ignores. If so, it
// tells the connection whose packet is quoted in p that the peer is unreachable. gVisor handles only two of the seven codes. It
// ignores "address unreachable", which a WireGuard device sends.
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
	t, ok := (*d).(stack.TransportDispatcher) // gVisor's interfaces implement TransportDispatcher too
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

// An unreachable6Error describes the ICMPv6 error "destination unreachable" to gVisor.
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
