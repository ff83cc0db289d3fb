package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
)

// A resolver asks the tunnel's name servers by way of package net's own resolver, which is told to use Go's code and
// to reach its servers through the tunnel.
type resolver struct {
	net     *Net
	servers []netip.AddrPort
	current atomic.Uint32 // the server to ask, modulo their number; moves on when one does not answer
	r       net.Resolver
}

var errNoServers = errors.New("netstack: Config.DNS names no server of a family that the Net has an address of")

func (r *resolver) init(n *Net, servers []netip.Addr) {
	r.net = n
	for _, a := range servers {
		if slices.ContainsFunc(n.addrs, func(own netip.Addr) bool { return own.Is4() == a.Is4() }) {
			r.servers = append(r.servers, netip.AddrPortFrom(a, 53))
		}
	}
	r.r = net.Resolver{PreferGo: true, Dial: r.dial}
}

// Resolver returns a resolver that asks Config.DNS through the tunnel: for addresses, TXT, SRV, MX and all else that
// package net knows, with TCP for answers that are too long for a datagram. Like every resolver of package net it looks
// at the system's hosts file first, and tries the system's search list for names that do not end in a dot.
func (n *Net) Resolver() *net.Resolver { return &n.resolver.r }

// dial connects to the current name server in place of the one that the system's configuration names.
func (r *resolver) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	if len(r.servers) == 0 {
		return nil, errNoServers
	}
	i := r.current.Load()
	q := query{resolver: r, asked: i}
	server := r.servers[i%uint32(len(r.servers))]
	c, err := r.net.dialOne(ctx, network, server)
	if err != nil {
		q.failed()
		return nil, err
	}
	if u, ok := c.(*UDPConn); ok {
		return &udpQuery{u, q}, nil // package net tells datagrams from streams by the methods
	}
	return &tcpQuery{c, q}, nil
}

// A query is a connection's part in the choice of the server: whoever gets no answer moves on to the next.
type query struct {
	*resolver
	asked uint32
}

func (q *query) failed() { q.current.CompareAndSwap(q.asked, q.asked+1) }

type udpQuery struct {
	*UDPConn
	query
}

func (q *udpQuery) Read(b []byte) (int, error) {
	n, err := q.UDPConn.Read(b)
	if err != nil {
		q.failed()
	}
	return n, err
}

type tcpQuery struct {
	net.Conn
	query
}

func (q *tcpQuery) Read(b []byte) (int, error) {
	n, err := q.Conn.Read(b)
	if err != nil {
		q.failed()
	}
	return n, err
}

// splitHostPort parses "host:port", where port may be the name of a service.
func (n *Net) splitHostPort(ctx context.Context, network, address string) (host string, port uint16, err error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	p, err := n.resolver.r.LookupPort(ctx, network, service)
	return host, uint16(p), err
}

// lookup is the addresses of host that network can reach, best first. An empty or unspecified host is the Net itself.
func (n *Net) lookup(ctx context.Context, network, host string) ([]netip.Addr, error) {
	want4, want6 := !strings.HasSuffix(network, "6"), !strings.HasSuffix(network, "4")
	unfit := func(a netip.Addr) bool { return a.Is4() && !want4 || a.Is6() && !want6 }
	if a, err := netip.ParseAddr(host); err == nil || host == "" {
		a = a.Unmap().WithZone("")
		addrs := []netip.Addr{a}
		if host == "" || a.IsUnspecified() {
			addrs = slices.Clone(n.addrs)
		}
		if addrs = slices.DeleteFunc(addrs, unfit); len(addrs) == 0 {
			return nil, &net.AddrError{Err: "no suitable address", Addr: host}
		}
		return addrs, nil
	}
	family := "ip"
	switch want4, want6 = want4 && n.has4, want6 && n.has6; {
	case !want6:
		family = "ip4"
	case !want4:
		family = "ip6"
	}
	if !strings.HasSuffix(host, ".") {
		host += "." // the system's search list is not about names inside the tunnel
	}
	addrs, err := n.resolver.r.LookupNetIP(ctx, family, host)
	if err != nil && n.isClosed() {
		return nil, net.ErrClosed // package net keeps the text of why a question failed, and not the error
	}
	if err != nil {
		return nil, err
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return n.rank(a) - n.rank(b) })
	return addrs, nil
}

// rank orders destinations by family. Package net sorts them by what the system's own interfaces could reach, which is
// beside the point here. RFC 6724: a destination whose label is that of our own address comes first (rule
// 5), and of the others IPv6 (rule 6), so a unique local address does not draw global destinations away from IPv4.
func (n *Net) rank(to netip.Addr) int {
	if to.Is4() {
		return 1
	}
	for _, own := range n.addrs {
		if own.Is6() && own.IsPrivate() == to.IsPrivate() {
			return 0
		}
	}
	return 2
}
