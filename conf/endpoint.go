package conf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// An Endpoint is the address or the name of a peer's host, and a UDP port. Endpoints can be compared with ==. The zero value
// means no endpoint.
type Endpoint struct {
	Host string // an address without brackets, or a name
	Port uint16 // 0 only in the zero Endpoint

	// Addr is the resolved address if Host is a name. File.Resolve or the program sets it. File.Text does not write it.
	Addr netip.Addr
}

// ParseEndpoint parses "192.0.2.1:51820", "[2001:db8::1]:51820" or "vpn.example.com:51820". Like wg(8), it takes the text after
// the last colon as the port, even if the address is an IPv6 address without brackets.
func ParseEndpoint(s string) (Endpoint, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return Endpoint{}, fmt.Errorf("%s: the port is missing; want host:port, such as 192.0.2.1:51820", quote(s))
	}
	host := s[:i]
	port, ok := decimal(s[i+1:], 16)
	if !ok || port == 0 {
		return Endpoint{}, fmt.Errorf("%s: want a port from 1 to 65535 after the last colon", quote(s))
	}
	if inner, found := strings.CutPrefix(host, "["); found {
		if host, found = strings.CutSuffix(inner, "]"); !found {
			return Endpoint{}, fmt.Errorf("%s: the closing bracket is missing; want [address]:port", quote(s))
		}
	}
	return newEndpoint(host, uint16(port), s)
}

func newEndpoint(host string, port uint16, written string) (Endpoint, error) {
	a, err := netip.ParseAddr(host)
	switch {
	case err == nil && (a.Unmap().IsUnspecified() || a.Unmap().IsMulticast()):
		return Endpoint{}, fmt.Errorf("%s: want the address of one host", quote(written))
	case err == nil:
		return Endpoint{Host: host, Port: port}, nil
	case !domain.MatchString(host) || strings.Trim(host, "0123456789.") == "":
		return Endpoint{}, fmt.Errorf("%s: want an address or a name before the port", quote(written))
	}
	return Endpoint{Host: host, Port: port}, nil
}

// IsZero reports whether e is the zero Endpoint.
func (e Endpoint) IsZero() bool { return e == Endpoint{} }

// AddrPort returns the address and the port of e. ok is false if e is zero, or if its Host is a name that was not resolved.
func (e Endpoint) AddrPort() (a netip.AddrPort, ok bool) {
	addr, err := netip.ParseAddr(e.Host)
	if err != nil {
		addr = e.Addr
	}
	return netip.AddrPortFrom(addr.Unmap(), e.Port), addr.IsValid() && e.Port != 0
}

// String returns host:port as a file has it, with brackets around an IPv6 address. The result is empty for the zero Endpoint.
func (e Endpoint) String() string {
	if e.IsZero() {
		return ""
	}
	return net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))
}

// A Resolver finds the addresses of a name, with the best one first. A *net.Resolver is a Resolver.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// A Resolution says how to resolve names. The zero value resolves names as wg(8) does. It may be copied, and is safe
// for concurrent use if its Resolver and Waiting are.
type Resolution struct {
	// Resolver is the resolver to ask. Nil means net.DefaultResolver.
	Resolver Resolver

	// Network limits the answers to one family: "ip4" or "ip6". Empty means "ip": both families.
	Network string

	// Retries is the number of retries after a temporary error, such as a timeout. A name that does not exist is not retried.
	// Zero means 15, and a negative number means no retries.
	Retries int

	// Waiting is called before each wait for a retry. Nil means no call.
	Waiting func(host string, err error, wait time.Duration)
}

const (
	resolveRetries = 15
	firstWait      = time.Second
	longestWait    = 20 * time.Second
)

// Lookup returns the best address of a name: the first of [Resolution.LookupAll].
func (r Resolution) Lookup(ctx context.Context, host string) (netip.Addr, error) {
	as, err := r.LookupAll(ctx, host)
	if err != nil {
		return netip.Addr{}, err
	}
	return as[0], nil
}

// LookupAll returns the addresses of a name, with the best one first and without repeats. It returns at least one address, or an
// error. If host is an address, LookupAll returns it without asking the resolver. The wait before a retry is 1 s at first and
// then grows by a fifth each time, up to 20 s. LookupAll fails when ctx ends.
func (r Resolution) LookupAll(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	retries := r.Retries
	if retries == 0 {
		retries = resolveRetries
	}
	for wait := firstWait; ; wait = min(wait*6/5, longestWait) {
		as, err := r.try(ctx, host)
		if err == nil || !mayPass(err) || retries <= 0 {
			return as, err
		}
		retries--
		if r.Waiting != nil {
			r.Waiting(host, err, wait)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			err := ctx.Err()
			if cause := context.Cause(ctx); cause != err {
				err = fmt.Errorf("%w: %w", err, cause)
			}
			return nil, fmt.Errorf("resolve %s: %w", host, err)
		}
	}
}

func (r Resolution) try(ctx context.Context, host string) ([]netip.Addr, error) {
	var resolver Resolver = net.DefaultResolver
	if r.Resolver != nil {
		resolver = r.Resolver
	}
	network := r.Network
	if network == "" {
		network = "ip"
	}
	as, err := resolver.LookupNetIP(ctx, network, host)
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return nil, fmt.Errorf("%w; correct the name, or write an address", err)
	case err != nil:
		return nil, fmt.Errorf("resolve %s: %w; check the resolver (/etc/resolv.conf) and the network, or write an address", host, err)
	}
	if len(as) == 0 {
		return nil, fmt.Errorf("resolve %s: the name has no address; correct it, or write one", host)
	}
	var unique []netip.Addr
	for _, a := range as {
		if a = a.Unmap(); !slices.Contains(unique, a) {
			unique = append(unique, a)
		}
	}
	return unique, nil
}

// mayPass reports whether another attempt may succeed after err, because the name server failed or did not answer.
func mayPass(err error) bool {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return !dns.IsNotFound && (dns.IsTemporary || dns.IsTimeout)
	}
	return false
}

// Resolve sets the Addr of each endpoint whose Host is a name. If no endpoint of a peer can be resolved, Resolve continues with the
// other peers. The error joins one [Error], with its line number, for each such peer. For a peer with MoreEndpoints, one endpoint
// with an address suffices: Resolve first looks up each name of the peer once. If no endpoint of the peer has an address even then,
// Resolve retries only the name in Endpoint, as often as r says. Peers that have the same name get the same address.
func (f *File) Resolve(ctx context.Context, r Resolution) error {
	type answer struct {
		addr netip.Addr
		err  error
	}
	answers := make(map[string]answer)
	resolve := func(r Resolution, e *Endpoint) error {
		if _, err := netip.ParseAddr(e.Host); err == nil || e.IsZero() {
			return nil
		}
		a, asked := answers[e.Host]
		if !asked || a.err != nil && r.Retries >= 0 {
			a.addr, a.err = r.Lookup(ctx, e.Host)
			answers[e.Host] = a
		}
		if a.err == nil {
			e.Addr = a.addr
		}
		return a.err
	}
	once := r
	once.Retries = -1
	var errs []error
	for i := range f.Peers {
		p := &f.Peers[i]
		if len(p.MoreEndpoints) > 0 {
			resolve(once, &p.Endpoint)
			for j := range p.MoreEndpoints {
				resolve(once, &p.MoreEndpoints[j])
			}
			if _, ok := p.firstEndpoint(); ok {
				continue
			}
		}
		if err := resolve(r, &p.Endpoint); err != nil {
			errs = append(errs, &Error{f.at(p.from).firstLineOf("endpoint"), "Endpoint", err})
		}
	}
	return errors.Join(errs...)
}

// Endpoints returns Endpoint and MoreEndpoints, without zero Endpoints, in the order in which to try them.
func (p *Peer) Endpoints() (es []Endpoint) {
	for _, e := range append([]Endpoint{p.Endpoint}, p.MoreEndpoints...) {
		if !e.IsZero() {
			es = append(es, e)
		}
	}
	return es
}

// firstEndpoint returns the first endpoint that has an address.
func (p *Peer) firstEndpoint() (a netip.AddrPort, ok bool) {
	for _, e := range p.Endpoints() {
		if a, ok = e.AddrPort(); ok {
			return a, true
		}
	}
	return a, false
}
