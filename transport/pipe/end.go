package pipe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"

	"github.com/seed-86b749af/wireguard"
)

const (
	firstPort   = 49152 // the lowest port that an end chooses
	lastPort    = 65535
	maxDatagram = 65507 // maximum number of bytes of UDP payload in a datagram
)

// These are errors of Send. They are package variables, so that a failing train allocates nothing.
var (
	errClosed   = fmt.Errorf("pipe: the socket is closed: %w", net.ErrClosed)
	errTooBig   = fmt.Errorf("pipe: send: the datagram is larger than the MTU of its path: %w", syscall.EMSGSIZE)
	errOverlong = fmt.Errorf("pipe: send: the datagram has more than 65507 bytes: %w", syscall.EMSGSIZE)
	errFamily   = fmt.Errorf("pipe: send: the end has no address of the destination's family: %w", syscall.ENETUNREACH)
	errPlace    = errors.New("pipe: send: want an endpoint with an address and a port, and without a Link")
	errTrain    = errors.New("pipe: send: want a train with data and a Size of at least 1")
)

// An End is a host in a network, or a program on a host. It is a [wireguard.Bind], and can open any number of sockets.
// Network.NewEnd and NAT.NewEnd make it. It must not be copied. All methods are safe for concurrent use.
type End struct {
	network        *Network
	sent, received counters

	// network.mu guards the fields below.
	behind   *NAT
	addrs    []netip.Addr
	sockets  []*socket
	nextPort uint16
}

// Addrs returns the current addresses of the end.
func (e *End) Addrs() []netip.Addr {
	e.network.mu.RLock()
	defer e.network.mu.RUnlock()
	return slices.Clone(e.addrs)
}

// Endpoint returns an endpoint with the first address of the end and the given port. For an end behind a NAT, this is its
// private address. Endpoint returns the zero Endpoint if the end has no address.
func (e *End) Endpoint(port uint16) wireguard.Endpoint {
	e.network.mu.RLock()
	defer e.network.mu.RUnlock()
	if len(e.addrs) == 0 {
		return wireguard.Endpoint{}
	}
	return wireguard.EndpointOf(netip.AddrPortFrom(e.addrs[0], port))
}

// SetAddrs replaces the addresses of the end, as when a machine roams. Its sockets stay open and send from the new addresses.
// Datagrams to the old addresses no longer reach the end, not even datagrams that are already under way. An end without
// addresses can neither send nor receive. SetAddrs fails and changes nothing if the port of a socket is in use at a new
// address, or if an address cannot be the address of one host.
func (e *End) SetAddrs(addrs ...netip.Addr) error {
	e.network.mu.Lock()
	defer e.network.mu.Unlock()
	return e.network.place(e, e.behind, addrs)
}

// MoveBehind moves the end behind a NAT, or to the public network if nat is nil, and gives it new addresses as SetAddrs does.
func (e *End) MoveBehind(nat *NAT, addrs ...netip.Addr) error {
	if nat != nil && nat.network != e.network {
		return errors.New("pipe: the NAT is of another network")
	}
	e.network.mu.Lock()
	defer e.network.mu.Unlock()
	return e.network.place(e, nat, addrs)
}

// Sent counts the datagrams that sockets of the end have sent, including those that were dropped later.
func (e *End) Sent() Counts { return e.sent.load() }

// Received counts the datagrams that were put into the queues of the end's sockets. A datagram is counted just after that, so a
// receiver can return it before it is counted.
func (e *End) Received() Counts { return e.received.load() }

// Listen opens a socket on port, at every address of the end. Port 0 means that Listen chooses a port that is free at all of
// these addresses. If the port is in use at one of them, the error wraps syscall.EADDRINUSE.
func (e *End) Listen(port uint16) (wireguard.Socket, error) {
	n := e.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if port == 0 {
		port = e.choosePort()
		if port == 0 {
			return nil, fmt.Errorf("pipe: no port is free: %w", syscall.EADDRINUSE)
		}
	} else if at, taken := e.taken(port); taken {
		return nil, fmt.Errorf("pipe: %v is taken: %w", at, syscall.EADDRINUSE)
	}
	s := &socket{end: e, port: port}
	s.queue.init(n)
	e.sockets = append(e.sockets, s)
	n.add(s)
	return s, nil
}

// taken reports whether port is in use at an address of the end, and at which one. Even an end without addresses has only one
// socket per port. The caller holds network.mu.
func (e *End) taken(port uint16) (at netip.AddrPort, taken bool) {
	for _, a := range e.addrs {
		at = netip.AddrPortFrom(a, port)
		if e.network.sockets[place{e.behind, at}] != nil {
			return at, true
		}
	}
	return at, slices.ContainsFunc(e.sockets, func(s *socket) bool { return s.port == port })
}

// choosePort returns a free port, or 0 if none is free. It tries the ports in ascending order, beginning after the last one
// that it returned. So a port is not used again soon. The caller holds network.mu.
func (e *End) choosePort() uint16 {
	for range lastPort - firstPort + 1 {
		port := e.nextPort
		if e.nextPort++; e.nextPort < firstPort {
			e.nextPort = firstPort
		}
		if _, taken := e.taken(port); !taken {
			return port
		}
	}
	return 0
}

// A socket is a wireguard.Socket of an End. It has one receiver.
type socket struct {
	end    *End
	port   uint16
	closed atomic.Bool
	queue  queue
}

func (s *socket) Port() uint16 { return s.port }

func (s *socket) Receivers() []wireguard.Receiver { return []wireguard.Receiver{&s.queue} }

// Close removes the socket from the network and drops the datagrams in its queue.
func (s *socket) Close() error {
	n := s.end.network
	n.mu.Lock()
	if s.closed.Swap(true) {
		n.mu.Unlock()
		return nil
	}
	n.remove(s)
	s.end.sockets = slices.DeleteFunc(s.end.sockets, func(o *socket) bool { return o == s })
	var others []*socket
	if n.lossless {
		for _, e := range n.ends {
			others = append(others, e.sockets...)
		}
	}
	n.mu.Unlock()
	s.queue.close()
	for _, o := range others {
		o.queue.wakeSenders() // a Send of s may wait for space in the queue of o
	}
	return nil
}

// Send sends the trains and sets their errors.
func (s *socket) Send(ts []wireguard.Train) {
	for i := range ts {
		ts[i].Err = s.send(&ts[i])
	}
}

func (s *socket) send(t *wireguard.Train) error {
	switch {
	case t.Endpoint.Link != nil || !t.Endpoint.Addr.IsValid() || t.Endpoint.Addr.Port() == 0:
		return errPlace
	case len(t.Data) == 0 || t.Size < 1:
		return errTrain
	case min(t.Size, len(t.Data)) > maxDatagram:
		return errOverlong
	}
	n := s.end.network
	n.mu.RLock()
	if !n.plain() {
		n.mu.RUnlock()
		return n.sendEach(s, t)
	}
	from, err := s.source(&t.Endpoint)
	to := n.sockets[place{at: t.Endpoint.Addr}]
	n.mu.RUnlock()
	if err != nil {
		return err
	}
	return n.sendWhole(s, to, t, from)
}

// source returns the address from which a train to e is sent. It clears e.Source if this is not an address of the end. The
// caller holds network.mu, at least for reading.
func (s *socket) source(e *wireguard.Endpoint) (netip.AddrPort, error) {
	if s.closed.Load() {
		return netip.AddrPort{}, errClosed
	}
	if e.Source.IsValid() && !slices.Contains(s.end.addrs, e.Source) {
		e.Source = netip.Addr{}
	}
	v4 := e.Addr.Addr().Is4()
	if e.Source.IsValid() && e.Source.Is4() == v4 {
		return netip.AddrPortFrom(e.Source, s.port), nil
	}
	for _, a := range s.end.addrs {
		if a.Is4() == v4 {
			return netip.AddrPortFrom(a, s.port), nil
		}
	}
	return netip.AddrPort{}, errFamily
}

// sendWhole copies a whole train into the queue of the socket to, which is nil if no socket has the destination address. The
// caller does not hold n.mu, so another goroutine may close the destination socket meanwhile. The queue of that socket then
// accepts nothing.
func (n *Network) sendWhole(s, to *socket, t *wireguard.Train, from netip.AddrPort) error {
	sent := countTrain(t.Data, t.Size)
	s.end.sent.add(&sent)
	n.sent.add(&sent)
	if to == nil {
		n.fates[FateNoSocket].Add(sent.Total())
		return nil
	}
	arriving := wireguard.Train{
		Data:     t.Data,
		Size:     t.Size,
		Endpoint: wireguard.Endpoint{Addr: from, Source: t.Endpoint.Addr.Addr()},
		TOS:      t.TOS,
	}
	var waiting *socket
	if n.lossless {
		waiting = s
	}
	put, open := to.queue.put(&arriving, waiting)
	if put == len(t.Data) {
		to.end.received.add(&sent)
		n.fates[FateDelivered].Add(sent.Total())
		return nil
	}
	some := countTrain(t.Data[:put], t.Size)
	to.end.received.add(&some)
	n.fates[FateDelivered].Add(some.Total())
	fate := FateQueueFull
	if !open {
		fate = FateNoSocket
	}
	n.fates[fate].Add(sent.Total() - some.Total())
	if n.lossless && s.closed.Load() {
		return errClosed
	}
	return nil
}
