package netstack

import (
	"context"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// fallbackDelay is the head start of the preferred family (RFC 6555 recommends 150 to 250 ms; package net uses
	// 300).
	fallbackDelay = 300 * time.Millisecond
	// leastTry is the least time for one address when several addresses share a deadline.
	leastTry = 2 * time.Second
)

// Dial is like DialContext without a context. For TCP it gives up after about two minutes, which is gVisor's limit.
func (n *Net) Dial(network, address string) (net.Conn, error) {
	return n.DialContext(context.Background(), network, address)
}

// DialContext connects to an address through the tunnel. network is "tcp", "udp", or one of them followed by 4 or 6,
// and address is "host:port". The tunnel's name servers resolve a name. The addresses of its two families race, with a
// head start for the better family. DialContext tries the addresses of one family one after another. Once the
// connection is made, ctx no longer affects it. The connection is a *[TCPConn] or a *[UDPConn]. DialContext can be the
// DialContext of an http.Transport.
func (n *Net) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	switch network {
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
	default:
		return fail(net.UnknownNetworkError(network))
	}
	host, port, err := n.splitHostPort(ctx, network, address)
	if err != nil {
		return fail(err)
	}
	addrs, err := n.lookup(ctx, network, host)
	if err != nil {
		return fail(err)
	}
	remotes := make([]netip.AddrPort, len(addrs))
	for i, a := range addrs {
		remotes[i] = netip.AddrPortFrom(a, port)
	}
	return n.dialRace(ctx, network, remotes)
}

// DialTCP connects to remote. A valid local is the address to connect from; its port may be 0.
func (n *Net) DialTCP(ctx context.Context, local, remote netip.AddrPort) (*TCPConn, error) {
	c, err := n.dialTCP(ctx, local, remote)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Source: tcpAddr(local), Addr: tcpAddr(remote), Err: err}
	}
	return c, nil
}

// DialUDP returns a connection that sends to remote and receives from it alone. A valid local is the address to send
// from; its port may be 0.
func (n *Net) DialUDP(local, remote netip.AddrPort) (*UDPConn, error) {
	var c *UDPConn
	err := error(&net.AddrError{Err: "missing remote address"})
	if remote.IsValid() {
		c, err = n.openUDP("udp", unmap(local), unmap(remote))
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "udp", Source: udpAddr(local), Addr: udpAddr(remote), Err: err}
	}
	return c, nil
}

func (n *Net) dialTCP(ctx context.Context, local, remote netip.AddrPort) (c *TCPConn, err error) {
	if !remote.IsValid() {
		return nil, &net.AddrError{Err: "missing remote address"}
	}
	local, remote = unmap(local), unmap(remote)
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	var (
		ep    tcpip.Endpoint
		queue *waiter.Queue
	)
	entry, notify := waiter.NewChannelEntry(waiter.WritableEvents | hangUp)
	err = n.makeEndpoint(tcp.ProtocolNumber, protocolOf(remote.Addr()), func(e tcpip.Endpoint, q *waiter.Queue) error {
		ep, queue = e, q
		if local.IsValid() {
			if err := ep.Bind(fullAddress(local)); err != nil {
				return systemError("bind", err)
			}
		}
		queue.EventRegister(&entry)
		err := ep.Connect(fullAddress(remote))
		if _, started := err.(*tcpip.ErrConnectStarted); err != nil && !started {
			return systemError("connect", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer queue.EventUnregister(&entry)
	select {
	case <-notify:
		if err := ep.LastError(); err != nil {
			ep.Close()
			if n.isClosed() {
				return nil, net.ErrClosed
			}
			return nil, systemError("connect", err)
		}
		return newTCPConn(n, ep, queue), nil
	case <-ctx.Done():
		err = contextError(ctx)
	case <-n.done:
		err = net.ErrClosed
	}
	ep.Close()
	return nil, err
}

// dialOne connects to one address.
func (n *Net) dialOne(ctx context.Context, network string, remote netip.AddrPort) (net.Conn, error) {
	if network[0] == 'u' {
		c, err := n.openUDP(network, netip.AddrPort{}, remote)
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Addr: udpAddr(remote), Err: err}
		}
		return c, nil
	}
	c, err := n.dialTCP(ctx, netip.AddrPort{}, remote)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: tcpAddr(remote), Err: err}
	}
	return c, nil
}

// dialSerial tries one address after another and returns the first error if all fail.
func (n *Net) dialSerial(ctx context.Context, network string, remotes []netip.AddrPort) (net.Conn, error) {
	var first error
	for i, remote := range remotes {
		try, cancel := share(ctx, len(remotes)-i)
		c, err := n.dialOne(try, network, remote)
		cancel()
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// share returns ctx limited to the time that is left divided by the number of tries, but to no less than leastTry.
func share(ctx context.Context, tries int) (context.Context, context.CancelFunc) {
	end, limited := ctx.Deadline()
	if !limited || tries == 1 {
		return ctx, func() {}
	}
	left := time.Until(end)
	return context.WithTimeout(ctx, min(left, max(left/time.Duration(tries), leastTry)))
}

// dialRace tries the family of the first address. It also tries the other family once the first has failed or takes too
// long. The first connection wins. If there is none, dialRace returns the first family's error.
func (n *Net) dialRace(ctx context.Context, network string, remotes []netip.AddrPort) (net.Conn, error) {
	preferred, others := byFamily(remotes)
	if len(others) == 0 || network[0] == 'u' {
		return n.dialSerial(ctx, network, remotes)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		net.Conn
		err       error
		preferred bool
	}
	results := make(chan result) // unbuffered: a goroutine that finds no receiver closes its connection
	returned := make(chan struct{})
	defer close(returned)
	race := func(remotes []netip.AddrPort, preferred bool) {
		c, err := n.dialSerial(ctx, network, remotes)
		select {
		case results <- result{c, err, preferred}:
		case <-returned:
			if c != nil {
				_ = c.Close()
			}
		}
	}
	go race(preferred, true)
	delay := time.NewTimer(fallbackDelay)
	defer delay.Stop()
	var failure error
	for running, started := 1, false; running > 0; {
		select {
		case <-delay.C:
			if !started {
				started = true
				running++
				go race(others, false)
			}
		case r := <-results:
			if r.err == nil {
				return r.Conn, nil
			}
			if r.preferred || failure == nil {
				failure = r.err
			}
			if running--; !started {
				started = true
				running++
				go race(others, false)
			}
		}
	}
	return nil, failure
}

// byFamily returns the addresses of the first address's family, and those of the other family.
func byFamily(remotes []netip.AddrPort) (preferred, others []netip.AddrPort) {
	for _, a := range remotes {
		if a.Addr().Is4() == remotes[0].Addr().Is4() {
			preferred = append(preferred, a)
		} else {
			others = append(others, a)
		}
	}
	return preferred, others
}

func unmap(a netip.AddrPort) netip.AddrPort {
	if !a.Addr().IsValid() {
		return a
	}
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
