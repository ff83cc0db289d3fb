package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"
)

// A Dialer connects through a Net, with the options of a net.Dialer. Set Net. The zero value of any other field means its
// default. A Dialer may be used concurrently while nobody changes its fields.
//
// A Dialer lacks four fields of a net.Dialer: Control and ControlContext, because a Net has no file descriptors; Resolver, because
// the Net's own name servers resolve names; and Cancel, which is deprecated: cancel the context instead.
type Dialer struct {
	// Net is the Net whose connections the Dialer makes.
	Net *Net

	// Timeout is how long a dial may take. Zero means no limit. If a name has several addresses and FallbackDelay is negative,
	// the time is divided among these addresses.
	Timeout time.Duration

	// Deadline is when a dial gives up. The zero time means never.
	Deadline time.Time

	// LocalAddr is the address to connect from: a *net.TCPAddr or a *net.UDPAddr. Nil means that the Net chooses.
	LocalAddr net.Addr

	// FallbackDelay is how long a dial tries one address of a name before it tries the next one as well. Zero means
	// 250 ms. A negative value means that the Dialer tries all addresses one after another.
	FallbackDelay time.Duration

	// KeepAlive is how long a TCP connection must be idle before the stack probes it. Zero means 15 s, and a negative value turns
	// the probes off. KeepAlive has no effect if KeepAliveConfig.Enable is true.
	KeepAlive time.Duration

	// KeepAliveConfig has all options of the probes. It has an effect only if its field Enable is true.
	KeepAliveConfig net.KeepAliveConfig
}

// Dial is like DialContext without a context.
func (d *Dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

// DialContext is like [Net.DialContext], with the Dialer's options.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Source: d.LocalAddr, Err: err}
	}
	if err := checkNetwork(network, "tcp", "udp"); err != nil {
		return fail(err)
	}
	if d.Net == nil {
		return fail(errNoNet)
	}
	ctx, cancel := d.limit(ctx)
	defer cancel()
	local, err := d.local(network)
	if err != nil {
		return fail(err)
	}
	host, port, err := d.Net.splitHostPort(ctx, network, address)
	if err != nil {
		return fail(err)
	}
	grace := resolutionDelay
	if d.FallbackDelay < 0 {
		grace = 0
	}
	ctx, stop := context.WithCancel(ctx) // stop ends the lookups that have not finished
	defer stop()
	addrs, late, err := d.Net.lookup(ctx, network, host, grace)
	if err != nil {
		return fail(err)
	}
	usable := func(addrs []netip.Addr) (remotes []netip.AddrPort) {
		for _, to := range addrs {
			if from := local.Addr(); !from.IsValid() || from.IsUnspecified() || from.Is4() == to.Is4() {
				remotes = append(remotes, netip.AddrPortFrom(to, port))
			}
		}
		return remotes
	}
	remotes := usable(addrs)
	for len(remotes) == 0 && late != nil {
		if more, ok := <-late; ok {
			remotes = usable(more.addresses())
		} else {
			late = nil
		}
	}
	if len(remotes) == 0 {
		return fail(&net.AddrError{Err: "no address of the family of the local address", Addr: host})
	}
	return (&attempt{d, network, local}).connect(ctx, remotes, late, usable)
}

// DialTCP connects to remote. network is "tcp", "tcp4" or "tcp6". local is the address to connect from. The zero AddrPort means
// that the Net chooses both address and port. If only the port is 0, or only the address is invalid, the Net chooses that part.
func (d *Dialer) DialTCP(ctx context.Context, network string, local, remote netip.AddrPort) (*TCPConn, error) {
	c, err := dialAddr(ctx, d, "tcp", network, local, remote, (*attempt).tcp)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Source: tcpAddr(local), Addr: tcpAddr(remote), Err: err}
	}
	return c, nil
}

// DialUDP returns a connection that sends to remote, and receives only from remote. network is "udp", "udp4" or "udp6", and
// local is as for DialTCP.
func (d *Dialer) DialUDP(ctx context.Context, network string, local, remote netip.AddrPort) (*UDPConn, error) {
	c, err := dialAddr(ctx, d, "udp", network, local, remote, (*attempt).udp)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Source: udpAddr(local), Addr: udpAddr(remote), Err: err}
	}
	return c, nil
}

// dialAddr checks the arguments of DialTCP and DialUDP, and calls dial with the time limits of d.
func dialAddr[C any](ctx context.Context, d *Dialer, protocol, network string, local, remote netip.AddrPort,
	dial func(*attempt, context.Context, netip.AddrPort) (C, error)) (c C, err error) {
	if err := checkNetwork(network, protocol); err != nil {
		return c, err
	}
	if d.Net == nil {
		return c, errNoNet
	}
	ctx, cancel := d.limit(ctx)
	defer cancel()
	return dial(&attempt{d, network, unmap(local)}, ctx, unmap(remote))
}

var (
	errNoNet         = errors.New("netstack: the field Net is not set: set it to the Net to use")
	errMissingRemote = errors.New("missing remote address")
)

// checkNetwork returns an error unless network is one of the protocols, alone or followed by 4 or 6.
func checkNetwork(network string, protocols ...string) error {
	for _, protocol := range protocols {
		if family, ok := strings.CutPrefix(network, protocol); ok && (family == "" || family == "4" || family == "6") {
			return nil
		}
	}
	return net.UnknownNetworkError(network)
}

// limit returns ctx with the time limits of d.
func (d *Dialer) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	end := d.Deadline
	if d.Timeout != 0 { // a negative Timeout has passed already, as in package net
		if t := time.Now().Add(d.Timeout); end.IsZero() || t.Before(end) {
			end = t
		}
	}
	if end.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, end)
}

// local returns d.LocalAddr, or the zero AddrPort if it is nil.
func (d *Dialer) local(network string) (netip.AddrPort, error) {
	switch a := d.LocalAddr.(type) {
	case nil:
		return netip.AddrPort{}, nil
	case *net.TCPAddr:
		if network[0] == 't' {
			return unmap(a.AddrPort()), nil
		}
	case *net.UDPAddr:
		if network[0] == 'u' {
			return unmap(a.AddrPort()), nil
		}
	}
	return netip.AddrPort{}, &net.AddrError{Err: "mismatched type of local address for network " + network, Addr: d.LocalAddr.String()}
}

// Dial is like DialContext without a context. For TCP it gives up after about two minutes, which is gVisor's limit.
func (n *Net) Dial(network, address string) (net.Conn, error) {
	return n.DialContext(context.Background(), network, address)
}

// DialContext connects to an address through the tunnel. network is "tcp", "udp", or one of them followed by 4 or 6, and address is
// "host:port". The tunnel's name servers resolve a name. DialContext tries the name's addresses as RFC 8305 (Happy Eyeballs) says:
// addresses of the two families alternate, and the next attempt begins when an earlier one has failed, or after 250 ms. DialContext
// returns the first connection that is established. From then on, ctx does not affect the connection. The connection is a
// *[TCPConn] or a *[UDPConn]. The method can be used as the field DialContext of an http.Transport. To dial with other options, use
// a [Dialer].
func (n *Net) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return (&Dialer{Net: n}).DialContext(ctx, network, address)
}

// DialTCP is like [Dialer.DialTCP] with the network "tcp".
func (n *Net) DialTCP(ctx context.Context, local, remote netip.AddrPort) (*TCPConn, error) {
	return (&Dialer{Net: n}).DialTCP(ctx, "tcp", local, remote)
}

// DialUDP is like [Dialer.DialUDP] with the network "udp".
func (n *Net) DialUDP(local, remote netip.AddrPort) (*UDPConn, error) {
	return (&Dialer{Net: n}).DialUDP(context.Background(), "udp", local, remote)
}
