package follow

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
)

const (
	maxLookups    = 16 // the most lookups at the same time
	maxNames      = 4 * maxSearches
	maxAddrs      = 16               // the most addresses that are used per name
	lookupTimeout = 15 * time.Second // how long one lookup may take
	firstGap      = 5 * time.Second  // between the first two lookups of a name; later gaps double, up to longestGap
	longestGap    = time.Minute
)

// A name holds the addresses to which the name of an endpoint was resolved because a peer did not answer.
type name struct {
	addrs  []netip.Addr // from the last lookup that succeeded
	asking bool         // whether a lookup is in progress
	asked  time.Time
	gap    time.Duration // the shortest time from the start of the last lookup to the start of the next
}

// An answer is the result of a lookup.
type answer struct {
	host  string
	addrs []netip.Addr
	err   error
}

// ask begins to resolve each name in a peer's endpoints, unless a lookup of that name is in progress, or began less than its gap
// ago.
func (r *run) ask(key wireguard.PublicKey, now time.Time) {
	for _, e := range r.endpointsOf(key) {
		if isAddr(e) {
			continue
		}
		n := r.names[e.Host]
		switch {
		case n == nil:
			if len(r.names) >= maxNames {
				r.forgetNames()
			}
			n = &name{gap: firstGap}
			r.names[e.Host] = n
		case n.asking || now.Sub(n.asked) < n.gap:
			continue
		case now.Sub(n.asked) < 2*longestGap:
			n.gap = min(2*n.gap, longestGap)
		default:
			n.gap = firstGap
		}
		n.asking, n.asked = true, now
		r.wg.Go(func() { r.lookup(e.Host) })
	}
}

func isAddr(e conf.Endpoint) bool {
	_, err := netip.ParseAddr(e.Host)
	return err == nil
}

// forgetNames makes room for other names: it removes all names that are not being resolved. A name that is still needed is
// resolved again later.
func (r *run) forgetNames() {
	for host, n := range r.names {
		if !n.asking {
			delete(r.names, host)
		}
	}
}

// lookup resolves a name on its own goroutine.
func (r *run) lookup(host string) {
	select {
	case r.lookups <- struct{}{}:
		defer func() { <-r.lookups }()
	case <-r.ctx.Done():
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, lookupTimeout)
	defer cancel()
	a := answer{host: host}
	a.addrs, a.err = r.config.Resolution.LookupAll(ctx, host)
	select {
	case r.answers <- a:
	case <-r.ctx.Done():
	}
}

// answer stores the addresses of a name, and continues the searches that wait for them. If the lookup failed, the name keeps its
// old addresses.
func (r *run) answer(a answer) {
	n := r.names[a.host]
	n.asking = false
	if a.err != nil {
		r.config.Logger.Debug("the name of an endpoint does not resolve", "name", a.host, "err", a.err)
		return
	}
	n.addrs = interleave(a.addrs)
	now := time.Now()
	for key, s := range r.searches {
		es := r.endpointsOf(key)
		if !slices.ContainsFunc(es, func(e conf.Endpoint) bool { return e.Host == a.host }) {
			continue
		}
		// A search that has just begun waits for an answer from the peer's present endpoint. If no configured endpoint resolves
		// to that address any more, the search continues at once.
		if s.due.IsZero() || len(s.tried) == 1 && r.left(es, s) {
			s.due = now
		}
	}
}

// left reports whether none of the endpoints es has the address and port that the peer had when the search began.
func (r *run) left(es []conf.Endpoint, s *search) bool {
	return !slices.ContainsFunc(es, func(e conf.Endpoint) bool {
		n := r.names[e.Host]
		if n == nil || len(n.addrs) == 0 {
			a, ok := e.AddrPort()
			return ok && a == s.first.Addr
		}
		return e.Port == s.first.Addr.Port() && slices.Contains(n.addrs, s.first.Addr.Addr())
	})
}

// interleave returns at most maxAddrs addresses, in their order, except that IPv4 and IPv6 addresses alternate (RFC 8305, section
// 4).
func interleave(addrs []netip.Addr) (out []netip.Addr) {
	var families [2][]netip.Addr // the addresses of the first address's family, and those of the other family
	for _, a := range addrs {
		other := 0
		if a.Is4() != addrs[0].Is4() {
			other = 1
		}
		families[other] = append(families[other], a)
	}
	for i := 0; len(out) < min(len(addrs), maxAddrs); i++ {
		for _, f := range families {
			if i < len(f) && len(out) < maxAddrs {
				out = append(out, f[i])
			}
		}
	}
	return out
}
