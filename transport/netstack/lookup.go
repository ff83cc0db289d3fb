package netstack

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// LookupNetIP returns the addresses of host, best first. network is "ip" for both families, "ip4" or "ip6". If the lookup fails,
// the error is a *[net.DNSError], as in package net. Its field IsNotFound says that the name does not exist or has no such
// address. IsTimeout says that no server answered in time. The text names each server that was asked.
//
// The Net asks the servers of Config.DNS through the tunnel, and ignores the DNS settings and the hosts file of the operating
// system. If host is an IP address, LookupNetIP returns that address. For "localhost", it returns the loopback addresses, which a
// Net cannot reach.
func (n *Net) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	var types []dnsmessage.Type
	switch network {
	case "ip":
		types = []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA}
	case "ip4":
		types = []dnsmessage.Type{dnsmessage.TypeA}
	case "ip6":
		types = []dnsmessage.Type{dnsmessage.TypeAAAA}
	default:
		return nil, net.UnknownNetworkError(network)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a = a.Unmap(); network == "ip4" && !a.Is4() || network == "ip6" && !a.Is6() {
			return nil, &net.AddrError{Err: "no suitable address found", Addr: host}
		}
		return []netip.Addr{a}, nil
	}
	addrs, _, err := n.resolver.addresses(ctx, host, 0, types...)
	return addrs, err
}

// LookupHost returns the addresses of host as text, best first. See LookupNetIP.
func (n *Net) LookupHost(ctx context.Context, host string) ([]string, error) {
	addrs, err := n.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return texts, nil
}

// LookupIP is like LookupNetIP, but returns the addresses as net.IP.
func (n *Net) LookupIP(ctx context.Context, network, host string) ([]net.IP, error) {
	addrs, err := n.LookupNetIP(ctx, network, host)
	if err != nil {
		return nil, err
	}
	ips := make([]net.IP, len(addrs))
	for i, a := range addrs {
		ips[i] = a.AsSlice()
	}
	return ips, nil
}

// LookupIPAddr is like LookupNetIP for both families, but returns the addresses as net.IPAddr.
func (n *Net) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	addrs, err := n.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	ips := make([]net.IPAddr, len(addrs))
	for i, a := range addrs {
		ips[i] = net.IPAddr{IP: a.AsSlice(), Zone: a.Zone()}
	}
	return ips, nil
}

// LookupCNAME returns the canonical name of host, which is the name at the end of its chain of aliases, with a final dot. A host
// that has addresses and no alias is its own canonical name.
func (n *Net) LookupCNAME(ctx context.Context, host string) (string, error) {
	answers, err := n.resolver.find(ctx, host, dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeCNAME)
	if err != nil {
		return "", err
	}
	name := ""
	for _, a := range answers { // the answers with addresses come first
		switch {
		case name != "":
		case a.t != dnsmessage.TypeCNAME:
			name = a.owner
		default:
			_, all := records(a, (*dnsmessage.Parser).CNAMEResource)
			name = all[0].CNAME.String()
		}
	}
	if !validName(name) {
		return "", malformedNames(host)
	}
	return name, nil
}

// LookupTXT returns the TXT records of name. The strings of one record are joined.
func (n *Net) LookupTXT(ctx context.Context, name string) ([]string, error) {
	a, err := n.resolver.findOne(ctx, name, dnsmessage.TypeTXT)
	if err != nil {
		return nil, err
	}
	_, all := records(a, (*dnsmessage.Parser).TXTResource)
	texts := make([]string, len(all))
	for i, r := range all {
		texts[i] = strings.Join(r.TXT, "")
	}
	return texts, nil
}

// LookupSRV returns the SRV records of _service._proto.name, sorted by priority and, within a priority, at random by weight (RFC
// 2782). If service and proto are empty, it looks up name itself. cname is the name that owns the records. If some targets are
// not valid names, LookupSRV returns the records with valid targets, and an error.
func (n *Net) LookupSRV(ctx context.Context, service, proto, name string) (cname string, srvs []*net.SRV, err error) {
	full := name
	if service != "" || proto != "" {
		full = "_" + service + "._" + proto + "." + name
	}
	a, err := n.resolver.findOne(ctx, full, dnsmessage.TypeSRV)
	if err != nil {
		return "", nil, err
	}
	cname, all := records(a, (*dnsmessage.Parser).SRVResource)
	for _, r := range all {
		if target := r.Target.String(); validName(target) {
			srvs = append(srvs, &net.SRV{Target: target, Port: r.Port, Priority: r.Priority, Weight: r.Weight})
		}
	}
	sortSRV(srvs)
	if len(srvs) < len(all) {
		return cname, srvs, malformedNames(name)
	}
	return cname, srvs, nil
}

// LookupMX returns the MX records of name, sorted by preference. If some hosts are neither valid names nor IP addresses, LookupMX
// returns the other records, and an error.
func (n *Net) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	a, err := n.resolver.findOne(ctx, name, dnsmessage.TypeMX)
	if err != nil {
		return nil, err
	}
	_, all := records(a, (*dnsmessage.Parser).MXResource)
	var mxs []*net.MX
	for _, r := range all {
		host := r.MX.String()
		if _, err := netip.ParseAddr(strings.TrimSuffix(host, ".")); err == nil || validName(host) {
			mxs = append(mxs, &net.MX{Host: host, Pref: r.Pref})
		}
	}
	// "The sender-SMTP MUST randomize" hosts of equal preference (RFC 5321, section 5.1).
	rand.Shuffle(len(mxs), func(i, j int) { mxs[i], mxs[j] = mxs[j], mxs[i] })
	slices.SortStableFunc(mxs, func(a, b *net.MX) int { return cmp.Compare(a.Pref, b.Pref) })
	if len(mxs) < len(all) {
		return mxs, malformedNames(name)
	}
	return mxs, nil
}

// LookupNS returns the NS records of name. If some hosts are not valid names, LookupNS returns the other records, and an error.
func (n *Net) LookupNS(ctx context.Context, name string) ([]*net.NS, error) {
	a, err := n.resolver.findOne(ctx, name, dnsmessage.TypeNS)
	if err != nil {
		return nil, err
	}
	_, all := records(a, (*dnsmessage.Parser).NSResource)
	var hosts []*net.NS
	for _, r := range all {
		if host := r.NS.String(); validName(host) {
			hosts = append(hosts, &net.NS{Host: host})
		}
	}
	if len(hosts) < len(all) {
		return hosts, malformedNames(name)
	}
	return hosts, nil
}

// LookupAddr returns the names of an IP address. If some of them are not valid names, LookupAddr returns the valid ones, and an
// error.
func (n *Net) LookupAddr(ctx context.Context, addr string) (names []string, err error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil || ip.Zone() != "" {
		return nil, &net.DNSError{Err: "unrecognized address", Name: addr}
	}
	a, err := n.resolver.findOne(ctx, reverseName(ip), dnsmessage.TypePTR)
	if err != nil {
		return nil, err
	}
	_, all := records(a, (*dnsmessage.Parser).PTRResource)
	for _, r := range all {
		if name := r.PTR.String(); validName(name) {
			names = append(names, name)
		}
	}
	if len(names) < len(all) {
		return names, malformedNames(addr)
	}
	return names, nil
}

// sortSRV sorts by priority, and orders the records of one priority at random: "the larger the number in weight, the
// more likely" a record is ahead (RFC 2782).
func sortSRV(srvs []*net.SRV) {
	slices.SortStableFunc(srvs, func(a, b *net.SRV) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Weight, b.Weight))
	})
	for len(srvs) > 0 {
		same := slices.IndexFunc(srvs, func(s *net.SRV) bool { return s.Priority != srvs[0].Priority })
		if same < 0 {
			same = len(srvs)
		}
		shuffleSRV(srvs[:same])
		srvs = srvs[same:]
	}
}

// shuffleSRV puts the records of one priority into a random order. The caller has put records of weight 0 first, so that they
// have "a very small chance of being selected" (RFC 2782).
func shuffleSRV(srvs []*net.SRV) {
	sum := 0
	for _, s := range srvs {
		sum += int(s.Weight)
	}
	for ; len(srvs) > 1; srvs = srvs[1:] {
		at, i := rand.IntN(sum+1), 0
		for at -= int(srvs[0].Weight); at > 0; at -= int(srvs[i].Weight) {
			i++
		}
		chosen := srvs[i]
		copy(srvs[1:i+1], srvs[:i])
		srvs[0] = chosen
		sum -= int(chosen.Weight)
	}
}
