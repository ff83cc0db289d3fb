package netstack

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func TestValidName(t *testing.T) {
	label := strings.Repeat("x", 63)
	long := strings.Repeat(label+".", 3)
	for name, want := range map[string]bool{
		".": true, "a": true, "a.": true, "_web._tcp.example.com": true, "xn--bcher-kva.example": true, "1a.2": true, "A-b": true,
		label: true, label + "x": false,
		long + strings.Repeat("x", 61): true, long + strings.Repeat("x", 61) + ".": true, long + strings.Repeat("x", 62): false,
		"": false, "..": false, ".a": false, "a..b": false, "a..": false, "-a": false, "a-": false, "a.-b": false, "a-.b": false,
		"1.2.3": false, "127.1": false, "a b": false, "a/b": false, "bücher": false, "a\x00": false,
	} {
		if got := validName(name); got != want {
			t.Errorf("validName(%q) is %t, want the opposite", name, got)
		}
	}
}

func TestSearchList(t *testing.T) {
	search := []string{"x.test.", "test."}
	for _, x := range []struct {
		host  string
		ndots int
		want  string
	}{
		{"a", 1, "a.x.test. a.test. a."},
		{"A.b", 1, "a.b. a.b.x.test. a.b.test."},
		{"a.b", 5, "a.b.x.test. a.b.test. a.b."},
		{"a", -1, "a. a.x.test. a.test."},
		{"a.", 5, "a."},
		{strings.Repeat(strings.Repeat("x", 62)+".", 3) + strings.Repeat("x", 60), 1, ""}, // with a domain, the name would be too long
	} {
		if x.want == "" {
			x.want = x.host + "."
		}
		if got := strings.Join(searchList(x.host, search, x.ndots), " "); got != x.want {
			t.Errorf("searchList of %q with ndots %d: %s, want %s", x.host, x.ndots, got, x.want)
		}
	}
}

func TestReverseName(t *testing.T) {
	for a, want := range map[string]string{
		"10.8.0.2":           "2.0.8.10.in-addr.arpa.",
		"::ffff:10.8.0.2":    "2.0.8.10.in-addr.arpa.",
		"2001:db8::567:89ab": "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.", // RFC 3596
	} {
		if got := reverseName(netip.MustParseAddr(a)); got != want {
			t.Errorf("reverseName of %s: %s, want %s", a, got, want)
		}
	}
}

// TestSearch looks up names that Config.Search completes. It checks the addresses and the questions that the Net asks.
func TestSearch(t *testing.T) {
	for _, x := range []struct {
		search []string
		ndots  int
		host   string
		want   string // the address; "" means that the lookup fails
		asked  string
	}{
		{nil, 0, "host", "", "host."},
		{[]string{"corp.test"}, 0, "host", "10.8.0.7", "host.corp.test."},
		{[]string{"Corp.Test."}, 0, "HOST", "10.8.0.7", "host.corp.test."},
		{[]string{"corp.test"}, 0, "host.corp.test", "10.8.0.7", "host.corp.test."},
		{[]string{"corp.test"}, 0, "host.", "", "host."},
		{[]string{"corp.test"}, 0, "a.b", "10.8.0.8", "a.b. a.b.corp.test."},
		{[]string{"corp.test"}, 2, "a.b", "10.8.0.8", "a.b.corp.test."},
		{[]string{"corp.test"}, -1, "host", "10.8.0.7", "host. host.corp.test."},
		{[]string{"empty.test", "~test", ".", "corp.test"}, 0, "host", "10.8.0.7", "host.empty.test. host.corp.test."},
		{[]string{"corp.test"}, 0, "none", "", "none.corp.test. none."},
	} {
		n, s := namesNet(t, Config{Search: x.search, Ndots: x.ndots}, honest)
		ips, err := n.LookupNetIP(t.Context(), "ip4", x.host)
		var dns *net.DNSError
		switch {
		case x.want == "" && (!errors.As(err, &dns) || !dns.IsNotFound || dns.Name != x.host || dns.Server != "10.8.0.2:53"):
			t.Errorf("%+v: the error is %v, want one from 10.8.0.2:53 that says that the name, as the caller wrote it, does not exist", x, err)
		case x.want != "" && (err != nil || len(ips) != 1 || ips[0].String() != x.want):
			t.Errorf("%+v: the lookup returned %v, %v", x, ips, err)
		}
		var asked []string
		for _, q := range s[0].questions() {
			asked = append(asked, q.name)
		}
		if got := strings.Join(asked, " "); got != x.asked {
			t.Errorf("%+v: the Net asked for %s", x, got)
		}
	}
}

// TestSearchFailures checks lookups with a search domain whose servers fail. The Net still tries the other domains, and does not
// report the failure as a name that does not exist. If the servers do not answer at all, the Net does not try the next search
// domain.
func TestSearchFailures(t *testing.T) {
	broken := func(q *dnsmessage.Message, overTCP bool, reply func([]byte)) {
		if strings.HasSuffix(q.Questions[0].Name.String(), ".broken.test.") {
			fails(dnsmessage.RCodeServerFailure)(q, overTCP, reply)
			return
		}
		honest(q, overTCP, reply)
	}
	n, s := namesNet(t, Config{Search: []string{"broken.test", "corp.test"}, DNSTimeout: quick}, broken)
	if ips, err := n.LookupNetIP(t.Context(), "ip4", "host"); len(ips) != 1 || err != nil {
		t.Errorf("lookup of host: %v, %v; want one address, from the second domain", ips, err)
	}
	_, err := n.LookupNetIP(t.Context(), "ip4", "none")
	var dns *net.DNSError
	if !errors.As(err, &dns) || dns.IsNotFound || !dns.IsTemporary || !strings.Contains(dns.Err, "SERVFAIL") {
		t.Errorf("lookup of none: %v; want the temporary failure of the server", err)
	}
	s[0].become(silent)
	s[0].questions()
	if _, err := n.LookupNetIP(t.Context(), "ip4", "other"); !errors.As(err, &dns) || !dns.IsTimeout {
		t.Errorf("lookup of other: %v; want a timeout", err)
	}
	if asked := s[0].questions(); slices.ContainsFunc(asked, func(q question) bool { return q.name != "other.broken.test." }) {
		t.Errorf("the Net asked a silent server for %v, want only other.broken.test.", asked)
	}
}

// TestSpecialNames checks the names about which the Net asks no server.
func TestSpecialNames(t *testing.T) {
	n, s := namesNet(t, Config{Addresses: []netip.Addr{a4, a6}, Search: []string{"test"}}, honest)
	for host, want := range map[string]string{
		"localhost": "127.0.0.1 ::1", "LOCALHOST.": "127.0.0.1 ::1", "www.localhost": "127.0.0.1 ::1",
		"10.1.2.3": "10.1.2.3", "fd00::1": "fd00::1",
		"a.invalid": "", "invalid": "", "a.onion": "", "a.onion.": "",
	} {
		got, err := n.LookupHost(t.Context(), host)
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("lookup of %s: %v, %v; want %s", host, got, err, want)
		}
		var dns *net.DNSError
		if want == "" && (!errors.As(err, &dns) || !dns.IsNotFound || dns.Server != "") {
			t.Errorf("lookup of %s: %v; want an error that says that the name does not exist, and names no server", host, err)
		}
	}
	if _, err := n.LookupTXT(t.Context(), "localhost"); err == nil {
		t.Error("localhost has a TXT record")
	}
	if asked := s[0].questions(); len(asked) != 0 {
		t.Errorf("the Net asked the server for %v, want no questions", asked)
	}
	if got, err := n.LookupHost(t.Context(), "notlocalhost"); err == nil || len(s[0].questions()) == 0 {
		t.Errorf("lookup of notlocalhost: %v; want an error, and a question to the server", got)
	}
}

func TestLookupPort(t *testing.T) {
	n, err := New(Config{Addresses: []netip.Addr{a4}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, x := range []struct {
		network, service string
		want             int // -1 means an error
	}{
		{"tcp", "80", 80}, {"tcp", "http", 80}, {"tcp6", "HTTPS", 443}, {"udp", "domain", 53}, {"ip", "ntp", 123}, {"", "ssh", 22},
		{"tcp", "", 0}, {"udp", "0", 0}, {"udp4", "65535", 65535},
		{"udp", "ssh", -1}, {"tcp", "ntp", -1}, {"tcp", "65536", -1}, {"tcp", "-1", -1}, {"tcp", "none", -1}, {"icmp", "ssh", -1},
	} {
		if got, err := n.LookupPort(t.Context(), x.network, x.service); (err != nil) != (x.want < 0) || err == nil && got != x.want {
			t.Errorf("%+v: LookupPort returned %d, %v", x, got, err)
		}
	}
	_, err = n.Dial("tcp", "10.8.0.2:none")
	var dns *net.DNSError
	if !errors.As(err, &dns) || dns.Err != "unknown port" || dns.Name != "tcp/none" {
		t.Errorf("dial of an unknown service: %v, want a DNSError about tcp/none that says unknown port", err)
	}
}
