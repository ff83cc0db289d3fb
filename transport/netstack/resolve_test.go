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
		t.Errorf("dial of a name that does not exist: %v", err)
	}
	// The search list of this system must not be tried. The first answer says that the name does not exist, which holds for both
	// families. But the Net may have sent the other question before that answer arrived.
	if asked := s.questions(); len(asked) > 2 {
		t.Errorf("it took the questions %v, want at most one per family", asked)
	}
	if _, err := a.Dial("tcp6", "four.test:80"); err == nil {
		t.Error("dialed over IPv6 to a name that has no such address")
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
			t.Fatalf("%v: dialed without an address", x)
		}
		if x.want == nil && !strings.Contains(err.Error(), "Config.Addresses") {
			t.Errorf("%s with %v: %v; want what to do about it", x.network, x.own, err)
		}
		var types []dnsmessage.Type
		for _, q := range s[0].questions() {
			types = append(types, q.t)
		}
		if slices.Sort(types); !slices.Equal(types, x.want) {
			t.Errorf("%s with %v asked for %v, want %v", x.network, x.own, types, x.want)
		}
	}
}

// TestUnreachableServer lets an ICMP error report that the first name server is unreachable. It checks that the Net then asks the
// second server, and from then on asks the second server first.
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
		// A WireGuard device sends such an ICMP error if no peer has the address.
		e := portUnreachable(p)
		go func() { _, _ = n.WritePackets([][]byte{e}) }()
		return true
	}})
	for _, name := range []string{"both.test.", "four.test.", "two.test."} {
		if addrs, err := n.LookupNetIP(t.Context(), "ip4", name); err != nil || len(addrs) == 0 {
			t.Fatalf("lookup: %v, %v", addrs, err)
		}
	}
	if lost.Load() != 1 || s.udp.Load() != 3 {
		t.Errorf("%d questions to the server that does not answer and %d to the one that does, want 1 and 3", lost.Load(), s.udp.Load())
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
			t.Errorf("dial of a name with the servers %v: %v; want what to do about it", x.dns, err)
		}
		for what, err := range lookAll(t.Context(), n) {
			if !errors.As(err, &dns) || dns.IsNotFound || dns.IsTimeout || dns.Server != "" || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%s with the servers %v: %v; want what to do about it", what, x.dns, err)
			}
		}
		if _, err := n.Resolver().LookupHost(t.Context(), "both.test."); err == nil || !strings.Contains(err.Error(), "Config.DNS") {
			t.Errorf("lookup with the servers %v: %v; want what to do about it", x.dns, err)
		}
	}
}

// lookAll calls each method that asks a server, and returns the errors.
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
			t.Errorf("from %v, %v before IPv4 is %v, want %v", x.own, x.to, got, x.before)
		}
	}
}
