package netstack

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"time"
)

// A dial of a name tries the addresses of the name as RFC 8305 (Happy Eyeballs) says, alternating between IPv6 and IPv4:
//
//	fd08::2   ──────────────────────────►
//	10.8.0.2        ──── refused            the next attempt begins at once
//	fd08::3                ─────────────►
//	10.8.0.3                     ── connected, which ends the others
//	          delay        delay
//
// An attempt begins when an earlier one fails, or when the delay has passed since the last one began.

const (
	// fallbackDelay is the "Connection Attempt Delay", 250 ms as RFC 8305 recommends in section 8.
	fallbackDelay = 250 * time.Millisecond
	// maxAttempts is how many addresses a dial tries at the same time. A name server may return thousands of addresses.
	maxAttempts = 32
	// leastTry is the shortest time that a dial spends on one address when it divides the time until its deadline among several
	// addresses.
	leastTry = 2 * time.Second
)

// connect connects to the first of remotes that answers. More addresses may arrive later, on the channel late. The function
// usable converts these addresses to remotes, and drops those that the attempt cannot use.
func (a *attempt) connect(ctx context.Context, remotes []netip.AddrPort, late <-chan *answer,
	usable func([]netip.Addr) []netip.AddrPort) (net.Conn, error) {
	if a.network[0] == 'u' || a.FallbackDelay < 0 {
		return a.serial(ctx, remotes)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := race{attempt: a, results: make(chan result), returned: make(chan struct{})}
	r.pending = interleave(remotes, remotes[0].Addr().Is4())
	defer close(r.returned)
	delay := cmp.Or(a.FallbackDelay, fallbackDelay)
	r.begin(ctx)
	next := time.NewTimer(delay)
	defer next.Stop()
	for due := false; r.running > 0 || late != nil; {
		select {
		case <-next.C:
			due = true
		case x := <-r.results:
			if x.err == nil {
				return x.Conn, nil
			}
			due = true
			r.lost(x)
		case more, ok := <-late:
			if ok {
				r.pending = interleave(append(r.pending, usable(more.addresses())...), !r.last4)
			} else {
				late = nil
			}
		}
		if due && r.begin(ctx) {
			due = false
			next.Reset(delay)
		}
	}
	return nil, r.err
}

// A race tries to connect to several addresses at the same time, and keeps the first connection that succeeds.
type race struct {
	*attempt
	pending  []netip.AddrPort
	begun    int
	last4    bool // the attempt that began last uses IPv4
	running  int
	results  chan result   // unbuffered: if nothing receives the result, the attempt closes its connection
	returned chan struct{} // closed when connect no longer receives results

	err   error // the error of the failed attempt that began first
	first int   // the number of that attempt
}

type result struct {
	net.Conn
	err    error
	number int
}

// begin begins the next attempt, and reports whether it did. After ctx has ended, it begins only the very first attempt.
func (r *race) begin(ctx context.Context) bool {
	if len(r.pending) == 0 || r.running == maxAttempts || ctx.Err() != nil && r.begun > 0 {
		return false
	}
	remote, number := r.pending[0], r.begun
	r.pending, r.last4 = r.pending[1:], remote.Addr().Is4()
	r.begun++
	r.running++
	go func() {
		c, err := r.one(ctx, remote)
		select {
		case r.results <- result{c, err, number}:
		case <-r.returned:
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	return true
}

// lost records that an attempt failed.
func (r *race) lost(x result) {
	r.running--
	if r.err == nil || x.number < r.first {
		r.err, r.first = x.err, x.number
	}
}

// interleave reorders remotes so that IPv4 and IPv6 addresses alternate. The surplus addresses of the family that has more are at
// the end. The result begins with IPv4 if first4 is true. The order within a family stays the same.
func interleave(remotes []netip.AddrPort, first4 bool) []netip.AddrPort {
	var families [2][]netip.AddrPort
	for _, a := range remotes {
		i := 0
		if a.Addr().Is4() != first4 {
			i = 1
		}
		families[i] = append(families[i], a)
	}
	mixed := make([]netip.AddrPort, 0, len(remotes))
	for i := range remotes {
		for _, f := range families {
			if i < len(f) {
				mixed = append(mixed, f[i])
			}
		}
	}
	return mixed
}

// serial tries one address after another and returns the first error if all fail.
func (a *attempt) serial(ctx context.Context, remotes []netip.AddrPort) (net.Conn, error) {
	var first error
	for i, remote := range remotes {
		try, cancel := share(ctx, len(remotes)-i)
		c, err := a.one(try, remote)
		cancel()
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// share returns a context for one of the remaining tries. If ctx has a deadline, the try gets an equal part of the time left, but
// at least leastTry, and never more than all of it.
func share(ctx context.Context, tries int) (context.Context, context.CancelFunc) {
	end, limited := ctx.Deadline()
	if !limited || tries == 1 {
		return ctx, func() {}
	}
	left := time.Until(end)
	return context.WithTimeout(ctx, min(left, max(left/time.Duration(tries), leastTry)))
}
