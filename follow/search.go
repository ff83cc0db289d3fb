package follow

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/seed-86b749af/wireguard"
)

const (
	// maxSearches is the largest number of searches at once. If so many searches run, a search for another peer begins only if the
	// oldest search has run for at least a minute (share). The oldest search then ends.
	maxSearches = 1024

	// share is how long a search may run before the method room may end it in order to begin another search.
	share = time.Minute

	// maxPlaces is the largest number of places per search. A place is an address and a port at which the peer may be.
	maxPlaces = 64

	// patience is how long a search waits for an answer from one place before it tries the next place. It is 1.25 s because a
	// device sends a peer at most four initiations in 5 s.
	patience = 1250 * time.Millisecond

	// attempt is how long a device waits for the response to an initiation.
	attempt = 5 * time.Second

	// maxTurns is how often the method turn changes a peer's endpoint without a new packet for the peer. Without this bound, a
	// device with a packet in the peer's queue would never give up, because it begins a new series of attempts whenever the
	// endpoint changes.
	maxTurns = 10
)

// A search looks for a peer that does not answer. It tries each place once: it sets the place as the peer's endpoint, starts a
// handshake, and waits 1.25 s (patience) for an answer. After that, the device continues with its own handshake attempts, one every
// 5 s, and the search sets another place before each attempt. If no new packets are sent to the peer, the attempts end a minute
// later than they would without a Follower.
type search struct {
	began    time.Time
	first    wireguard.Endpoint // the peer's endpoint when the search began
	received uint64             // the number of bytes received from the peer before the search
	tried    []try              // the places that were tried, the latest last; at most maxPlaces
	due      time.Time          // when the next step is due; zero means that the search waits for an event or for a DNS answer
	waiting  uint64             // the number of packets for the peer that were staged or dropped, at the last call of turn
	turns    int                // the number of calls of turn since the field waiting last changed
}

// A try is a place that was tried, and when it was tried last.
type try struct {
	at   wireguard.Endpoint
	last time.Time
}

// event begins, continues or ends a search.
func (r *run) event(e wireguard.Event) {
	now, s := time.Now(), r.searches[e.Peer]
	if s != nil && e.Kind != wireguard.EventHandshake {
		if p, ok := r.device.Peer(e.Peer); !ok || p.Received.Bytes != s.received {
			delete(r.searches, e.Peer) // the peer answered during the search, and is silent again
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

// begin begins a search for a peer, unless the device received something from the peer less than 5 s before the event.
func (r *run) begin(e wireguard.Event, now time.Time) {
	p, ok := r.device.Peer(e.Peer)
	heard := e.Time.Sub(p.LastReceived) // both times are of the device's wall clock
	if !ok || heard < attempt || !r.room(now) {
		return // if the peer was heard in the last 5 s, only a datagram was lost and the path works
	}
	s := &search{began: now, first: p.Endpoint, received: p.Received.Bytes, tried: []try{{p.Endpoint, now}}, due: now}
	r.searches[e.Peer] = s
	r.ask(e.Peer, now)
	if e.Kind == wireguard.EventUnanswered {
		r.renew(e.Peer) // a peer that is still at its endpoint answers this initiation
	}
	if !p.LastReceived.IsZero() {
		s.due = now.Add(patience)
	}
}

// room reports whether another search may begin. If maxSearches searches are running, room ends the oldest search, if that search
// has run for at least a minute (share). So peers that never answer do not prevent the search for other peers.
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

// step tries the next place that was not tried yet. If no such place is left, the device's own attempts continue the search; see
// turn.
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

// turn sets the place that was tried longest ago as the peer's endpoint, for the device's next attempt.
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

// last returns when a place was last tried, or the zero time.
func (s *search) last(place wireguard.Endpoint) time.Time {
	for _, t := range s.tried {
		if t.at.SamePlace(place) {
			return t.last
		}
	}
	return time.Time{}
}

// ask records that a place is tried now. If maxPlaces places are recorded, ask removes the oldest one: otherwise a name that
// resolves to other addresses each time would make the list grow without bound.
func (s *search) ask(place wireguard.Endpoint, now time.Time) {
	s.tried = slices.DeleteFunc(s.tried, func(t try) bool { return t.at.SamePlace(place) })
	if len(s.tried) == maxPlaces {
		s.tried = slices.Delete(s.tried, 0, 1)
	}
	s.tried = append(s.tried, try{place, now})
}

// move sets a place as the peer's endpoint, so that the device sends the next initiation there.
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

// ended is a context that has ended. With this context, Device.Renew makes the device begin a handshake, and does not wait for
// the session.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func (r *run) renew(key wireguard.PublicKey) { r.device.Renew(ended, key) }

// places returns at most maxPlaces places at which to try a peer: its configured endpoints in their order, with all known
// addresses of each name, and then the endpoint that the peer had when the search began, if it is not one of these. That
// endpoint is always among the places.
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
