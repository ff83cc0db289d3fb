package netstack

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A lifetime ends the blocked operations of a connection: when a deadline passes, and when the connection or the Net is closed.
// It must not be copied.
type lifetime struct {
	net           *Net
	reads, writes deadline
	once          sync.Once
	done          chan struct{} // closed by stop
}

// stop ends all operations, and reports whether this was the first call.
func (s *lifetime) stop() (first bool) {
	s.once.Do(func() {
		first = true
		close(s.done)
		s.reads.stop()
		s.writes.stop()
	})
	return first
}

// A socket is the common part of all connections and listeners: gVisor's endpoint, whose methods never block, and channels that
// signal when the endpoint is ready. It must not be copied.
type socket struct {
	lifetime
	network string // the name of the network in a net.OpError, such as "udp"
	ep      tcpip.Endpoint
	queue   *waiter.Queue

	// The notifiers stay registered until the socket is closed, so that waiting allocates nothing. Each notifier is a channel
	// with a buffer of one. If the buffer is full, gVisor drops the notification, because one notification is enough.
	readable, writable         waiter.ChannelNotifier
	readableEntry, writerEntry waiter.Entry
}

const hangUp = waiter.EventErr | waiter.EventHUp

// init makes s the owner of ep. s must not be copied or moved in memory afterwards.
func (s *socket) init(n *Net, network string, ep tcpip.Endpoint, q *waiter.Queue) {
	s.net, s.network, s.ep, s.queue = n, network, ep, q
	s.done = make(chan struct{})
	s.readable, s.writable = make(waiter.ChannelNotifier, 1), make(waiter.ChannelNotifier, 1)
	s.readableEntry.Init(s.readable, waiter.ReadableEvents|hangUp)
	s.writerEntry.Init(s.writable, waiter.WritableEvents|hangUp)
	q.EventRegister(&s.readableEntry)
	q.EventRegister(&s.writerEntry)
}

// Endpoint returns gVisor's endpoint, which takes the place of SyscallConn and File. The methods GetSockOpt, SetSockOpt and
// SocketOptions of the endpoint give access to options that have no method here, such as tcpip.TCPInfoOption and
// tcpip.TCPUserTimeoutOption. Do not use the endpoint to read, write or close; use the methods of the connection. gVisor promises
// no compatibility between its versions, so this module promises none for what Endpoint returns.
func (s *socket) Endpoint() tcpip.Endpoint { return s.ep }

// usable returns net.ErrClosed if the connection or the Net is closed, os.ErrDeadlineExceeded if the deadline d has passed, and
// nil otherwise.
func (s *lifetime) usable(d *deadline) error {
	switch {
	case s.isClosed():
		return net.ErrClosed
	case d.hasPassed():
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (s *lifetime) isClosed() bool {
	select {
	case <-s.done:
		return true
	case <-s.net.done:
		return true
	default:
		return false
	}
}

// wait waits until ready signals that another attempt may succeed, and then returns nil. It returns an error if the deadline d
// passes or the connection is closed. The caller must have drained ready before the failed attempt.
func (s *lifetime) wait(ready <-chan struct{}, d *deadline) error {
	select {
	case <-ready:
		return nil
	case <-d.wait():
		return os.ErrDeadlineExceeded
	case <-s.done:
		return net.ErrClosed
	case <-s.net.done:
		return net.ErrClosed
	}
}

// drain removes an old notification.
func drain(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// failure converts err to an error of the system call that call names. If the socket is closed, it returns net.ErrClosed instead.
func (s *socket) failure(call string, err tcpip.Error) error {
	if s.isClosed() {
		return net.ErrClosed
	}
	return systemError(call, err)
}

// close ends all operations and closes the endpoint. gVisor completes the closing in the background. first reports whether this
// was the first call.
func (s *socket) close() (first bool) {
	if first = s.stop(); first {
		s.ep.Close()
		s.queue.EventUnregister(&s.readableEntry)
		s.queue.EventUnregister(&s.writerEntry)
	}
	return first
}

// makeEndpoint makes an endpoint and calls use with it. Net.Close waits for a running makeEndpoint before it aborts all
// endpoints. If use fails, makeEndpoint closes the endpoint.
func (n *Net) makeEndpoint(transport tcpip.TransportProtocolNumber, network tcpip.NetworkProtocolNumber, use func(tcpip.Endpoint, *waiter.Queue) error) error {
	n.life.RLock()
	defer n.life.RUnlock()
	if n.isClosed() {
		return net.ErrClosed
	}
	q := new(waiter.Queue)
	ep, err := n.stack.NewEndpoint(transport, network, q)
	if err != nil {
		return systemError("socket", err)
	}
	if err := use(ep, q); err != nil {
		ep.Close()
		return err
	}
	return nil
}

// setDeadlines sets all deadlines in ds to t.
func (s *lifetime) setDeadlines(t time.Time, ds ...*deadline) error {
	if s.isClosed() {
		return net.ErrClosed
	}
	for _, d := range ds {
		d.set(t)
	}
	return nil
}

// fullAddress converts a to gVisor's type. An invalid address means any address. fullAddress does not set the interface, because
// gVisor would then treat any IPv4 address as local.
func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	f := tcpip.FullAddress{Port: a.Port()}
	if a.Addr().IsValid() && !a.Addr().IsUnspecified() {
		f.Addr = tcpip.AddrFromSlice(a.Addr().AsSlice())
	}
	return f
}

// addrPort converts f to a netip.AddrPort. An IPv4 address is never in its IPv6-mapped form.
func addrPort(f tcpip.FullAddress) netip.AddrPort { return netip.AddrPortFrom(addr(f.Addr), f.Port) }

// addr converts a to a netip.Addr. The result is never IPv6-mapped, and is invalid if a is empty.
func addr(a tcpip.Address) netip.Addr {
	ip, _ := netip.AddrFromSlice(a.AsSlice())
	return ip.Unmap()
}
