package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func TestDialName(t *testing.T) {
	a, b := pair(t)
	s := serveDNS(t, b)
	echo(t, b, ":80")
	c, err := a.Dial("tcp", "four.test:http")
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c)
	_ = c.Close()
	s.questions()
	_, err = a.Dial("tcp", "nowhere.test:80")
	var dns *net.DNSError
	if !errors.As(err, &dns) || !dns.IsNotFound || dns.Server != "10.8.0.2:53" {
		t.Errorf("dial of a name that does not exist: %v, want a DNSError from 10.8.0.2:53 that says so", err)
	}
	// The Net must not use the search list of the operating system. The first answer says that the name does not exist, which
	// holds for both families. But the Net may have sent the other question before that answer arrived.
	if asked := s.questions(); len(asked) > 2 {
		t.Errorf("the dial asked %v, want at most one question per family", asked)
	}
	if _, err := a.Dial("tcp6", "four.test:80"); err == nil {
		t.Error("a dial over IPv6 of a name without IPv6 addresses succeeded")
	}
}

// TestDialFamilies checks that Dial does not ask for addresses of a family that it cannot use.
func TestDialFamilies(t *testing.T) {
	const a, aaaa = dnsmessage.TypeA, dnsmessage.TypeAAAA
	for _, x := range []struct {
		own     []netip.Addr
		network string
		want    []dnsmessage.Type
	}{
		{[]netip.Addr{a4}, "tcp", []dnsmessage.Type{a}},
		{[]netip.Addr{a4, a6}, "tcp", []dnsmessage.Type{a, aaaa}},
		{[]netip.Addr{a4, a6}, "udp", []dnsmessage.Type{a, aaaa}},
		{[]netip.Addr{a4, a6}, "tcp4", []dnsmessage.Type{a}},
		{[]netip.Addr{a4, a6}, "udp6", []dnsmessage.Type{aaaa}},
		{[]netip.Addr{a4}, "tcp6", nil},
	} {
		n, s := namesNet(t, Config{Addresses: x.own}, fails(dnsmessage.RCodeServerFailure))
		_, err := n.Dial(x.network, "both.test:80")
		if err == nil {
			t.Fatalf("%v: the dial succeeded although the name server only reports failures", x)
		}
		if x.want == nil && !strings.Contains(err.Error(), "Config.Addresses") {
			t.Errorf("dial of %s with the addresses %v: %v; want an error that mentions Config.Addresses", x.network, x.own, err)
		}
		var types []dnsmessage.Type
		for _, q := range s[0].questions() {
			types = append(types, q.t)
		}
		if slices.Sort(types); !slices.Equal(types, x.want) {
			t.Errorf("dial of %s with the addresses %v: the Net asked for %v, want %v", x.network, x.own, types, x.want)
		}
	}
}

// TestUnreachableServer gives a Net three name servers. The Net does not use the first one, because the Net has no IPv6 address. An
// ICMP error reports that the second server is unreachable. The test checks that the Net then asks the third server, and asks it
// first from then on.
func TestUnreachableServer(t *testing.T) {
	_, b := pair(t)
	s := serveDNS(t, b)
	n, err := New(Config{Addresses: []netip.Addr{a4}, DNS: []netip.Addr{b6, netip.MustParseAddr("10.8.0.77"), b4}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	b.link.attach(&wire{to: n})
	var lost atomic.Int64
	n.link.attach(&wire{to: b, tap: func(p []byte) bool {
		if p[19] != 77 {
			return false
		}
		lost.Add(1)
		// A host sends such an ICMP error if it runs no name server.
		e := portUnreachable(p)
		go func() { _, _ = n.WritePackets([][]byte{e}) }()
		return true
	}})
	for _, name := range []string{"both.test.", "four.test.", "two.test."} {
		if addrs, err := n.LookupNetIP(t.Context(), "ip4", name); err != nil || len(addrs) == 0 {
			t.Fatalf("the lookup returned %v, %v; want an address", addrs, err)
		}
	}
	if lost.Load() != 1 || s.udp.Load() != 3 {
		t.Errorf("the Net asked the unreachable server %d times and the reachable one %d times, want 1 and 3", lost.Load(), s.udp.Load())
	}
}

func TestNoServers(t *testing.T) {
	for _, x := range []struct {
		dns  []netip.Addr
		want string
	}{
		{nil, "names no server"},
		{[]netip.Addr{b6}, "fd08::2"},
	} {
		n, err := New(Config{Addresses: []netip.Addr{a4}, DNS: x.dns})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		_, err = n.Dial("tcp", "both.test:80")
		var dns *net.DNSError
		if !errors.As(err, &dns) || dns.Server != "" || !strings.Contains(err.Error(), "Config.DNS") || !strings.Contains(err.Error(), x.want) {
			t.Errorf("dial of a name with the servers %v: %v; want an error that mentions Config.DNS", x.dns, err)
		}
		for what, err := range lookAll(t.Context(), n) {
			if !errors.As(err, &dns) || dns.IsNotFound || dns.IsTimeout || dns.Server != "" || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%s with the servers %v: %v; want an error that says why no server can be asked", what, x.dns, err)
			}
		}
		if _, err := n.Resolver().LookupHost(t.Context(), "both.test."); err == nil || !strings.Contains(err.Error(), "Config.DNS") {
			t.Errorf("lookup with the Resolver and the servers %v: %v; want an error that mentions Config.DNS", x.dns, err)
		}
	}
}

// lookAll calls each lookup method that asks a server. It returns the errors under the names of the methods.
func lookAll(ctx context.Context, n *Net) map[string]error {
	all := make(map[string]error)
	_, all["LookupAddr"] = n.LookupAddr(ctx, "10.8.0.2")
	_, all["LookupCNAME"] = n.LookupCNAME(ctx, "both.test")
	_, all["LookupHost"] = n.LookupHost(ctx, "both.test")
	_, all["LookupIP"] = n.LookupIP(ctx, "ip4", "both.test")
	_, all["LookupIPAddr"] = n.LookupIPAddr(ctx, "both.test")
	_, all["LookupMX"] = n.LookupMX(ctx, "both.test")
	_, all["LookupNS"] = n.LookupNS(ctx, "both.test")
	_, all["LookupNetIP"] = n.LookupNetIP(ctx, "ip", "both.test")
	_, _, all["LookupSRV"] = n.LookupSRV(ctx, "web", "tcp", "both.test")
	_, all["LookupTXT"] = n.LookupTXT(ctx, "both.test")
	return all
}

func TestRank(t *testing.T) {
	global, local := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fd00::1")
	for _, x := range []struct {
		own, to netip.Addr
		before  bool // whether IPv6 comes before IPv4
	}{
		{global, netip.MustParseAddr("2001:db8::2"), true},
		{local, netip.MustParseAddr("2001:db8::2"), false},
		{local, netip.MustParseAddr("fd00::2"), true},
		{global, netip.MustParseAddr("fd00::2"), false},
	} {
		n := &Net{addrs: []netip.Addr{a4, x.own}}
		if got := n.rank(x.to) < n.rank(b4); got != x.before {
			t.Errorf("with the own address %v, the Net prefers %v to IPv4: %v, want %v", x.own, x.to, got, x.before)
		}
	}
}
