package udp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"

	"github.com/seed-86b749af/wireguard"
)

// A Bind is a [wireguard.Bind] that opens the system's UDP sockets. Its fields are options. The zero value listens on all
// addresses of IPv4 and IPv6, with every offload that the system has. Several devices may use the same Bind. A Bind is safe for
// concurrent use while no goroutine changes its fields.
type Bind struct {
	// Address is the local address to listen on. If it has a zone, the zone must be the name of an interface. 0.0.0.0 means all
	// IPv4 addresses but no IPv6, and :: means all IPv6 addresses but no IPv4. The zero Addr means all addresses of both families.
	Address netip.Addr

	// Interface is the name of the network interface that sends and receives the datagrams, as in "eth0". Empty means any
	// interface. Listen fails on systems other than Linux, macOS and Windows if it is set.
	Interface string

	// Control is called on each new socket after this package has set its options and before it binds the socket, so that it can
	// set more options or change those of this package. network is "udp4" or "udp6". If Control returns an error, Listen fails.
	// There is one exception: if the error wraps syscall.EAFNOSUPPORT and Address is not set, Listen only leaves out this family.
	// If Control is nil, it is not called.
	Control func(network, address string, c syscall.RawConn) error

	// NoOffload makes each message carry only one datagram instead of a train. One system call still passes many messages.
	// NoOffload has an effect on Linux only, since this package uses no offload on other systems.
	NoOffload bool

	// Portable makes Linux use the code for other systems, which passes one datagram per system call.
	Portable bool

	// Receivers is the number of sockets per family, from 1 to 256, all on one port. The device reads each socket on a separate
	// goroutine, so that several cores can receive at the same time. The datagrams from one address and port stay on one
	// socket. Zero means one socket if the program uses fewer than 4 cores (runtime.GOMAXPROCS), and otherwise one socket for
	// every two cores. Systems other than Linux and Android always have one socket per family.
	//
	// With several sockets, other programs cannot bind to the port, except those of the same user that set SO_REUSEPORT. Such a
	// program can bind to the port, but it receives no datagrams of the Bind, with one exception: if the Bind listens on all
	// addresses and the program binds to a single address, the program receives the datagrams for that address. If Control sets
	// SO_REUSEPORT, a Receivers of zero means one socket.
	Receivers int

	// The fields below are only set in the copy of the Bind that a Socket keeps.
	count  int  // sockets per family
	shared bool // the sockets get SO_REUSEADDR, to be bound to the port of an older socket with this option; see Socket.Renew
	beside path // the path of the socket beside which the next socket is bound; nil means that the next socket is bound alone
}

// A family is a version of IP. It is also the index for Socket.paths and Socket.others.
type family int

const (
	ipv4 family = iota
	ipv6
	families // the number of families

	noFamily family = -1 // the family of an endpoint without an address
)

const (
	// pairTries is how many ports Listen tries until it finds one that is free in both families.
	pairTries = 100

	// bufferSize is the size of the buffer that this package asks for in each direction of a socket, in bytes.
	bufferSize = 7 << 20
)

func (f family) network() string { return [...]string{"udp4", "udp6"}[f] }
func (f family) String() string  { return [...]string{"IPv4", "IPv6"}[f] }

func (f family) any() netip.Addr {
	if f == ipv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// familyOf returns the family of the socket that sends to a. For an IPv4-mapped IPv6 address, this is IPv4.
func familyOf(a netip.Addr) family {
	switch {
	case a.Is4(), a.Is4In6():
		return ipv4
	case a.Is6():
		return ipv6
	}
	return noFamily
}

// Listen opens the sockets of each family, all on port, or on one port that the system chooses if port is 0. It leaves out a
// family that the host does not have. The Socket is a *[Socket].
func (b *Bind) Listen(port uint16) (wireguard.Socket, error) {
	count, err := b.receivers()
	if err != nil {
		return nil, err
	}
	own := *b
	own.Address, own.count = b.Address.Unmap(), count
	b = &own
	if b.Interface != "" {
		if _, err := net.InterfaceByName(b.Interface); err != nil {
			return nil, noInterface(b.Interface, err)
		}
	}
	for try := 1; ; try++ {
		s, err := b.listen(port)
		if err == nil {
			return s, nil
		}
		// The system chose the port for the first family, but the port is in use in the second family. Try another port.
		if port == 0 && try < pairTries && errors.Is(err, errnoInUse) {
			continue
		}
		return nil, b.explain(err, port)
	}
}

// listen tries once to open the sockets of each family. If port is 0, all sockets use the port that the system chose for the
// first socket.
func (b *Bind) listen(port uint16) (*Socket, error) {
	s := &Socket{bind: b, port: port}
	var missing error
	for f := range families {
		if b.Address.IsValid() && familyOf(b.Address) != f {
			continue
		}
		p, err := b.open(f, s.port)
		if err != nil && !b.Address.IsValid() && isMissing(err) {
			missing = err
			continue
		}
		if err == nil {
			s.paths[f] = p
			s.port = uint16(p.socket().udp.LocalAddr().(*net.UDPAddr).Port)
		}
		if err == nil && !b.shared {
			err = s.join(f)
		}
		if err != nil {
			s.Close()
			return nil, err
		}
	}
	if s.paths == [families]path{} {
		return nil, missing
	}
	return s, nil
}

// open opens one socket and returns its path.
func (b *Bind) open(f family, port uint16) (path, error) {
	c := &conn{family: f}
	address := b.Address
	if !address.IsValid() {
		address = f.any()
	}
	lc := net.ListenConfig{Control: func(network, address string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) { err = c.configure(fd, b) }); e != nil {
			return e
		}
		if err == nil && (b.shared || b.beside != nil) {
			if e := raw.Control(func(fd uintptr) { err = b.share(fd) }); e != nil {
				return e
			}
		}
		if err == nil && b.Control != nil {
			err = b.Control(network, address, raw)
		}
		return err
	}}
	pc, err := lc.ListenPacket(context.Background(), f.network(), netip.AddrPortFrom(address, port).String())
	if err != nil {
		return nil, err
	}
	c.udp = pc.(*net.UDPConn)
	if c.raw, err = c.udp.SyscallConn(); err != nil {
		pc.Close()
		return nil, err
	}
	return c.path(b), nil
}

// share sets the options that b requires so that the socket can be bound to a port that other sockets have.
func (b *Bind) share(fd uintptr) (err error) {
	if b.shared {
		_, err = setShared(fd, true)
	}
	if err == nil && b.beside != nil {
		_, err = setReuse(fd, true)
	}
	return err
}

// A path sends and receives the datagrams of one socket. Its type is linuxPath or portable.
type path interface {
	wireguard.Receiver

	// send sends those trains of ts whose endpoints are of the path's family, and sets the Err of those that fail.
	send(ts []wireguard.Train)

	socket() *conn
}

// A conn is one socket of the system.
type conn struct {
	family family
	udp    *net.UDPConn
	raw    syscall.RawConn
	gso    bool // the system can send a train in one call
	gro    bool // the system may return a received train in one call

	also io.Closer // Socket.Close closes this too; may be nil

	retired atomic.Pointer[retirement] // set by Retire; nil before

	in  traffic
	_   [64]byte // keeps in and out on separate cache lines, because different cores count the two directions
	out traffic
}

func (c *conn) socket() *conn { return c }

// A Socket is the [wireguard.Socket] of a Bind: one UDP socket per family and receiver, on one port. Bind.Listen makes it.
// It must not be copied. It is safe for concurrent use.
type Socket struct {
	bind   *Bind // a copy, which Renew uses
	port   uint16
	paths  [families]path   // the first socket of each family; nil where the host lacks the family
	others [families][]path // the other sockets of each family
}

// Port returns the local port, which all sockets share.
func (s *Socket) Port() uint16 { return s.port }

// Send sends each train, and sets its Err if the train or a part of it was not sent; see [wireguard.Socket]. It waits only while
// the send buffer of a socket is full. The system empties this buffer without the help of this program, and Close ends the wait.
func (s *Socket) Send(ts []wireguard.Train) {
	var used [families]path
	for i := range ts {
		t := &ts[i]
		switch f := familyOf(t.Endpoint.Addr.Addr()); {
		case f == noFamily:
			t.Err = errNoAddress
		case s.paths[f] == nil:
			t.Err = errNoFamily[f]
		case used[f] == nil:
			used[f] = s.sender(f, t.Endpoint.Addr)
		}
	}
	for _, p := range used {
		if p != nil {
			p.send(ts)
		}
	}
}

// SetMark marks all datagrams that are sent from now on. It uses SO_MARK on Linux (which needs CAP_NET_ADMIN), SO_USER_COOKIE on
// FreeBSD, and SO_RTABLE on OpenBSD. Zero removes the mark. On other systems any mark other than zero is an error.
func (s *Socket) SetMark(mark uint32) error {
	for _, p := range s.all() {
		var err error
		if e := p.socket().raw.Control(func(fd uintptr) { err = setMark(fd, mark) }); e != nil {
			return closedOr(e)
		}
		if err != nil {
			return markError(mark, err)
		}
	}
	return nil
}

// Close closes the sockets, and ends the waits of receivers and senders. Closing again does nothing.
func (s *Socket) Close() error {
	for _, p := range s.all() {
		c := p.socket()
		c.udp.Close() // the only error is that it was closed before
		if c.also != nil {
			c.also.Close()
		}
	}
	return nil
}
