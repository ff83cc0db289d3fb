package netstack

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// A lookuper has the lookup methods of a *net.Resolver.
type lookuper interface {
	LookupAddr(ctx context.Context, addr string) ([]string, error)
	LookupCNAME(ctx context.Context, host string) (string, error)
	LookupHost(ctx context.Context, host string) ([]string, error)
	LookupIP(ctx context.Context, network, host string) ([]net.IP, error)
	LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error)
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
	LookupNS(ctx context.Context, name string) ([]*net.NS, error)
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupPort(ctx context.Context, network, service string) (int, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
}

// TestLookupMethods checks that lookuper has all lookup methods of a *net.Resolver, and that a Net implements it.
func TestLookupMethods(t *testing.T) {
	want, got := reflect.TypeFor[*net.Resolver](), reflect.TypeFor[lookuper]()
	for i := range want.NumMethod() {
		if name := want.Method(i).Name; strings.HasPrefix(name, "Lookup") {
			if _, ok := got.MethodByName(name); !ok {
				t.Errorf("*net.Resolver has the method %s, which lookuper lacks", name)
			}
		}
	}
	for _, r := range []reflect.Type{want, reflect.TypeFor[*Net]()} {
		if !r.Implements(got) {
			t.Errorf("%v does not implement %v", r, got)
		}
	}
}

// TestAsPackageNet compares the results of a Net, of its *net.Resolver, and of a resolver of package net that asks the same
// server.
func TestAsPackageNet(t *testing.T) {
	n, _ := namesNet(t, Config{Addresses: []netip.Addr{a4, a6}}, honest)
	direct := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return n.DialContext(ctx, network, "10.8.0.2:53")
	}}
	ctx := t.Context()
	show := func(v any, err error) string {
		var dns *net.DNSError
		if errors.As(err, &dns) {
			err = fmt.Errorf("%s: %s, not found %t, timeout %t, temporary %t", dns.Name, dns.Err, dns.IsNotFound, dns.IsTimeout, dns.IsTemporary)
		}
		return fmt.Sprintf("%v, %v", v, err)
	}
	sorted := func(s []string, err error) string { slices.Sort(s); return show(s, err) }
	for what, lookup := range map[string]func(lookuper) string{
		"addresses":             func(r lookuper) string { return sorted(r.LookupHost(ctx, "both.test.")) },
		"upper case":            func(r lookuper) string { return sorted(r.LookupHost(ctx, "BOTH.Test.")) },
		"one family":            func(r lookuper) string { return sorted(r.LookupHost(ctx, "six.test.")) },
		"no such name":          func(r lookuper) string { return sorted(r.LookupHost(ctx, "nowhere.test.")) },
		"no such record":        func(r lookuper) string { return sorted(r.LookupHost(ctx, "empty.test.")) },
		"alias":                 func(r lookuper) string { return sorted(r.LookupHost(ctx, "alias2.test.")) },
		"alias to nothing":      func(r lookuper) string { return sorted(r.LookupHost(ctx, "astray.test.")) },
		"IPv4":                  func(r lookuper) string { return show(r.LookupIP(ctx, "ip4", "both.test.")) },
		"IPv6":                  func(r lookuper) string { return show(r.LookupIP(ctx, "ip6", "both.test.")) },
		"IPv6, no record":       func(r lookuper) string { return show(r.LookupIP(ctx, "ip6", "four.test.")) },
		"IPAddr":                func(r lookuper) string { return show(r.LookupIPAddr(ctx, "four.test.")) },
		"IPAddr with zone":      func(r lookuper) string { return show(r.LookupIPAddr(ctx, "fe80::1%eth0")) },
		"network":               func(r lookuper) string { return show(r.LookupIP(ctx, "tcp", "four.test.")) },
		"literal":               func(r lookuper) string { return sorted(r.LookupHost(ctx, "10.1.2.3")) },
		"literal IPv6":          func(r lookuper) string { return show(r.LookupIP(ctx, "ip6", "fd00::1")) },
		"literal, wrong family": func(r lookuper) string { return show(r.LookupIP(ctx, "ip4", "fd00::1")) },
		"empty":                 func(r lookuper) string { return sorted(r.LookupHost(ctx, "")) },
		"not a name":            func(r lookuper) string { return sorted(r.LookupHost(ctx, "a b.test.")) },
		"a number":              func(r lookuper) string { return sorted(r.LookupHost(ctx, "1.2.3.4.5")) },
		"CNAME":                 func(r lookuper) string { return show(r.LookupCNAME(ctx, "alias.test.")) },
		"CNAME of a name":       func(r lookuper) string { return show(r.LookupCNAME(ctx, "six.test.")) },
		"CNAME of nothing":      func(r lookuper) string { return show(r.LookupCNAME(ctx, "nowhere.test.")) },
		"CNAME to nothing":      func(r lookuper) string { return show(r.LookupCNAME(ctx, "astray.test.")) },
		"TXT":                   func(r lookuper) string { return show(r.LookupTXT(ctx, "text.test.")) },
		"TXT over TCP":          func(r lookuper) string { return show(r.LookupTXT(ctx, "long.test.")) },
		"TXT, no record":        func(r lookuper) string { return show(r.LookupTXT(ctx, "four.test.")) },
		"MX":                    func(r lookuper) string { return showAll(r.LookupMX(ctx, "mail.test.")) },
		"MX with bad names":     func(r lookuper) string { return showAll(r.LookupMX(ctx, "badmail.test.")) },
		"NS":                    func(r lookuper) string { return showAll(r.LookupNS(ctx, "ns.test.")) },
		"NS with bad names":     func(r lookuper) string { return showAll(r.LookupNS(ctx, "badns.test.")) },
		"PTR":                   func(r lookuper) string { return show(r.LookupAddr(ctx, "10.8.0.2")) },
		"PTR IPv6":              func(r lookuper) string { return show(r.LookupAddr(ctx, "fd08::2")) },
		"PTR, no record":        func(r lookuper) string { return show(r.LookupAddr(ctx, "10.8.0.99")) },
		"PTR with bad names":    func(r lookuper) string { return show(r.LookupAddr(ctx, "10.8.0.66")) },
		"PTR of no address":     func(r lookuper) string { return show(r.LookupAddr(ctx, "four.test")) },
		"SRV":                   func(r lookuper) string { return showSRV(r.LookupSRV(ctx, "web", "tcp", "test.")) },
		"SRV by name":           func(r lookuper) string { return showSRV(r.LookupSRV(ctx, "", "", "_web._tcp.test.")) },
		"SRV, no record":        func(r lookuper) string { return showSRV(r.LookupSRV(ctx, "mud", "tcp", "test.")) },
		"SRV with bad names":    func(r lookuper) string { return showSRV(r.LookupSRV(ctx, "bad", "tcp", "test.")) },
		"port":                  func(r lookuper) string { return show(r.LookupPort(ctx, "tcp", "8080")) },
		"port by name":          func(r lookuper) string { return show(r.LookupPort(ctx, "tcp", "https")) },
		"port, unknown name":    func(r lookuper) string { return show(r.LookupPort(ctx, "tcp", "quux-4")) },
		"port too large":        func(r lookuper) string { return show(r.LookupPort(ctx, "udp", "65536")) },
		"port, wrong network":   func(r lookuper) string { return show(r.LookupPort(ctx, "icmp", "http")) },
	} {
		ours, stub, theirs := lookup(n), lookup(n.Resolver()), lookup(direct)
		if ours != theirs {
			t.Errorf("%s: the Net returns\n\t%s\nwant, as from package net\n\t%s", what, ours, theirs)
		}
		if stub != theirs {
			t.Errorf("%s: the Net's *net.Resolver returns\n\t%s\nwant, as from package net\n\t%s", what, stub, theirs)
		}
	}
}

func showAll[T any](ps []*T, err error) string {
	var s []string
	for _, p := range ps {
		s = append(s, fmt.Sprintf("%+v", *p))
	}
	return fmt.Sprint(s, err)
}

func showSRV(cname string, srvs []*net.SRV, err error) string {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		err = fmt.Errorf("%s: %s, not found %t", dns.Name, dns.Err, dns.IsNotFound)
	}
	return cname + showAll(srvs, nil) + fmt.Sprint(err)
}

// TestAliases checks names with several aliases in a row. Unlike package net, a Net returns the name at the end of the chain as the
// canonical name.
func TestAliases(t *testing.T) {
	n, _ := namesNet(t, Config{}, honest)
	if name, err := n.LookupCNAME(t.Context(), "alias2.test"); name != "four.test." || err != nil {
		t.Errorf("LookupCNAME of alias2.test: %q, %v; want four.test., the end of the chain of aliases", name, err)
	}
	_, err := n.LookupHost(t.Context(), "loop.test")
	var dns *net.DNSError
	if !errors.As(err, &dns) || dns.IsNotFound || !strings.Contains(dns.Err, "loop") {
		t.Errorf("LookupHost of aliases that form a loop: %v, want an error that mentions the loop", err)
	}

	// This server returns only the alias of the name in the question, and does not follow the alias.
	n, s := namesNet(t, Config{}, func(q *dnsmessage.Message, overTCP bool, reply func([]byte)) {
		testZone.answer(q)
		q.RCode, q.Authorities = dnsmessage.RCodeSuccess, nil
		q.Answers = slices.DeleteFunc(q.Answers, func(r dnsmessage.Resource) bool { return r.Header.Name != q.Questions[0].Name })
		reply(packed(q, overTCP))
	})
	if ips, err := n.LookupNetIP(t.Context(), "ip4", "alias2.test"); len(ips) != 1 || err != nil || ips[0] != b4 {
		t.Errorf("LookupNetIP of aliases that the server does not follow: %v, %v; want only 10.8.0.2", ips, err)
	}
	s[0].questions()
	_, err = n.LookupHost(t.Context(), "loop.test")
	if !errors.As(err, &dns) || dns.IsNotFound || !strings.Contains(dns.Err, "loop") {
		t.Errorf("LookupHost of aliases that form a loop over several answers: %v, want an error that mentions the loop", err)
	}
	if asked := len(s[0].questions()); asked > 4 {
		t.Errorf("the Net asked %d questions about a loop of two aliases, want at most one per alias and type", asked)
	}
}

// TestSRVWeights checks how often sortSRV puts each record first. The measured counts may differ from the expected ones by eight
// standard deviations.
func TestSRVWeights(t *testing.T) {
	const rounds = 20_000
	first := make(map[string]int)
	for range rounds {
		srvs := []*net.SRV{
			{Target: "last.", Priority: 2, Weight: 1000}, {Target: "light.", Priority: 1, Weight: 10},
			{Target: "heavy.", Priority: 1, Weight: 30}, {Target: "zero.", Priority: 1},
		}
		sortSRV(srvs)
		first[srvs[0].Target]++
		if srvs[3].Target != "last." {
			t.Fatal("sortSRV did not put the record with priority 2 after all records with priority 1")
		}
		names := []string{srvs[0].Target, srvs[1].Target, srvs[2].Target}
		if slices.Sort(names); !slices.Equal(names, []string{"heavy.", "light.", "zero."}) {
			t.Fatalf("sortSRV changed the records with priority 1 to %v, want heavy., light. and zero. in any order", names)
		}
	}
	// sortSRV chooses the first record with a random number from 0 to 40 (RFC 2782): 0 chooses zero, 1 to 10 choose light, and 11
	// to 40 choose heavy.
	for target, share := range map[string]float64{"zero.": 1. / 41, "light.": 10. / 41, "heavy.": 30. / 41} {
		want, slack := rounds*share, 8*math.Sqrt(rounds*share*(1-share))
		if got := float64(first[target]); math.Abs(got-want) > slack {
			t.Errorf("sortSRV put %s first %v times in %d rounds, want about %.0f", target, got, rounds, want)
		}
	}
	sortSRV(nil)
}
