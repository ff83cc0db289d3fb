package netstack

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A UDPConn sends and receives datagrams through the tunnel. It behaves like a *net.UDPConn and returns the same errors. A dialed
// UDPConn has a fixed remote address. It is safe for concurrent use and must not be copied.
//
// It has no File and no SyscallConn, because it has no file descriptor. Methods such as SetTOS, SetTTL, SetDontFragment and
// JoinGroup take the place of socket options; use Endpoint for other options. quic-go uses ECN and UDP_SEGMENT only if the
// connection has a SyscallConn; interop/apps/quicconn_test.go shows a wrapper that provides one. The methods of PacketConn in
// packages ipv4 and ipv6 of golang.org/x/net need a file descriptor, so they fail with a UDPConn. The type ControlMessage of
// these packages works with ReadMsgUDP and WriteMsgUDP.
type UDPConn struct {
	socket
	local, remote *net.UDPAddr // remote is nil unless dialed
	bound         netip.Addr   // the local address; invalid means all addresses
	is4           bool         // whether the endpoint is for IPv4 alone
	mapped        bool         // whether the endpoint serves both families, with IPv4 addresses mapped into IPv6
	foreign       bool         // whether the local address belongs to another host; see Flow.Accept
	whole         atomic.Bool  // whether datagrams must not be fragmented

	readMu   sync.Mutex // held during a read
	arrivals arrivals
	filler   waiter.Entry // the event handler that fills arrivals

	writeMu sync.Mutex // guards from and to
	from    bytes.Reader
	to      tcpip.FullAddress
}

// newUDPConn returns a connection that owns the endpoint ep. network is the name of the network in a net.OpError, such as "udp". h
// is the holder to which the budget charges datagrams that wait to be read; the zero holder means the connection itself.
func newUDPConn(n *Net, network string, ep tcpip.Endpoint, q *waiter.Queue, proto tcpip.NetworkProtocolNumber, dialed bool, h holder) *UDPConn {
	c := &UDPConn{is4: proto != ipv6.ProtocolNumber}
	if h == (holder{}) {
		h.socket = &c.arrivals
	}
	c.mapped = !c.is4 && !ep.SocketOptions().GetV6Only()
	c.init(n, network, ep, q)
	reportAll(ep.SocketOptions())
	c.arrivals.init(n, ep, h)
	c.filler = waiter.NewFunctionEntry(waiter.ReadableEvents, func(waiter.EventMask) { c.arrivals.arrive() })
	q.EventRegister(&c.filler)
	if a, err := ep.GetLocalAddress(); err == nil {
		c.local = net.UDPAddrFromAddrPort(addrPortOf(a, proto))
		c.bound = addrPort(a).Addr()
	}
	if dialed {
		if a, err := ep.GetRemoteAddress(); err == nil {
			c.remote = net.UDPAddrFromAddrPort(addrPort(a))
		}
	}
	return c
}

// Read reads one datagram. The part that does not fit into b is lost.
func (c *UDPConn) Read(b []byte) (int, error) {
	n, _, err := c.read(b, nil)
	return n, c.wrap("read", nil, err)
}

// ReadFrom reads one datagram and returns its source, which is a *net.UDPAddr. The part that does not fit into b is lost.
func (c *UDPConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDP(b)
	if err != nil {
		return n, nil, err
	}
	return n, from, nil
}

// ReadFromUDP is like ReadFrom, but returns the source as a *net.UDPAddr.
func (c *UDPConn) ReadFromUDP(b []byte) (int, *net.UDPAddr, error) {
	n, from, err := c.read(b, nil)
	if err != nil {
		return n, nil, c.wrap("read", nil, err)
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// ReadFromUDPAddrPort is like ReadFrom, but does not allocate. It never returns an IPv4 address in its IPv6-mapped form.
func (c *UDPConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, from, err := c.read(b, nil)
	return n, from, c.wrap("read", nil, err)
}

// read reads one datagram into b. It stores what control messages report about the datagram in m, which may be nil.
func (c *UDPConn) read(b []byte, m *received) (int, netip.AddrPort, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if err := c.usable(&c.reads); err != nil {
		return 0, netip.AddrPort{}, err
	}
	for {
		drain(c.readable)
		d, err := c.arrivals.pop()
		switch err.(type) {
		case nil:
			n, from := copy(b, d.data), d.from
			if m != nil {
				*m = d.received
			}
			d.free()
			return n, from, nil
		case *tcpip.ErrWouldBlock:
		case *tcpip.ErrClosedForReceive:
			return 0, netip.AddrPort{}, net.ErrClosed
		default:
			return 0, netip.AddrPort{}, c.failure(c.call("read", "recvfrom"), err)
		}
		if err := c.wait(c.readable, &c.reads); err != nil {
			return 0, netip.AddrPort{}, err
		}
	}
}

// WaitReadable waits until a datagram can be read, or until the read deadline. It does not read the datagram. A program with many
// idle sockets can call WaitReadable before it allocates a buffer for the read. If several goroutines read, another one may have
// read the datagram before WaitReadable returns.
func (c *UDPConn) WaitReadable() error { return c.wrap("read", nil, c.waitReadable()) }

func (c *UDPConn) waitReadable() error {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	for {
		if err := c.usable(&c.reads); err != nil {
			return err
		}
		drain(c.readable)
		if c.arrivals.isReadable() || c.ep.Readiness(hangUp) != 0 {
			return nil
		}
		if err := c.wait(c.readable, &c.reads); err != nil {
			return err
		}
	}
}

// Write sends one datagram to the dialed address.
func (c *UDPConn) Write(b []byte) (int, error) {
	if c.remote == nil {
		return 0, c.wrap("write", nil, systemError("write", &tcpip.ErrDestinationRequired{}))
	}
	n, err := c.write(b, netip.AddrPort{})
	return n, c.wrap("write", nil, err)
}

// WriteTo sends one datagram to addr, which must be a *net.UDPAddr.
func (c *UDPConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	to, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, c.wrap("write", addr, refused("sendto", syscall.EINVAL, "want a *net.UDPAddr, not an address of type "+network(addr)))
	}
	return c.WriteToUDP(b, to)
}

// WriteToUDP is like WriteTo, but takes a *net.UDPAddr.
func (c *UDPConn) WriteToUDP(b []byte, addr *net.UDPAddr) (int, error) {
	if addr == nil {
		return 0, c.wrap("write", nil, errMissingRemote)
	}
	if c.remote == nil && !addr.AddrPort().IsValid() {
		return 0, c.wrap("write", addr, &net.AddrError{Err: "not an IP address", Addr: addr.String()})
	}
	return c.WriteToUDPAddrPort(b, addr.AddrPort())
}

// WriteToUDPAddrPort is like WriteTo, with a netip.AddrPort.
func (c *UDPConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	var n int
	var err error
	switch {
	case c.remote != nil:
		err = net.ErrWriteToConnected
	case !to.Addr().IsValid():
		err = errMissingRemote
	default:
		n, err = c.write(b, to)
	}
	if err != nil {
		return n, c.wrap("write", net.UDPAddrFromAddrPort(to), err)
	}
	return n, nil
}

// write sends b to the destination (to), or to the dialed address if to is the zero AddrPort.
func (c *UDPConn) write(b []byte, to netip.AddrPort) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if err := c.usable(&c.writes); err != nil {
		return 0, err
	}
	var opts tcpip.WriteOptions
	if to != (netip.AddrPort{}) {
		to = unmap(to)
		if err := c.reaches("sendto", to.Addr()); err != nil {
			return 0, err
		}
		c.to = c.fullAddress(c.net.self(to))
		opts.To = &c.to
	}
	if err := c.fits(c.call("write", "sendto"), len(b), c.sends4(to)); err != nil {
		return 0, err
	}
	if err := c.arrivals.takeError(); err != nil {
		return 0, c.failure(c.call("write", "sendto"), err)
	}
	defer c.from.Reset(nil)
	for {
		if err := c.waitForRoom(); err != nil {
			return 0, err
		}
		drain(c.writable)
		c.from.Reset(b)
		n, err := c.ep.Write(&c.from, opts)
		switch err.(type) {
		case nil:
			return int(n), nil
		case *tcpip.ErrNoBufferSpace: // meanwhile, other senders have filled the link's queue
			if err := c.usable(&c.writes); err != nil {
				return 0, err
			}
			continue
		case *tcpip.ErrWouldBlock:
		default:
			return 0, c.failure(c.call("write", "sendto"), err)
		}
		if err := c.wait(c.writable, &c.writes); err != nil {
			return 0, err
		}
	}
}

// reaches returns an error that says why c cannot send to the destination (to), or nil if it can. The destination must not be an
// IPv4 address in its IPv6-mapped form.
func (c *UDPConn) reaches(call string, to netip.Addr) error {
	if err := c.net.unreachable(call, to); err != nil {
		return err
	}
	switch {
	case c.is4 && !to.Is4():
		return &net.AddrError{Err: "the connection is for IPv4 alone, and this is not an IPv4 address", Addr: to.String()}
	case !c.is4 && !c.mapped && to.Is4():
		return refused(call, syscall.ENETUNREACH, to.String()+" is an IPv4 address, and the connection is for IPv6 alone; use one of network udp")
	}
	return nil
}

// call returns the name of the system call that package net would have made: the name in dialed if c was dialed, and the name in
// other if not.
func (c *UDPConn) call(dialed, other string) string {
	if c.remote != nil {
		return dialed
	}
	return other
}

// sends4 reports whether a datagram to the destination (to) is an IPv4 packet. The zero AddrPort means the dialed address.
func (c *UDPConn) sends4(to netip.AddrPort) bool {
	if to.IsValid() {
		return to.Addr().Is4()
	}
	return c.remote.IP.To4() != nil
}

// waitForRoom waits until the link's queue has space. It returns an error if the write deadline passes or the connection is
// closed.
func (c *UDPConn) waitForRoom() error {
	for full := c.net.link.full(); full != nil; full = c.net.link.full() {
		if err := c.wait(full, &c.writes); err != nil {
			return err
		}
		if err := c.usable(&c.writes); err != nil {
			return err
		}
	}
	return nil
}

// fullAddress converts a destination (to) to the form that the endpoint needs. The destination must not be IPv6-mapped.
func (c *UDPConn) fullAddress(to netip.AddrPort) tcpip.FullAddress {
	a := to.Addr()
	if c.mapped && a.Is4() {
		a = netip.AddrFrom16(a.As16())
	}
	return tcpip.FullAddress{Addr: tcpip.AddrFromSlice(a.AsSlice()), Port: to.Port()}
}

// Close closes the connection. A second call fails with net.ErrClosed.
func (c *UDPConn) Close() error {
	if !c.close() {
		return c.wrap("close", nil, net.ErrClosed)
	}
	c.queue.EventUnregister(&c.filler)
	c.arrivals.close()
	return nil
}

// LocalAddr returns a *net.UDPAddr, which the caller must not change.
func (c *UDPConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns a *net.UDPAddr, which the caller must not change, or nil if c was not dialed.
func (c *UDPConn) RemoteAddr() net.Addr {
	if c.remote == nil {
		return nil
	}
	return c.remote
}

// SetDeadline calls SetReadDeadline and SetWriteDeadline.
func (c *UDPConn) SetDeadline(t time.Time) error {
	return c.wrap("set", nil, c.setDeadlines(t, &c.reads, &c.writes))
}

// SetReadDeadline sets the time at which reads, including blocked ones, fail with os.ErrDeadlineExceeded. The zero time means
// never.
func (c *UDPConn) SetReadDeadline(t time.Time) error {
	return c.wrap("set", nil, c.setDeadlines(t, &c.reads))
}

// SetWriteDeadline sets the time at which writes, including blocked ones, fail with os.ErrDeadlineExceeded. The zero time means
// never.
func (c *UDPConn) SetWriteDeadline(t time.Time) error {
	return c.wrap("set", nil, c.setDeadlines(t, &c.writes))
}

// SetReadBuffer sets how many bytes of datagrams may wait to be read. Each datagram counts as its payload plus 128 bytes or more.
// The default is 212 KiB. [Config.Memory] also limits these bytes. Datagrams beyond either limit are lost and counted in
// [Stats].DatagramsDropped.
func (c *UDPConn) SetReadBuffer(bytes int) error {
	if c.isClosed() {
		return c.wrap("set", nil, net.ErrClosed)
	}
	c.arrivals.resize(bytes)
	return nil
}

// SetWriteBuffer sets how many bytes of datagrams may be queued for the device at a time.
func (c *UDPConn) SetWriteBuffer(bytes int) error {
	if c.isClosed() {
		return c.wrap("set", nil, net.ErrClosed)
	}
	c.ep.SocketOptions().SetSendBufferSize(int64(bytes), true)
	return nil
}

// SetTOS sets the type of service of IPv4 datagrams and the traffic class of IPv6 datagrams: 0 to 255, with the ECN bits.
// The default is 0. The device copies the ECN bits to the packets of the tunnel and back.
func (c *UDPConn) SetTOS(tos int) error {
	return c.setNumber(tos, 0, 255, tcpip.IPv4TOSOption, tcpip.IPv6TrafficClassOption)
}

// SetTTL sets the TTL of IPv4 datagrams and the hop limit of IPv6 datagrams: 1 to 255. The default is 64. For multicast
// addresses, use SetMulticastTTL.
func (c *UDPConn) SetTTL(ttl int) error {
	return c.setNumber(ttl, 1, 255, tcpip.IPv4TTLOption, tcpip.IPv6HopLimitOption)
}

// SetDontFragment says whether datagrams must not be fragmented. If on is true, writing a datagram that is larger than the Net's
// MTU fails with syscall.EMSGSIZE, and routers must not fragment datagrams either. The default is false: the Net fragments larger
// datagrams.
func (c *UDPConn) SetDontFragment(on bool) error {
	strategy := tcpip.PMTUDiscoveryDont
	if on {
		strategy = tcpip.PMTUDiscoveryDo
	}
	if err := c.setNumber(int(strategy), 0, 255, tcpip.MTUDiscoverOption); err != nil {
		return err
	}
	c.whole.Store(on)
	return nil
}

// setNumber sets each of options to v, which must be between least and most.
func (c *UDPConn) setNumber(v, least, most int, options ...tcpip.SockOptInt) error {
	if c.isClosed() {
		return c.wrap("set", nil, net.ErrClosed)
	}
	if v < least || v > most {
		return c.wrap("set", nil, refused("setsockopt", syscall.EINVAL, fmt.Sprintf("want %d to %d, not %d", least, most, v)))
	}
	for _, o := range options {
		if err := c.ep.SetSockOptInt(o, v); err != nil {
			return c.wrap("set", nil, c.failure("setsockopt", err))
		}
	}
	return nil
}

// wrap turns err into a *net.OpError. remote is the remote address of the failed call, or nil for the dialed address.
func (c *UDPConn) wrap(op string, remote net.Addr, err error) error {
	if err == nil {
		return nil
	}
	e := &net.OpError{Op: op, Net: c.network, Addr: remote, Err: err}
	if c.local != nil {
		e.Source = c.local
	}
	if remote == nil && c.remote != nil {
		e.Addr = c.remote
	}
	return e
}

func network(a net.Addr) string {
	if a == nil {
		return "nil"
	}
	return a.Network()
}

// addrPortOf converts f, the local address of an endpoint. If the endpoint is not bound to a specific address, the result has the
// unspecified address of its family.
func addrPortOf(f tcpip.FullAddress, proto tcpip.NetworkProtocolNumber) netip.AddrPort {
	if f.Addr.Len() == 0 {
		if proto == ipv6.ProtocolNumber {
			return netip.AddrPortFrom(netip.IPv6Unspecified(), f.Port)
		}
		return netip.AddrPortFrom(netip.IPv4Unspecified(), f.Port)
	}
	return addrPort(f)
}
