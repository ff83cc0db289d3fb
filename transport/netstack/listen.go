package netstack

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A TCPListener waits for TCP connections through the tunnel. It behaves like a *net.TCPListener. It is safe for concurrent use
// and must not be copied. [Config.Memory] limits how many connections of a peer may wait for Accept.
//
// It has no File and no SyscallConn, because it has no file descriptor; use Endpoint instead.
type TCPListener struct {
	socket
	addr    *net.TCPAddr
	place   place
	waiting waitingConns
	probes  net.KeepAliveConfig // how accepted connections send keep-alive probes

	acceptMu sync.Mutex // held during an Accept
}

// backlog is how many half-open connections a listener may have at most. Config.Memory may allow fewer.
const backlog = 4096

// A ListenConfig listens on a Net, with the options of a net.ListenConfig except for Control, since a Net has no file
// descriptors. Set Net. The zero value of any other field means its default. Goroutines may use a ListenConfig concurrently as
// long as none changes its fields.
type ListenConfig struct {
	// Net is the Net to listen on.
	Net *Net

	// KeepAlive is how long an accepted connection must be idle before the stack sends keep-alive probes. Zero means 15 s, and a
	// negative value turns the probes off. It has no effect if KeepAliveConfig.Enable is true.
	KeepAlive time.Duration

	// KeepAliveConfig contains all options of the keep-alive probes. It has an effect only if its field Enable is true.
	KeepAliveConfig net.KeepAliveConfig
}

// Listen is like [Net.Listen], with the options of c. ctx has no effect, because names are not resolved.
func (c *ListenConfig) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	local, err := c.local("tcp", network, address)
	if err == nil {
		var l *TCPListener
		if l, err = c.Net.listenTCP(network, local, keepAlives(c.KeepAlive, c.KeepAliveConfig)); err == nil {
			return l, nil
		}
	}
	return nil, &net.OpError{Op: "listen", Net: network, Addr: tcpAddr(local), Err: err}
}

// ListenPacket is like [Net.ListenPacket]. ctx has no effect.
func (c *ListenConfig) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	local, err := c.local("udp", network, address)
	if err == nil {
		var u *UDPConn
		if u, err = c.Net.openUDP(network, local, netip.AddrPort{}); err == nil {
			return u, nil
		}
	}
	return nil, &net.OpError{Op: "listen", Net: network, Addr: udpAddr(local), Err: err}
}

// local parses the address to listen on.
func (c *ListenConfig) local(protocol, network, address string) (local netip.AddrPort, err error) {
	if err := checkNetwork(network, protocol); err != nil {
		return local, err
	}
	if c.Net == nil {
		return local, errNoNet
	}
	return c.Net.parseLocal(network, address)
}

// Listen listens for TCP connections. network is "tcp", "tcp4" or "tcp6", and address is "host:port". If the host is empty or
// unspecified, Listen uses all addresses of the Net. Otherwise the host must be one of these addresses, because Listen does not
// resolve names. Port 0 means a free port. As with package net, a program can listen on a port again while connections of an
// earlier listener still use it. The listener is a *[TCPListener]. Use a [ListenConfig] to set options.
func (n *Net) Listen(network, address string) (net.Listener, error) {
	return (&ListenConfig{Net: n}).Listen(context.Background(), network, address)
}

// ListenTCP is like Listen, but takes a netip.AddrPort. The zero AddrPort means all addresses and a free port.
func (n *Net) ListenTCP(local netip.AddrPort) (*TCPListener, error) {
	l, err := n.listenTCP("tcp", unmap(local), keepAlives(0, net.KeepAliveConfig{}))
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: tcpAddr(local), Err: err}
	}
	return l, nil
}

func (n *Net) listenTCP(network string, local netip.AddrPort, probes net.KeepAliveConfig) (*TCPListener, error) {
	proto, only, err := n.family(network, local.Addr())
	if err != nil {
		return nil, err
	}
	if err := noGroup(local.Addr()); err != nil {
		return nil, err
	}
	if err := n.notOurs(local.Addr()); err != nil {
		return nil, err
	}
	l := &TCPListener{probes: probes}
	n.places.Lock()
	defer n.places.Unlock()
	return l, n.makeEndpoint(tcp.ProtocolNumber, proto, func(ep tcpip.Endpoint, q *waiter.Queue) error {
		ep.SocketOptions().SetV6Only(only)
		ep.SocketOptions().SetReuseAddress(true) // the port may still have connections, also in TIME-WAIT
		if err := ep.Bind(fullAddress(local)); err != nil {
			return systemError("bind", err)
		}
		a, err := ep.GetLocalAddress()
		if err != nil {
			return systemError("getsockname", err)
		}
		l.addr = net.TCPAddrFromAddrPort(addrPortOf(a, proto))
		l.place = place{addrPort(a), proto == ipv4.ProtocolNumber || !only, proto == ipv6.ProtocolNumber}
		if err := n.places.take(l.place); err != nil {
			return err
		}
		ep.SocketOptions().SetReceiveBufferSize(waitingRecv, false)
		if err := ep.Listen(l.waiting.reserve(n) + 1); err != nil { // gVisor allows one half-open connection fewer than this number
			n.places.free(l.place)
			l.waiting.close()
			return systemError("listen", err)
		}
		l.init(n, network, ep, q)
		l.waiting.listen(ep, q)
		return nil
	})
}

// Accept waits for a connection and returns it as a *[TCPConn].
func (l *TCPListener) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// AcceptTCP waits for a connection.
func (l *TCPListener) AcceptTCP() (*TCPConn, error) {
	c, err := l.accept()
	if err != nil {
		return nil, l.wrap("accept", err)
	}
	return c, nil
}

func (l *TCPListener) accept() (*TCPConn, error) {
	l.acceptMu.Lock()
	defer l.acceptMu.Unlock()
	if err := l.usable(&l.reads); err != nil {
		return nil, err
	}
	for {
		drain(l.waiting.ready)
		if c, ok := l.waiting.pop(); ok {
			return newTCPConn(l.net, l.network, c.ep, c.q, l.probes), nil
		}
		if err := l.wait(l.waiting.ready, &l.reads); err != nil {
			return nil, err
		}
	}
}

// Close stops listening, and resets connections that Accept has not returned. A second call fails with net.ErrClosed.
func (l *TCPListener) Close() error {
	if !l.close() {
		return l.wrap("close", net.ErrClosed)
	}
	l.queue.EventUnregister(&l.waiting.entry)
	l.waiting.close()
	l.net.places.Lock()
	defer l.net.places.Unlock()
	l.net.places.free(l.place)
	return nil
}

// Addr returns the address that l listens on. It is a *net.TCPAddr, which the caller must not change.
func (l *TCPListener) Addr() net.Addr { return l.addr }

// SetDeadline sets the time at which calls of Accept, including blocked ones, fail with os.ErrDeadlineExceeded. The zero time
// means never.
func (l *TCPListener) SetDeadline(t time.Time) error {
	if err := l.setDeadlines(t, &l.reads); err != nil {
		return l.wrap("set", err)
	}
	return nil
}

func (l *TCPListener) wrap(op string, err error) error {
	return &net.OpError{Op: op, Net: l.network, Addr: l.addr, Err: err}
}

// ListenPacket listens for UDP datagrams. network is "udp", "udp4" or "udp6", and address is as for Listen. The connection is a
// *[UDPConn]. As with package net, a multicast address means that the connection listens on the port at all addresses of the Net.
// The connection receives datagrams to the multicast group only after a call of JoinGroup. ListenMulticastUDP both listens and
// joins the group.
func (n *Net) ListenPacket(network, address string) (net.PacketConn, error) {
	return (&ListenConfig{Net: n}).ListenPacket(context.Background(), network, address)
}

// ListenUDP is like ListenPacket, but takes a netip.AddrPort. The zero AddrPort means all addresses and a free port.
func (n *Net) ListenUDP(local netip.AddrPort) (*UDPConn, error) {
	c, err := n.openUDP("udp", unmap(local), netip.AddrPort{})
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "udp", Addr: udpAddr(local), Err: err}
	}
	return c, nil
}

// openUDP makes a connection that is bound to local and, if remote is valid, connected to remote.
func (n *Net) openUDP(network string, local, remote netip.AddrPort) (c *UDPConn, err error) {
	of := local.Addr()
	if remote.IsValid() {
		of = remote.Addr()
		if err := n.unreachable("connect", remote.Addr()); err != nil {
			return nil, err
		}
	}
	proto, only, err := n.family(network, of)
	if err != nil {
		return nil, err
	}
	if err := n.badLocal(local.Addr(), remote.Addr()); err != nil {
		return nil, err
	}
	err = n.makeEndpoint(udp.ProtocolNumber, proto, func(ep tcpip.Endpoint, q *waiter.Queue) error {
		ep.SocketOptions().SetV6Only(only)
		ep.SocketOptions().SetBroadcast(true) // as package net does
		if local.Addr().IsMulticast() {       // package net too then binds to all addresses, and allows others to use the port
			ep.SocketOptions().SetReuseAddress(true)
			local = netip.AddrPortFrom(netip.Addr{}, local.Port())
		}
		if local != (netip.AddrPort{}) || !remote.IsValid() {
			if err := ep.Bind(fullAddress(local)); err != nil {
				return systemError("bind", err)
			}
		}
		if remote.IsValid() {
			if err := ep.Connect(fullAddress(remote)); err != nil {
				return systemError("connect", err)
			}
		}
		c = newUDPConn(n, network, ep, q, proto, remote.IsValid(), holder{})
		if remote.IsValid() && c.remote == nil { // gVisor does not report port 0
			c.remote = net.UDPAddrFromAddrPort(remote)
		}
		return nil
	})
	return c, err
}

// family returns the network protocol of an endpoint with the address a on the named network, and whether the endpoint serves
// only that protocol. If a is not valid, the endpoint serves IPv4 and IPv6, provided that the Net has addresses of both.
func (n *Net) family(network string, a netip.Addr) (proto tcpip.NetworkProtocolNumber, only bool, err error) {
	want4, want6 := network[len(network)-1] == '4', network[len(network)-1] == '6'
	switch {
	case a.IsValid() && (want4 && !a.Is4() && a != netip.IPv6Unspecified() || want6 && !a.Is6()):
		return 0, false, &net.AddrError{Err: "not an address of network " + network, Addr: a.String()}
	case want4 && !n.has4 || want6 && !n.has6:
		return 0, false, n.missing("socket", syscall.EAFNOSUPPORT, network, want4)
	case a.Is4() && !(a.IsUnspecified() && !want4 && n.has6):
		return ipv4.ProtocolNumber, true, nil
	case a.Is6() && !a.IsUnspecified():
		return ipv6.ProtocolNumber, true, nil
	case want4 || !n.has6:
		return ipv4.ProtocolNumber, true, nil
	}
	return ipv6.ProtocolNumber, want6 || !n.has4, nil
}

// parseLocal parses the address of a listener. If the host is empty, the result contains an invalid Addr. As with package net, an
// empty address means all addresses and a free port.
func (n *Net) parseLocal(network, address string) (netip.AddrPort, error) {
	if address == "" {
		return netip.AddrPort{}, nil
	}
	host, port, err := n.splitHostPort(context.Background(), network, address)
	if err != nil || host == "" {
		return netip.AddrPortFrom(netip.Addr{}, port), err
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, &net.AddrError{Err: "want an IP address to listen on, one of " + n.addresses() + ", or no host to mean all of them", Addr: address}
	}
	return netip.AddrPortFrom(a.Unmap().WithZone(""), port), nil
}

// tcpAddr returns a as a net.Addr, or nil if a is the zero AddrPort.
func tcpAddr(a netip.AddrPort) net.Addr {
	if a == (netip.AddrPort{}) {
		return nil
	}
	return net.TCPAddrFromAddrPort(a)
}

func udpAddr(a netip.AddrPort) net.Addr {
	if a == (netip.AddrPort{}) {
		return nil
	}
	return net.UDPAddrFromAddrPort(a)
}
