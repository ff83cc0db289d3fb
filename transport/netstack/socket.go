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

// A socket is what all kinds of connections and listeners share: an endpoint of gVisor's, which never blocks, and the
// means to wait for it. It must not be copied.
type socket struct {
	net     *Net
	network string // as in net.OpError
	ep      tcpip.Endpoint
	queue   *waiter.Queue

	// Registered for the life of the socket, so that waiting allocates nothing. A channel of one element: a
	// notification that finds it full is covered by the one that is there.
	readable, writable         waiter.ChannelNotifier
	readableEntry, writerEntry waiter.Entry

	reads, writes deadline

	once sync.Once
	done chan struct{} // closed by close
}

const hangUp = waiter.EventErr | waiter.EventHUp

// init makes s the owner of ep. s must not move afterwards.
func (s *socket) init(n *Net, network string, ep tcpip.Endpoint, q *waiter.Queue) {
	s.net, s.network, s.ep, s.queue = n, network, ep, q
	s.done = make(chan struct{})
	s.readable, s.writable = make(waiter.ChannelNotifier, 1), make(waiter.ChannelNotifier, 1)
	s.readableEntry.Init(s.readable, waiter.ReadableEvents|hangUp)
	s.writerEntry.Init(s.writable, waiter.WritableEvents|hangUp)
	q.EventRegister(&s.readableEntry)
	q.EventRegister(&s.writerEntry)
}

// usable is why an operation with the limit d cannot be begun, or nil.
func (s *socket) usable(d *deadline) error {
	switch {
	case s.isClosed():
		return net.ErrClosed
	case d.hasPassed():
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (s *socket) isClosed() bool {
	select {
	case <-s.done:
		return true
	case <-s.net.done:
		return true
	default:
		return false
	}
}

// wait returns nil when it is worth trying again, or why to give up. ready must have been drained before the try
// that did not succeed.
func (s *socket) wait(ready <-chan struct{}, d *deadline) error {
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

// drain takes a notification of before.
func drain(c waiter.ChannelNotifier) {
	select {
	case <-c:
	default:
	}
}

// failure is err, of the system call named, or net.ErrClosed if closing is what it is about.
func (s *socket) failure(call string, err tcpip.Error) error {
	if s.isClosed() {
		return net.ErrClosed
	}
	return systemError(call, err)
}

// close ends all operations and lets go of the endpoint, which finishes on its own. It reports whether it was the first.
func (s *socket) close() (first bool) {
	s.once.Do(func() {
		first = true
		close(s.done)
		s.ep.Close()
		s.queue.EventUnregister(&s.readableEntry)
		s.queue.EventUnregister(&s.writerEntry)
		s.reads.stop()
		s.writes.stop()
	})
	return first
}

// makeEndpoint makes an endpoint and calls use with it, all of which is done before Close looks for endpoints to
// abort. If use fails, the endpoint is closed.
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

// SetDeadline is SetReadDeadline and SetWriteDeadline at once.
func (s *socket) setDeadlines(t time.Time, ds ...*deadline) error {
	if s.isClosed() {
		return net.ErrClosed
	}
	for _, d := range ds {
		d.set(t)
	}
	return nil
}

// fullAddress is a in gVisor's words. An invalid address is any one. No interface is named: gVisor would then take any
// IPv4 address for a local one.
func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	f := tcpip.FullAddress{Port: a.Port()}
	if a.Addr().IsValid() && !a.Addr().IsUnspecified() {
		f.Addr = tcpip.AddrFromSlice(a.Addr().AsSlice())
	}
	return f
}

// addrPort is f in the words of netip, IPv4 always as such.
func addrPort(f tcpip.FullAddress) netip.AddrPort {
	a, _ := netip.AddrFromSlice(f.Addr.AsSlice())
	return netip.AddrPortFrom(a.Unmap(), f.Port)
}
