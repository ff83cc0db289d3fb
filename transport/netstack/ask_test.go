package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
	"golang.org/x/net/dns/dnsmessage"
)

// TestBadServer makes the first of two servers fail in each possible way. It checks that the lookup returns the second server's
// answer, and that the first server is not asked for the next name.
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
					t.Fatalf("lookup of %s: %v, %v; want 10.8.0.2", host, ips, err)
				}
			}
			for _, q := range s[0].questions() {
				if q.name != "four.test." {
					t.Errorf("the bad server was asked for %s after it had failed", q.name)
				}
			}
		})
	}
}

// TestAllServersFail checks that the error names each server and how that server failed.
func TestAllServersFail(t *testing.T) {
	n, s := namesNet(t, Config{DNSTimeout: quick}, fails(dnsmessage.RCodeServerFailure), silent, fails(dnsmessage.RCodeRefused))
	_, err := n.LookupNetIP(t.Context(), "ip4", "four.test")
	var dns *net.DNSError
	if !errors.As(err, &dns) || dns.IsNotFound || !dns.IsTimeout || !dns.IsTemporary || dns.Server != "10.8.0.2:53" {
		t.Fatalf("the error is %v, want a temporary *net.DNSError with a timeout and the first server", err)
	}
	want := "lookup four.test on 10.8.0.2:53: SERVFAIL; 10.8.0.3:53: no answer; 10.8.0.4:53: REFUSED"
	if err.Error() != want {
		t.Errorf("the error is: %v; want: %s", err, want)
	}
	if a, b, c := s[0].udp.Load(), s[1].udp.Load(), s[2].udp.Load(); a != 1 || b != rounds || c != 1 {
		t.Errorf("the servers were asked %d, %d and %d times, want 1, %d and 1, because only the silent server is asked again", a, b, c, rounds)
	}
}

// TestCacheBound checks that the cache stays within its bounds when a program looks up more names than it can hold.
func TestCacheBound(t *testing.T) {
	n, s := namesNet(t, Config{}, honest)
	names := 10_000
	if testkit.OneThread {
		names = maxCachedAnswers + 500
	}
	for i := range names {
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
		t.Errorf("the cache has %d entries, %d in its list, with %d bytes, and %d questions are in flight; want bounded numbers and no question", entries, list, bytes, flights)
	}
	s[0].questions()
	_, _ = n.LookupNetIP(t.Context(), "ip6", fmt.Sprintf("name%d.test", names-1)) // NXDOMAIN holds for all types
	if asked := s[0].questions(); len(asked) != 0 {
		t.Errorf("looking up a cached name that does not exist led to the questions %v, want none", asked)
	}
	t.Log(strings.TrimSpace(fmt.Sprintln(entries, "entries,", bytes, "bytes")))
}

// held returns the behaviour of a server that answers only after release has been called.
func held(t *testing.T) (act behaviour, release func()) {
	c := make(chan struct{})
	t.Cleanup(func() {
		select {
		case <-c:
		default:
			close(c)
		}
	})
	return func(q *dnsmessage.Message, overTCP bool, reply func([]byte)) {
		<-c
		honest(q, overTCP, reply)
	}, func() { close(c) }
}

// waiting returns how many lookups wait for the servers to answer q.
func waiting(n *Net, q question) int {
	n.resolver.mu.Lock()
	defer n.resolver.mu.Unlock()
	if f := n.resolver.flights[q]; f != nil {
		return f.waiters
	}
	return 0
}

type lookedUp struct {
	addrs []netip.Addr
	err   error
}

// lookUp looks up question4 in a goroutine.
func lookUp(ctx context.Context, n *Net) <-chan lookedUp {
	c := make(chan lookedUp, 1)
	go func() {
		addrs, err := n.LookupNetIP(ctx, "ip4", question4.name)
		c <- lookedUp{addrs, err}
	}()
	return c
}

// TestJoin makes many lookups of one name at the same time, and cancels some of them. It checks that the resolver asks the server
// only once.
func TestJoin(t *testing.T) {
	act, release := held(t)
	n, s := namesNet(t, Config{}, act)
	ctx, cancel := context.WithCancel(t.Context())
	const each = 20
	var kept, cancelled []<-chan lookedUp
	cancelled = append(cancelled, lookUp(ctx, n)) // this lookup asks the server, and the others join its question
	testkit.Eventually(t, "a lookup waits for the server", func() bool { return waiting(n, question4) == 1 })
	for range each {
		kept, cancelled = append(kept, lookUp(t.Context(), n)), append(cancelled, lookUp(ctx, n))
	}
	testkit.Eventually(t, "all lookups wait for the server", func() bool { return waiting(n, question4) == 2*each+1 })
	cancel()
	for _, c := range cancelled {
		if got := testkit.Next(t, c, "a cancelled lookup returns"); !errors.Is(got.err, context.Canceled) {
			t.Errorf("a cancelled lookup returned %v, want context.Canceled", got)
		}
	}
	release()
	for _, c := range kept {
		if got := testkit.Next(t, c, "a lookup returns"); got.err != nil || len(got.addrs) != 1 || got.addrs[0] != b4 {
			t.Errorf("a lookup that was not cancelled returned %v, want 10.8.0.2", got)
		}
	}
	if got := s[0].udp.Load(); got != 1 {
		t.Errorf("the server was asked %d times, want once", got)
	}
}

// TestLookupEnds ends a lookup in each possible way while no server answers, and checks the fields of the error.
func TestLookupEnds(t *testing.T) {
	for _, x := range []struct {
		what               string
		timeout            time.Duration // Config.DNSTimeout
		context            func(t *testing.T) (context.Context, context.CancelFunc)
		close              bool
		wraps              error
		timedOut, tryAgain bool
		text               string
	}{
		{"cancelled", 0, func(t *testing.T) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(quick, cancel)
			return ctx, cancel
		}, false, context.Canceled, false, false, "operation was canceled"},
		{"deadline", 0, func(t *testing.T) (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), quick)
		}, false, context.DeadlineExceeded, true, true, "i/o timeout"},
		{"closed", 0, nil, true, net.ErrClosed, false, false, "closed"},
		{"DNSTimeout", 20 * time.Millisecond, nil, false, nil, true, true, "no answer"},
	} {
		t.Run(x.what, func(t *testing.T) {
			n, _ := namesNet(t, Config{DNSTimeout: x.timeout}, silent)
			ctx := t.Context()
			if x.context != nil {
				var cancel context.CancelFunc
				ctx, cancel = x.context(t)
				defer cancel()
			}
			result := lookUp(ctx, n)
			if x.close {
				testkit.Eventually(t, "the lookup waits for the server", func() bool { return waiting(n, question4) == 1 })
				_ = n.Close()
			}
			got := testkit.Next(t, result, "the lookup returns")
			var dns *net.DNSError
			if !errors.As(got.err, &dns) {
				t.Fatalf("the error is %v, want a *net.DNSError", got.err)
			}
			if x.wraps != nil && !errors.Is(got.err, x.wraps) || dns.IsTimeout != x.timedOut || dns.IsTemporary != x.tryAgain || dns.IsNotFound {
				t.Errorf("the error is %#v, want it to wrap %v, with timeout %t and temporary %t", dns, x.wraps, x.timedOut, x.tryAgain)
			}
			if dns.Name != question4.name || dns.Server != "10.8.0.2:53" && !x.close || !strings.Contains(dns.Err, x.text) {
				t.Errorf("%#v lacks the name, the tunnel's server or the text %q", dns, x.text)
			}
			testkit.Eventually(t, "the resolver forgets the question", func() bool {
				n.resolver.mu.Lock()
				defer n.resolver.mu.Unlock()
				return len(n.resolver.flights) == 0
			})
			if _, err := n.LookupHost(ctx, "two.test"); x.close && !errors.Is(err, net.ErrClosed) {
				t.Errorf("a lookup on a closed Net returned %v, want net.ErrClosed", err)
			}
		})
	}
}

// TestServerRecovers checks that a bad server is asked again when no other server answers. After it has answered, the server counts
// as good.
func TestServerRecovers(t *testing.T) {
	n, s := namesNet(t, Config{}, fails(dnsmessage.RCodeServerFailure), honest)
	wantFour(t, n, "with a good second server")
	s[0].become(honest)
	s[1].become(fails(dnsmessage.RCodeServerFailure))
	for _, host := range []string{"two.test", "both.test"} {
		if _, err := n.LookupNetIP(t.Context(), "ip4", host); err != nil {
			t.Error(err)
		}
	}
	if a, b := s[0].udp.Load(), s[1].udp.Load(); a != 3 || b != 2 {
		t.Errorf("the servers got %d and %d questions, want 3 and 2, because the second server fails from the second name on", a, b)
	}
}

// TestBadTime checks for how long the resolver avoids a server that fails.
func TestBadTime(t *testing.T) {
	r := &resolver{servers: make([]nameServer, 2)}
	f := &flight{tries: []try{{0, errLame}, {1, nil}}}
	for _, want := range []time.Duration{30, 60, 120, 240, 480, 480, 480} {
		before := clock.Now()
		r.credit(f, 1)
		got := r.servers[0].badUntil - before
		if want *= time.Second; got < want || got > want+20*time.Second {
			t.Errorf("the bad server is avoided for %v, want %v", got, want)
		}
		if order := r.order(before + want - 1); order[0] != 1 {
			t.Errorf("the servers are asked in the order %v while server 0 is bad, want server 1 first", order)
		}
	}
	if order := r.order(clock.Now() + time.Hour); order[0] != 0 {
		t.Errorf("the servers are asked in the order %v after the time is over, want server 0 first", order)
	}
}
