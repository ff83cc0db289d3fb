package follow

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/seed-86b749af/wireguard"
)

const (
	// maxSearches bounds the peers that are searched for at once. At the bound, a failed attempt or unanswered data of another
	// peer begins a search only if an older search has had its share. The oldest search then ends.
	maxSearches = 1024

	// share is how long a search runs at least, before room may end it to let another peer's search begin.
	share = time.Minute

	// maxPlaces bounds the places where a peer is looked for.
	maxPlaces = 64

	// patience is how long a place has to answer before the next one is asked. A device sends a peer at most four
	// initiations in 5 s.
	patience = 1250 * time.Millisecond

	// attempt is how long a device waits for the answer to an initiation.
	attempt = 5 * time.Second

	// maxTurns is how often the peer is moved without a new packet for it. A device in whose queue a packet waits begins a
	// new series of attempts whenever the endpoint changes, and would never give up.
	maxTurns = 10
)

// A search looks for a peer that does not answer. It asks each place once, and waits for patience after each. After that, the
// device's own attempts continue, one in 5 s, and each goes to another place. Without new packets they end a minute later than
// they would without a Follower.
type search struct {
	began    time.Time
	first    wireguard.Endpoint // where the peer was when the search began
	received uint64             // the bytes received until then
	tried    []try              // at most maxPlaces, the latest last
	due      time.Time          // of the next step; zero means that an event or an answer continues the search
	waiting  uint64             // the packets that waited or were dropped, at the last turn
	turns    int                // since waiting changed
}

// A try is a place that was asked.
type try struct {
	at   wireguard.Endpoint
	last time.Time
}

// event begins, continues or ends a search.
func (r *run) event(e wireguard.Event) {
	now, s := time.Now(), r.searches[e.Peer]
	if s != nil && e.Kind != wireguard.EventHandshake {
		if p, ok := r.device.Peer(e.Peer); !ok || p.Received.Bytes != s.received {
			delete(r.searches, e.Peer) // the peer was heard, and is silent again
			s = nil
		}
	}
	switch {
	case e.Kind == wireguard.EventHandshake:
		if s != nil && !e.Endpoint.SamePlace(s.first) {
			r.config.Logger.Info("the peer answers at another endpoint", "peer", e.Peer, "endpoint", e.Endpoint, "before", s.first)
		}
		delete(r.searches, e.Peer)
	case len(r.endpointsOf(e.Peer)) == 0:
		delete(r.searches, e.Peer)
	case s == nil:
		r.begin(e, now)
	case e.Kind == wireguard.EventAttemptFailed:
		r.ask(e.Peer, now)
		if s.due.IsZero() {
			r.turn(e.Peer, s, now)
		}
	}
}

// begin begins to search for a peer, unless it was heard meanwhile.
func (r *run) begin(e wireguard.Event, now time.Time) {
	p, ok := r.device.Peer(e.Peer)
	heard := e.Time.Sub(p.LastReceived) // both by the device's wall clock
	if !ok || heard < attempt || !r.room(now) {
		return // if it was heard lately, one message was lost and the path works
	}
	s := &search{began: now, first: p.Endpoint, received: p.Received.Bytes, tried: []try{{p.Endpoint, now}}, due: now}
	r.searches[e.Peer] = s
	r.ask(e.Peer, now)
	if e.Kind == wireguard.EventUnanswered {
		r.renew(e.Peer) // a peer that is still there answers now
	}
	if !p.LastReceived.IsZero() {
		s.due = now.Add(patience)
	}
}

// room reports whether another search may begin. If there are maxSearches, it ends the oldest one that has had its share, so that
// peers that are gone for good do not keep the others from being found.
func (r *run) room(now time.Time) bool {
	if len(r.searches) < maxSearches {
		return true
	}
	var key wireguard.PublicKey
	oldest := now.Add(-share)
	for k, s := range r.searches {
		if !s.began.After(oldest) {
			key, oldest = k, s.began
		}
	}
	delete(r.searches, key)
	return len(r.searches) < maxSearches
}

// step asks the next place that was not asked yet. If none is left, attempts of the device continue the search.
func (r *run) step(key wireguard.PublicKey, s *search, now time.Time) {
	p, ok := r.device.Peer(key)
	if !ok || p.Received.Bytes != s.received || len(r.endpointsOf(key)) == 0 {
		delete(r.searches, key)
		return
	}
	s.due = time.Time{}
	if len(s.tried) >= maxPlaces {
		return
	}
	for _, place := range r.places(key, s) {
		if s.last(place).IsZero() {
			r.move(key, s, place, now)
			r.renew(key)
			s.due = now.Add(patience)
			return
		}
	}
}

// turn moves the peer to the place that was asked longest ago, for the device's next attempt.
func (r *run) turn(key wireguard.PublicKey, s *search, now time.Time) {
	p, _ := r.device.Peer(key)
	if n := uint64(p.Staged) + p.Drops.Total(); n != s.waiting || p.PersistentKeepalive != 0 {
		s.waiting, s.turns = n, 0
	}
	if s.turns++; s.turns > maxTurns {
		return
	}
	places := r.places(key, s)
	r.move(key, s, slices.MinFunc(places, func(a, b wireguard.Endpoint) int { return s.last(a).Compare(s.last(b)) }), now)
}

// last returns when a place was last asked, or zero.
func (s *search) last(place wireguard.Endpoint) time.Time {
	for _, t := range s.tried {
		if t.at.SamePlace(place) {
			return t.last
		}
	}
	return time.Time{}
}

// ask notes that a place is asked. A name that resolves to other addresses each time would make tried grow without a bound, so
// ask forgets the place that was asked longest ago.
func (s *search) ask(place wireguard.Endpoint, now time.Time) {
	s.tried = slices.DeleteFunc(s.tried, func(t try) bool { return t.at.SamePlace(place) })
	if len(s.tried) == maxPlaces {
		s.tried = slices.Delete(s.tried, 0, 1)
	}
	s.tried = append(s.tried, try{place, now})
}

// move tells the device where to send the next initiation.
func (r *run) move(key wireguard.PublicKey, s *search, place wireguard.Endpoint, now time.Time) {
	s.ask(place, now)
	if p, ok := r.device.Peer(key); !ok || p.Endpoint.SamePlace(place) {
		return
	}
	change := wireguard.PeerChange{PublicKey: key, UpdateOnly: true, Endpoint: &place}
	if err := r.device.Configure(wireguard.Change{Peers: []wireguard.PeerChange{change}}); err != nil {
		r.config.Logger.Debug("the endpoint of a peer could not be changed", "peer", key, "endpoint", place, "err", err)
	}
}

// ended is a context that has ended. Renew with it makes the device begin a handshake, and does not wait.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func (r *run) renew(key wireguard.PublicKey) { r.device.Renew(ended, key) }

// places returns where to look for a peer: its endpoints in their order, with all addresses of names, and last the place where
// the peer was when the search began. The last one is always among them.
func (r *run) places(key wireguard.PublicKey, s *search) (places []wireguard.Endpoint) {
	add := func(e wireguard.Endpoint) {
		same := func(o wireguard.Endpoint) bool { return o.SamePlace(e) }
		if len(places) < maxPlaces && !slices.ContainsFunc(places, same) {
			places = append(places, e)
		}
	}
	for _, e := range r.endpointsOf(key) {
		var addrs []netip.Addr
		if n := r.names[e.Host]; n != nil {
			addrs = n.addrs
		}
		if a, ok := e.AddrPort(); ok && len(addrs) == 0 {
			addrs = []netip.Addr{a.Addr()}
		}
		for _, a := range addrs {
			add(wireguard.EndpointOf(netip.AddrPortFrom(a, e.Port)))
		}
	}
	if len(places) == maxPlaces {
		places = places[:maxPlaces-1]
	}
	add(s.first)
	return places
}
