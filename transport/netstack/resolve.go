package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// A resolver looks up names at the tunnel's name servers. It neither reads the host's files nor asks the host's resolver.
//
//	resolve.go   the names that Dial gets
//	lookup.go    the methods of Net, which have the signatures of net.Resolver
//	find.go      what these methods share: the search list, several types of records at once
//	names.go     search list, names with special rules
//	ask.go       the choice of servers; questions that several lookups share
//	cache.go     answers that are kept
//	exchange.go  one question to one server
//	answer.go    what a message says
//	stub.go      the *net.Resolver for code that needs one
type resolver struct {
	net     *Net
	servers []nameServer
	missing error // says why servers is empty
	search  []string
	ndots   int
	timeout time.Duration
	stub    net.Resolver

	mu      sync.Mutex // guards the fields below, and the state of each server; held only briefly
	cache   answerCache
	flights map[question]*flight // the questions that are being asked; never more than there are waiting lookups
}

const (
	defaultDNSTimeout = 10 * time.Second
	defaultNdots      = 1
)

// init prepares r. It does not keep c.
func (r *resolver) init(n *Net, c *Config) {
	r.net, r.servers, r.missing, r.search = n, nil, nil, nil
	for _, a := range c.DNS {
		at := netip.AddrPortFrom(a, 53)
		usable := slices.ContainsFunc(n.addrs, func(own netip.Addr) bool { return own.Is4() == a.Is4() })
		if usable && !slices.ContainsFunc(r.servers, func(s nameServer) bool { return s.addr == at }) {
			r.servers = append(r.servers, nameServer{addr: at})
		}
	}
	switch {
	case len(c.DNS) == 0:
		r.missing = errors.New("Config.DNS names no server: add one, or use IP addresses instead of names")
	case len(r.servers) == 0:
		r.missing = fmt.Errorf("no server in Config.DNS (%v) is of a family in Config.Addresses (%v): add one that is", c.DNS, n.addrs)
	}
	for _, s := range c.Search {
		if s = searchDomain(s); s != "" {
			r.search = append(r.search, s)
		}
	}
	r.ndots, r.timeout = c.Ndots, c.DNSTimeout
	if r.ndots == 0 {
		r.ndots = defaultNdots
	}
	if r.timeout == 0 {
		r.timeout = defaultDNSTimeout
	}
	r.stub = net.Resolver{PreferGo: true, Dial: r.dialStub}
}

// splitHostPort parses "host:port", where port may be the name of a service.
func (n *Net) splitHostPort(ctx context.Context, network, address string) (host string, port uint16, err error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	p, err := n.LookupPort(ctx, network, service)
	return host, uint16(p), err
}

// lookup returns the addresses of host that network can reach, best first. An empty or unspecified host means the Net itself. See
// resolver.addresses for grace and late.
func (n *Net) lookup(ctx context.Context, network, host string,
	grace time.Duration) (addrs []netip.Addr, late <-chan *answer, err error) {
	want4, want6 := !strings.HasSuffix(network, "6"), !strings.HasSuffix(network, "4")
	unfit := func(a netip.Addr) bool { return a.Is4() && !want4 || a.Is6() && !want6 }
	if a, err := netip.ParseAddr(host); err == nil || host == "" {
		a = a.Unmap().WithZone("")
		addrs := []netip.Addr{a}
		if host == "" || a.IsUnspecified() {
			addrs = slices.Clone(n.addrs)
		}
		if addrs = slices.DeleteFunc(addrs, unfit); len(addrs) == 0 {
			return nil, nil, &net.AddrError{Err: "no suitable address found", Addr: host}
		}
		return addrs, nil, nil
	}
	var types []dnsmessage.Type // the Net asks only about families of which it has an address
	if want4 && n.has4 {
		types = append(types, dnsmessage.TypeA)
	}
	if want6 && n.has6 {
		types = append(types, dnsmessage.TypeAAAA)
	}
	if len(types) == 0 {
		return nil, nil, &net.AddrError{Err: fmt.Sprintf("no address of network %s in Config.Addresses (%v): add one", network, n.addrs), Addr: host}
	}
	return n.resolver.addresses(ctx, host, grace, types...)
}

// rank returns the rank of a destination: the Net tries destinations with a lower rank first. Package net also considers which
// destinations the system's interfaces can reach, which does not matter here. RFC 6724 prefers a destination whose label matches
// that of the source address (rule 5), and then IPv6 (rule 6). So if the Net's only IPv6 address is a unique local address, the
// Net tries IPv4 before global IPv6 destinations.
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
