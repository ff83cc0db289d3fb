package conf

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// resolver has a list of answers for each name. Each lookup gets the next answer, and the last answer is repeated.
type resolver map[string][]any // netip.Addr or error

func (r resolver) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	answers := r[host]
	if len(answers) == 0 {
		return nil, nil
	}
	if len(answers) > 1 {
		r[host] = answers[1:]
	}
	if err, ok := answers[0].(error); ok {
		return nil, err
	}
	return []netip.Addr{answers[0].(netip.Addr), netip.MustParseAddr("198.51.100.99")}, nil
}

var (
	notFound = &net.DNSError{Err: "no such host", IsNotFound: true}
	timeout  = &net.DNSError{Err: "i/o timeout", IsTimeout: true, IsTemporary: true}
)

// TestLookupRetries checks that Lookup retries 15 times after a temporary error, with the same waits as wg(8), and does not retry
// after a permanent error.
func TestLookupRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := netip.MustParseAddr("::ffff:192.0.2.1")
		for _, c := range []struct {
			name    string
			answers []any
			retries int
			took    time.Duration
			waits   int
			err     error
		}{
			{"at once", []any{a}, 0, 0, 0, nil},
			{"after three", []any{timeout, timeout, timeout, a}, 0, 3640 * time.Millisecond, 3, nil},
			{"no such name", []any{notFound}, 0, 0, 0, notFound},
			{"never", []any{timeout}, -1, 0, 0, timeout},
			{"one retry", []any{timeout}, 1, time.Second, 1, timeout},
			{"all retries", []any{timeout}, 0, 72035107 * time.Microsecond, 15, timeout},
			{"another error", []any{errors.ErrUnsupported}, 0, 0, 0, errors.ErrUnsupported},
		} {
			start, waits := time.Now(), 0
			r := Resolution{Resolver: resolver{"x": c.answers}, Retries: c.retries, Waiting: func(host string, err error, _ time.Duration) {
				if host != "x" || err == nil {
					t.Errorf("%s: Waiting was called with the name %q and error %v, want x and an error", c.name, host, err)
				}
				waits++
			}}
			got, err := r.Lookup(t.Context(), "x")
			took := time.Since(start).Truncate(time.Microsecond)
			if !errors.Is(err, c.err) || err == nil && got != a.Unmap() || took != c.took || waits != c.waits {
				t.Errorf("%s: Lookup returned %v, error %v, after %v and %d waits; this differs from the table", c.name, got, err, took, waits)
			}
		}
	})
}

// TestLookupEnds checks that Lookup stops waiting when the context ends, and that the error wraps the context's error and its
// cause.
func TestLookupEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, cause := range []error{nil, errors.ErrUnsupported} {
			ctx, cancel := context.WithTimeoutCause(t.Context(), 1500*time.Millisecond, cause)
			_, err := Resolution{Resolver: resolver{"x": {timeout}}}.Lookup(ctx, "x")
			if !errors.Is(err, context.DeadlineExceeded) || cause != nil && !errors.Is(err, cause) {
				t.Errorf("Lookup returned %v, want an error that wraps %v and %v", err, context.DeadlineExceeded, cause)
			}
			cancel()
		}
	})
}

// TestResolve checks that Resolve looks up each name once and never an address, and that each error has its line number.
func TestResolve(t *testing.T) {
	text := "[Peer]\nEndpoint = a:1\n[Peer]\nEndpoint = a:2\n[Peer]\nEndpoint = 192.0.2.9:3\n[Peer]\n[Peer]\nEndpoint = gone:4\n[Peer]\nEndpoint = empty:5\n"
	f := parse(t, text)
	if _, ok := f.Peers[0].Endpoint.AddrPort(); ok {
		t.Error("AddrPort returned an address for a name that was not resolved")
	}
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	err := f.Resolve(t.Context(), Resolution{Resolver: resolver{"a": {a, b}, "gone": {notFound}}})
	es := Errors(err)
	if len(es) != 2 || es[0].Line != 9 || es[1].Line != 11 || !strings.Contains(es[0].Error(), "correct the name") || !errors.Is(es[0], notFound) {
		t.Errorf("Resolve returned %v, want two errors, for the lines 9 and 11", err)
	}
	for i, want := range []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.9:3", "invalid AddrPort", "invalid AddrPort", "invalid AddrPort"} {
		got, ok := f.Peers[i].Endpoint.AddrPort()
		if ok != (want != "invalid AddrPort") || ok && got.String() != want {
			t.Errorf("peer %d: AddrPort returned %v, %v; want %s", i, got, ok, want)
		}
	}
	if got := must(f.Text()); string(got) != text {
		t.Errorf("Text wrote the resolved addresses, want the file unchanged:\n%s", got)
	}
}
