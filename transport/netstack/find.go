package netstack

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// resolutionDelay is how long Dial waits for the addresses of one family after it has those of the other: "the recommended
// value for the Resolution Delay is 50 milliseconds" (RFC 8305, section 8).
const resolutionDelay = 50 * time.Millisecond

// addresses looks up host's addresses of the types A and AAAA, and sorts them in the order in which Dial tries them. Once it has
// addresses of one type, it waits at most grace for the answer of the other type, or without this limit if grace is 0. The channel
// late delivers the answers with addresses that arrive after addresses has returned, and is closed after the last one. late is nil
// if no answer can follow.
func (r *resolver) addresses(ctx context.Context, host string, grace time.Duration,
	types ...dnsmessage.Type) (addrs []netip.Addr, late <-chan *answer, err error) {
	answers, late, err := r.findSoon(ctx, host, grace, types)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range answers {
		addrs = append(addrs, a.addresses()...)
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return r.net.rank(a) - r.net.rank(b) })
	return addrs, late, nil
}

// addresses returns the addresses in an answer of the type A or AAAA.
func (a *answer) addresses() (addrs []netip.Addr) {
	if a.t == dnsmessage.TypeA {
		_, all := records(a, (*dnsmessage.Parser).AResource)
		for _, r := range all {
			addrs = append(addrs, netip.AddrFrom4(r.A))
		}
		return addrs
	}
	_, all := records(a, (*dnsmessage.Parser).AAAAResource)
	for _, r := range all {
		addrs = append(addrs, netip.AddrFrom16(r.AAAA).Unmap())
	}
	return addrs
}

func (r *resolver) findOne(ctx context.Context, name string, t dnsmessage.Type) (*answer, error) {
	answers, err := r.find(ctx, name, t)
	if err != nil {
		return nil, err
	}
	return answers[0], nil
}

// find returns the answers that have records of host, at most one per type, in the order of types. If there is a search list, find
// tries its names in order, and returns the answers of the first name that has records. If CNAME is among the types, an answer with
// only an alias counts as an answer with records. The error is a *net.DNSError.
func (r *resolver) find(ctx context.Context, host string, types ...dnsmessage.Type) ([]*answer, error) {
	answers, _, err := r.findSoon(ctx, host, 0, types)
	return answers, err
}

// findSoon is like find. grace and late are as for addresses.
func (r *resolver) findSoon(ctx context.Context, host string, grace time.Duration,
	types []dnsmessage.Type) (_ []*answer, late <-chan *answer, err error) {
	if !validName(host) {
		return nil, nil, notFound(host, netip.AddrPort{})
	}
	search := r.search
	if nameUseOf(host) != ordinary {
		search = nil
	}
	var failure error
	var server netip.AddrPort // the last server that answered
	for _, name := range searchList(host, search, r.ndots) {
		x := r.askAll(ctx, name, types)
		answers, err := x.wait(grace)
		for _, a := range answers {
			server = a.server
		}
		answers = slices.DeleteFunc(answers, func(a *answer) bool { return !x.useful(a) })
		if len(answers) > 0 {
			return answers, x.late(), nil
		}
		if err == nil {
			continue
		}
		if failure == nil {
			failure = err
		}
		// As in the C library, the search goes on with the next name if servers have reported failures, but it ends if no server
		// has answered at all.
		if e, ok := err.(*askError); !ok || e.cause != nil || e.silent() {
			break
		}
	}
	if failure != nil {
		return nil, nil, lookupError(failure, host)
	}
	return nil, nil, notFound(host, server)
}

// A querySet is a set of questions about one name, one per type. All of them are asked at the same time.
type querySet struct {
	name     string
	types    []dnsmessage.Type
	outcomes chan outcome // has capacity for the outcomes of all types, because the last ones may never be received
	left     int          // number of outcomes not received yet
}

// An outcome is the answer or the error of the question for types[i].
type outcome struct {
	i      int
	answer *answer
	err    error
}

// askAll begins to ask about name for all types.
func (r *resolver) askAll(ctx context.Context, name string, types []dnsmessage.Type) *querySet {
	x := &querySet{name, types, make(chan outcome, len(types)), len(types)}
	for i, t := range types {
		go func() {
			a, err := r.resolve(ctx, question{name, t})
			x.outcomes <- outcome{i, a, err}
		}()
	}
	return x
}

// useful reports whether find may return the answer a: a has records, or find looks for a CNAME and a has an alias.
func (x *querySet) useful(a *answer) bool {
	return a.found || a.owner != x.name && slices.Contains(x.types, dnsmessage.TypeCNAME)
}

// wait returns the answers in the order of the types, and the error of one question that has no answer. If grace is not 0, wait
// returns at most grace after the first useful answer.
func (x *querySet) wait(grace time.Duration) (answers []*answer, err error) {
	all := make([]outcome, len(x.types))
	var enough <-chan time.Time
	for waiting := true; waiting && x.left > 0; {
		select {
		case o := <-x.outcomes:
			x.left--
			all[o.i] = o
			if grace != 0 && enough == nil && o.err == nil && x.useful(o.answer) {
				enough = time.After(grace)
			}
		case <-enough:
			waiting = false
		}
	}
	for _, o := range all {
		if o.answer != nil {
			answers = append(answers, o.answer)
		} else if err == nil {
			err = o.err
		}
	}
	return answers, err
}

// late returns a channel that delivers the useful answers that arrive after wait has returned, and is closed after the last
// one. The channel is nil if no answer can follow.
func (x *querySet) late() <-chan *answer {
	if x.left == 0 {
		return nil
	}
	late := make(chan *answer, x.left)
	go func() {
		defer close(late)
		for range x.left {
			if o := <-x.outcomes; o.err == nil && x.useful(o.answer) {
				late <- o.answer
			}
		}
	}()
	return late
}

// lookupError turns err, an error of resolver.ask, into the error that package net would return for a lookup of name.
func lookupError(err error, name string) error {
	if e, ok := err.(*askError); ok {
		return e.dnsError(name)
	}
	return &net.DNSError{Err: err.Error(), Name: name}
}

func notFound(name string, server netip.AddrPort) error {
	e := &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	if server.IsValid() {
		e.Server = server.String()
	}
	return e
}

func malformedNames(name string) error {
	return &net.DNSError{Err: "DNS response contained records which contain invalid names", Name: name}
}
