package netstack

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// TestBadServer has the first of two servers fail in each way, and checks that the second one's answer counts and that
// the first one is not asked for the next name.
func TestBadServer(t *testing.T) {
	for name, bad := range map[string]behaviour{
		"SERVFAIL": fails(dnsmessage.RCodeServerFailure),
		"REFUSED":  fails(dnsmessage.RCodeRefused),
		"NOTIMP":   fails(dnsmessage.RCodeNotImplemented),
		"silent":   silent,
		"lame":     lame,
		"garbage":  garbage,
	} {
		t.Run(name, func(t *testing.T) {
			n, s := namesNet(t, Config{DNSTimeout: 2 * time.Second}, bad, honest)
			for _, host := range []string{"four.test", "both.test"} {
				ips, err := n.LookupNetIP(t.Context(), "ip4", host)
				if err != nil || len(ips) != 1 || ips[0] != b4 {
					t.Fatalf("%s: %v, %v", host, ips, err)
				}
			}
			for _, q := range s[0].questions() {
				if q.name != "four.test." {
					t.Errorf("the bad server was asked for %s", q.name)
				}
			}
		})
	}
}

// TestAllServersFail checks that the error names each server with what it said.
func TestAllServersFail(t *testing.T) {
	n, s := namesNet(t, Config{DNSTimeout: quick}, fails(dnsmessage.RCodeServerFailure), silent, fails(dnsmessage.RCodeRefused))
	_, err := n.LookupNetIP(t.Context(), "ip4", "four.test")
	var dns *net.DNSError
	if !errors.As(err, &dns) || dns.IsNotFound || !dns.IsTimeout || !dns.IsTemporary || dns.Server != "10.8.0.2:53" {
		t.Fatalf("%v", err)
	}
	want := "lookup four.test on 10.8.0.2:53: SERVFAIL; 10.8.0.3:53: no answer; 10.8.0.4:53: REFUSED"
	if err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if a, b, c := s[0].udp.Load(), s[1].udp.Load(), s[2].udp.Load(); a != 1 || b != rounds || c != 1 {
		t.Errorf("the servers were asked %d, %d and %d times, want only the silent one asked again, %d times in all", a, b, c, rounds)
	}
}

// TestCacheBound looks up more names than the cache holds.
func TestCacheBound(t *testing.T) {
	n, s := namesNet(t, Config{}, honest)
	for i := range 10_000 {
		_, err := n.LookupNetIP(t.Context(), "ip4", fmt.Sprintf("name%d.test", i))
		var dns *net.DNSError
		if !errors.As(err, &dns) || !dns.IsNotFound {
			t.Fatal(err)
		}
	}
	r := &n.resolver
	r.mu.Lock()
	entries, list, bytes, flights := len(r.cache.entries), r.cache.recent.Len(), r.cache.bytes, len(r.flights)
	r.mu.Unlock()
	if entries > maxCachedAnswers || list != entries || bytes > maxCachedBytes || flights != 0 {
		t.Errorf("%d entries, %d in the list, %d bytes, %d flights", entries, list, bytes, flights)
	}
	s[0].questions()
	_, _ = n.LookupNetIP(t.Context(), "ip6", "name9999.test") // NXDOMAIN is for all types
	if asked := s[0].questions(); len(asked) != 0 {
		t.Errorf("a cached name that does not exist led to %v", asked)
	}
	t.Log(strings.TrimSpace(fmt.Sprintln(entries, "entries,", bytes, "bytes")))
}
