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

// A resolver asks the tunnel's name servers through package net's resolver, which it makes use Go's code and reach its
// servers through the tunnel.
type resolver struct {
	net     *Net
	servers []netip.AddrPort
	current atomic.Uint32 // the server to ask, modulo their number; incremented when a server does not answer
	r       net.Resolver
}

var errNoServers = errors.New("netstack: no server in Config.DNS is of a family in Config.Addresses: add one that is")

func (r *resolver) init(n *Net, servers []netip.Addr) {
	r.net = n
	for _, a := range servers {
		if slices.ContainsFunc(n.addrs, func(own netip.Addr) bool { return own.Is4() == a.Is4() }) {
			r.servers = append(r.servers, netip.AddrPortFrom(a, 53))
		}
	}
	r.r = net.Resolver{PreferGo: true, Dial: r.dial}
}

// Resolver returns a resolver that asks the servers of Config.DNS through the tunnel. It looks up addresses, TXT, SRV,
// MX and all other records that package net knows, and uses TCP for answers that are too long for a datagram. Like
// every resolver of package net, it reads the system's hosts file first, and tries the system's search list for names
// that do not end in a dot.
func (n *Net) Resolver() *net.Resolver { return &n.resolver.r }

// dial connects to the current name server instead of the server in the system's configuration.
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
		return &udpQuery{u, q}, nil // package net distinguishes datagrams and streams by their methods
	}
	return &tcpQuery{c, q}, nil
}

// A query is a connection to a name server. If it gets no answer, it moves the resolver on to the next server.
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

// lookup returns the addresses of host that network can reach, best first. An empty or unspecified host means the Net
// itself.
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
		host += "." // the system's search list does not apply to names inside the tunnel
	}
	addrs, err := n.resolver.r.LookupNetIP(ctx, family, host)
	if err != nil && n.isClosed() {
		return nil, net.ErrClosed // package net keeps only the text of the error
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

// rank orders destinations by family. Package net sorts them by what the system's interfaces can reach, which does not
// matter here. RFC 6724 puts a destination with the same label as our own address first (rule 5), and then IPv6 (rule
// 6). So a unique local address of ours does not make IPv6 preferred for global destinations.
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
