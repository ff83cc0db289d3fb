package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/seed-86b749af/wireguard/internal/boottime"
)

// If the cache has no answer to a question, the first lookup of the question begins a flight. All other lookups of the same
// question join that flight. The flight asks the servers:
//
//	first server ──┬── answers ────────────────────────────────────────────► done
//	               ├── says that it failed ─────► the next server, at once
//	               └── says nothing for a while ► the next server; the first one may still answer
//
// After the last server, the flight again asks the servers that have said nothing, because the question may be lost. It sends a
// server the question at most rounds times. When one server answers, the servers that were asked before it count as bad. For a
// while, bad servers are asked last.

const (
	// maxPatience is how long to wait for one server before the next one is asked as well.
	maxPatience = time.Second

	// rounds is how often the same question is sent to a server that says nothing.
	rounds = 3

	// A server that failed is asked last for firstBad. The time doubles with each further failure up to maxBad.
	firstBad = 30 * time.Second
	maxBad   = 8 * time.Minute

	// maxChase is how many questions one lookup may ask in turn, if each answer has only aliases that lead to another name.
	maxChase = 8
)

// A nameServer is a name server and its recent failures. The resolver's mutex guards bad and badUntil.
type nameServer struct {
	addr     netip.AddrPort
	bad      int           // failures since its last answer
	badUntil time.Duration // until when the server counts as bad, in the time of boottime.Clock
}

// A flight is one search for the answer to a question: the servers are being asked.
type flight struct {
	question
	cancel  context.CancelFunc
	waiters int   // number of lookups that wait; the resolver's mutex guards it
	tries   []try // one per server asked so far, in the order of asking; the resolver's mutex guards it

	done   chan struct{} // closed when answer and err are set
	answer *answer
	err    error
}

// A try says that one server was asked a question, and whether the server has failed.
type try struct {
	server int
	err    error // why the server failed; nil if it has said nothing yet
}

// An askError says why a question has no answer.
type askError struct {
	tries []namedTry
	cause error // why the lookup ended early: its context or the Net has ended; otherwise nil
}

type namedTry struct {
	server netip.AddrPort
	err    error // nil if the server did not answer
}

func (e *askError) Error() string { return e.dnsError("").Error() }

func (e *askError) Unwrap() error { return e.cause }

// dnsError returns e as the error that package net would return for a lookup of name. The error's Server is the first server asked.
// Its Err contains what the first server said, followed by what the other servers said.
func (e *askError) dnsError(name string) *net.DNSError {
	d := &net.DNSError{Name: name, UnwrapErr: e.cause}
	var said []string
	for i, t := range e.tries {
		text := "no answer"
		if t.err != nil {
			text = t.err.Error()
		}
		if i == 0 {
			d.Server = t.server.String()
		} else {
			text = t.server.String() + ": " + text
		}
		said = append(said, text)
		var errno syscall.Errno
		d.IsTimeout = d.IsTimeout || t.err == nil
		d.IsTemporary = d.IsTemporary || t.err == nil || t.err == servfail || errors.As(t.err, &errno)
	}
	if e.cause != nil {
		said = append(said, e.cause.Error())
		timeout, ok := e.cause.(net.Error)
		d.IsTimeout = ok && timeout.Timeout()
		d.IsTemporary = d.IsTimeout
	}
	d.Err = strings.Join(said, "; ")
	return d
}

// silent reports whether no server said anything.
func (e *askError) silent() bool {
	return !slices.ContainsFunc(e.tries, func(t namedTry) bool { return t.err != nil })
}

// resolve returns the answer to q. If an answer has only aliases, resolve asks for the name to which they lead.
func (r *resolver) resolve(ctx context.Context, q question) (*answer, error) {
	var seen []string
	for {
		a, err := r.ask(ctx, q)
		if err != nil || a.next == "" {
			return a, err
		}
		if seen = append(seen, q.name); slices.Contains(seen, a.next) || len(seen) == maxChase {
			return nil, &askError{tries: []namedTry{{a.server, errAliasLoop}}}
		}
		q.name = a.next
	}
}

// ask returns the answer to q from the cache or from the servers. The error is an *askError, or r.missing if there are no
// servers.
func (r *resolver) ask(ctx context.Context, q question) (*answer, error) {
	if a := specialAnswer(q); a != nil {
		return a, nil
	}
	if r.net.isClosed() {
		return nil, &askError{cause: net.ErrClosed}
	}
	if ctx.Err() != nil {
		return nil, &askError{cause: contextError(ctx)}
	}
	r.mu.Lock()
	if a := r.cache.get(clock.Now(), q); a != nil {
		r.mu.Unlock()
		return a, nil
	}
	if len(r.servers) == 0 {
		r.mu.Unlock()
		return nil, r.missing
	}
	f := r.flights[q]
	if f == nil {
		f = r.takeOff(ctx, q)
	}
	f.waiters++
	r.mu.Unlock()

	select {
	case <-f.done:
		return f.answer, f.err
	case <-ctx.Done():
		return nil, r.leave(f, contextError(ctx))
	case <-r.net.done:
		return nil, r.leave(f, net.ErrClosed)
	}
}

var clock boottime.Clock

// takeOff begins a flight. r.mu is held. ctx is the context of the first lookup. The flight does not end when ctx ends, but it
// asks all servers before the deadline of ctx.
func (r *resolver) takeOff(ctx context.Context, q question) *flight {
	left := r.timeout
	if end, ok := ctx.Deadline(); ok {
		left = min(left, time.Until(end))
	}
	patience := min(maxPatience, left/time.Duration(rounds*len(r.servers)+1))
	f := &flight{question: q, done: make(chan struct{})}
	ctx, f.cancel = context.WithTimeout(context.Background(), r.timeout)
	if r.flights == nil {
		r.flights = make(map[question]*flight)
	}
	r.flights[q] = f
	order := r.order(clock.Now())
	go func() {
		defer close(f.done)
		defer f.cancel()
		f.answer, f.err = r.fly(ctx, f, order, patience)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.land(f)
		if f.err == nil {
			r.cache.put(clock.Now(), f.answer)
		}
	}()
	return f
}

// land removes f from r.flights, so that the next lookup of the question begins another flight. r.mu is held.
func (r *resolver) land(f *flight) {
	if r.flights[f.question] == f {
		delete(r.flights, f.question)
	}
}

// leave notes that one lookup no longer waits for f, for the reason cause. If no other lookup waits for f, leave cancels f. It
// returns the lookup's error.
func (r *resolver) leave(f *flight, cause error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.cancel()
		r.land(f)
	}
	return r.failure(f, cause)
}

// failure returns an error with the cause and with what the servers have said so far. r.mu is held.
func (r *resolver) failure(f *flight, cause error) error {
	e := &askError{cause: cause}
	for _, t := range f.tries {
		e.tries = append(e.tries, namedTry{r.servers[t.server].addr, t.err})
	}
	return e
}

// order returns the indices of the servers in the order in which to ask them: bad servers are last. r.mu is held.
func (r *resolver) order(now time.Duration) (order []int) {
	var bad []int
	for i := range r.servers {
		if now < r.servers[i].badUntil {
			bad = append(bad, i)
		} else {
			order = append(order, i)
		}
	}
	return append(order, bad...)
}

type report struct {
	server int
	answer *answer
	err    error
}

// fly asks the servers until one answers, all have failed, or ctx ends.
func (r *resolver) fly(ctx context.Context, f *flight, order []int, patience time.Duration) (*answer, error) {
	left := slices.Repeat(order, rounds)
	reports := make(chan report, len(left)) // has capacity for all reports, because fly may return before they arrive
	failed := make(map[int]bool)
	// next asks the next server that has not failed, and reports whether there is one.
	next := func() bool {
		for len(left) > 0 {
			i := left[0]
			if left = left[1:]; failed[i] {
				continue
			}
			r.note(f, i, nil)
			go func() {
				a, err := r.exchange(ctx, r.servers[i].addr, f.question)
				reports <- report{i, a, err}
			}()
			return true
		}
		return false
	}
	next()
	pace := time.NewTimer(patience)
	defer pace.Stop()
	for len(failed) < len(r.servers) {
		select {
		case <-pace.C:
			if next() {
				pace.Reset(patience)
			}
		case x := <-reports:
			if x.err == nil {
				r.credit(f, x.server)
				return x.answer, nil
			}
			if ctx.Err() != nil {
				continue // ctx has ended, which has closed the socket
			}
			r.note(f, x.server, x.err)
			if failed[x.server] = true; next() {
				pace.Reset(patience)
			}
		case <-ctx.Done():
			r.mu.Lock()
			defer r.mu.Unlock()
			return nil, r.failure(f, nil)
		case <-r.net.done:
			return nil, &askError{cause: net.ErrClosed}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return nil, r.failure(f, nil)
}

// note records that the server with the index server is being asked. If err is not nil, note records why that server gave no
// answer.
func (r *resolver) note(f *flight, server int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(f.tries, func(t try) bool { return t.server == server })
	switch {
	case i < 0:
		f.tries = append(f.tries, try{server, err})
	case err != nil:
		f.tries[i].err = err
	}
}

// credit records that a server has answered. The servers that were asked before it become bad. A server that was asked after it
// becomes bad only if it has failed.
func (r *resolver) credit(f *flight, server int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, before := clock.Now(), true
	for _, t := range f.tries {
		s := &r.servers[t.server]
		switch {
		case t.server == server:
			s.bad, s.badUntil, before = 0, 0, false
		case t.err != nil || before:
			s.badUntil = now + min(firstBad<<min(s.bad, 10), maxBad)
			s.bad++
		}
	}
}
