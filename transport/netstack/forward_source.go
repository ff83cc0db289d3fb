package netstack

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed-86b749af/wireguard"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A UDPSource exchanges datagrams with one UDP socket behind a peer. ReadTo returns the datagrams that the socket sends, with
// their destinations. WriteFrom sends datagrams to the socket, from any source address. A relay that opens one socket of the
// host for each UDPSource is a NAT with endpoint-independent mapping. [Flow.AcceptSource] makes a UDPSource.
//
//	n, to, err := s.ReadTo(b)       n, from, err := host.ReadFromUDPAddrPort(b)
//	host.WriteToUDPAddrPort(b[:n], to)       s.WriteFrom(b[:n], from)
//
// The Net closes a UDPSource that carries nothing for [Forwarding.UDPIdle]. A UDPSource is safe for concurrent use and must not
// be copied.
type UDPSource struct {
	lifetime
	flow *Flow

	ready chan struct{} // has an element if there may be something to read
	count atomic.Uint64 // datagrams in both directions
	mtu   atomic.Int32  // the MTU of the path, as the last ICMPv6 error says; 0 if there was none

	readMu sync.Mutex // held while a datagram is copied; guards the field into
	into   tcpip.SliceWriter

	// The rest is guarded by the forwarder's mu.
	queue  []*stack.PacketBuffer // the datagrams that wait are those from the index head on; queue holds a reference to each
	head   int
	bytes  int // bytes of memory that the queue takes
	failed error
	from   netip.AddrPort // the source address of the datagram that the error in failed is about
}

// maxSourceBytes is how many bytes of datagrams may wait in one UDPSource.
const maxSourceBytes = 256 << 10

func newUDPSource(f *Flow) *UDPSource {
	return &UDPSource{lifetime: lifetime{net: f.fw.net, done: make(chan struct{})}, flow: f, ready: make(chan struct{}, 1)}
}

// Source returns the address of the socket behind the peer.
func (s *UDPSource) Source() netip.AddrPort { return s.flow.key.src }

// Peer returns the public key of the peer that the socket is behind.
func (s *UDPSource) Peer() wireguard.PublicKey { return s.flow.peer }

// ReadTo reads one datagram into b, and returns its length and destination. The part that does not fit into b is lost. After an
// ICMP error has said that the socket no longer exists, ReadTo fails once with syscall.ECONNREFUSED. The Addr of that net.OpError
// is the source address of the datagram that could not be delivered. After Close, and after the Net has closed s, ReadTo fails with
// net.ErrClosed.
func (s *UDPSource) ReadTo(b []byte) (n int, to netip.AddrPort, err error) {
	for {
		if err := s.usable(&s.reads); err != nil {
			return 0, to, s.wrap("read", netip.AddrPort{}, err)
		}
		p, from, err := s.take()
		if err != nil {
			return 0, to, s.wrap("read", from, err)
		}
		if p != nil {
			n, to = s.copy(b, p)
			p.DecRef()
			return n, to, nil
		}
		if err := s.wait(s.ready, &s.reads); err != nil {
			return 0, to, s.wrap("read", netip.AddrPort{}, err)
		}
	}
}

// WaitReadable waits until ReadTo has something to return, or until the read deadline. It reads nothing. A program with many
// idle sources calls it before it allocates a buffer. If several goroutines read, another one may have read the datagram before
// WaitReadable returns.
func (s *UDPSource) WaitReadable() error {
	for {
		err := s.usable(&s.reads)
		if err == nil && s.isReadable() {
			return nil
		}
		if err == nil {
			err = s.wait(s.ready, &s.reads)
		}
		if err != nil {
			return s.wrap("read", netip.AddrPort{}, err)
		}
	}
}

// isReadable reports whether ReadTo has something to return. If so, it puts an element into s.ready again, because WaitReadable may
// have received the element that a goroutine in ReadTo waits for.
func (s *UDPSource) isReadable() bool {
	fw := s.flow.fw
	fw.mu.Lock()
	defer fw.mu.Unlock()
	if s.failed == nil && s.head == len(s.queue) {
		return false
	}
	s.signal()
	return true
}

// copy copies the data of p to b, and returns its length and p's destination.
func (s *UDPSource) copy(b []byte, p *stack.PacketBuffer) (n int, to netip.AddrPort) {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	s.into = b
	n, _ = p.Data().ReadTo(&s.into, true)
	s.into = nil
	return n, addrPort(tcpip.FullAddress{
		Addr: p.Network().DestinationAddress(), Port: header.UDP(p.TransportHeader().Slice()).DestinationPort(),
	})
}

// WriteFrom sends b to the socket with the source address from, which must be an address of the socket's family and of a host other
// than the Net. It waits while the queue to the device is full. A datagram that does not fit into one packet of the tunnel is sent
// in fragments.
func (s *UDPSource) WriteFrom(b []byte, from netip.AddrPort) (int, error) {
	if err := s.write(b, unmap(from)); err != nil {
		return 0, s.wrap("write", from, err)
	}
	return len(b), nil
}

func (s *UDPSource) write(b []byte, from netip.AddrPort) error {
	fw, to := s.flow.fw, s.flow.key.src
	if err := fw.checkForeign(from, to); err != nil {
		return err
	}
	link := fw.net.link
	for {
		if err := s.usable(&s.writes); err != nil {
			return err
		}
		full := link.full()
		if full == nil {
			break
		}
		if err := s.wait(full, &s.writes); err != nil {
			return err
		}
	}
	s.count.Add(1)
	return fw.datagram(from, to, b, int(s.mtu.Load()))
}

// Refuse sends the socket an ICMP error, which says that its datagrams do not reach the address to. The application that has
// the socket sees a failed send or receive.
func (s *UDPSource) Refuse(to netip.AddrPort, r Refusal) error {
	to = unmap(to)
	err := s.usable(&s.writes)
	if err == nil {
		err = s.flow.fw.checkForeign(to, s.flow.key.src)
	}
	if err == nil {
		key := flowKey{proto: protoUDP, src: s.flow.key.src, dst: to}
		err = s.flow.fw.refuse(key, udpHeader(key.src, to, 0), r)
	}
	if err != nil {
		return s.wrap("refuse", to, err)
	}
	return nil
}

// Close closes the source. The socket's next datagram begins a new flow. Closing again fails with net.ErrClosed.
func (s *UDPSource) Close() error {
	if !s.stop() {
		return s.wrap("close", netip.AddrPort{}, net.ErrClosed)
	}
	fw := s.flow.fw
	fw.mu.Lock()
	defer fw.mu.Unlock()
	if fw.sources[s.flow.key.src] == s {
		delete(fw.sources, s.flow.key.src)
	}
	for _, p := range s.queue[s.head:] {
		p.DecRef()
	}
	fw.net.budget.give(&fw.waiting, partyHolder(s.flow.peer), s.bytes)
	s.queue, s.head, s.bytes = nil, 0, 0
	fw.end(s.flow)
	return nil
}

// SetReadDeadline sets the deadline of ReadTo, also for a call that waits already. After the deadline, ReadTo fails with
// os.ErrDeadlineExceeded. The zero time means no deadline.
func (s *UDPSource) SetReadDeadline(t time.Time) error { return s.setDeadline(t, &s.reads) }

// SetWriteDeadline sets the deadline of WriteFrom, also for a call that waits already. After the deadline, WriteFrom fails with
// os.ErrDeadlineExceeded. The zero time means no deadline.
func (s *UDPSource) SetWriteDeadline(t time.Time) error { return s.setDeadline(t, &s.writes) }

func (s *UDPSource) setDeadline(t time.Time, d *deadline) error {
	if err := s.setDeadlines(t, d); err != nil {
		return s.wrap("set", netip.AddrPort{}, err)
	}
	return nil
}

// push appends the datagram p to the queue. It drops and counts p if s is closed or the queue may not take more memory. The
// forwarder's mu is held.
func (s *UDPSource) push(p *stack.PacketBuffer) {
	fw, size := s.flow.fw, p.MemSize()
	s.count.Add(1)
	if s.isClosed() || s.bytes >= maxSourceBytes || !fw.net.budget.take(&fw.waiting, partyHolder(s.flow.peer), size) {
		fw.net.link.drops.datagrams.Add(1)
		return
	}
	if s.head > 0 && len(s.queue) == cap(s.queue) { // move the datagrams to the front instead of growing the queue
		n := copy(s.queue, s.queue[s.head:])
		clear(s.queue[n:])
		s.queue, s.head = s.queue[:n], 0
	}
	s.queue = append(s.queue, p.IncRef())
	s.bytes += size
	s.signal()
}

// take removes the oldest datagram from the queue, and returns nil if there is none. If the method fail has noted an error, take
// returns that error once instead, and from is the source address of the datagram that the error is about.
func (s *UDPSource) take() (p *stack.PacketBuffer, from netip.AddrPort, err error) {
	fw := s.flow.fw
	fw.mu.Lock()
	defer fw.mu.Unlock()
	select { // remove an old notification
	case <-s.ready:
	default:
	}
	if err, from = s.failed, s.from; s.failed != nil {
		s.failed = nil
		s.signal()
		return nil, from, err
	}
	if s.head == len(s.queue) {
		return nil, from, nil
	}
	p = s.queue[s.head]
	s.queue[s.head] = nil
	s.head++
	size := p.MemSize()
	s.bytes -= size
	fw.net.budget.give(&fw.waiting, partyHolder(s.flow.peer), size)
	if s.head < len(s.queue) {
		s.signal() // notify another reader
	} else {
		s.queue, s.head = s.queue[:0], 0
	}
	return p, from, nil
}

func (s *UDPSource) signal() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// fail makes the next ReadTo return err, because an ICMP error has arrived about a datagram that WriteFrom sent from the address
// from. The forwarder's mu is held.
func (s *UDPSource) fail(from netip.AddrPort, err syscall.Errno) {
	s.failed, s.from = err, from
	s.signal()
}

// wrap turns err into an error of package net. other is the other address of the datagram, or the zero AddrPort if there is
// none.
func (s *UDPSource) wrap(op string, other netip.AddrPort, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: udpAddr(s.flow.key.src), Addr: udpAddr(other), Err: err}
}

func (s *UDPSource) finished() bool   { return s.isClosed() }
func (s *UDPSource) activity() uint64 { return s.count.Load() }
func (s *UDPSource) idles() bool      { return true }
func (s *UDPSource) reset()           { _ = s.Close() }
