// Package follow keeps the endpoints of a device's peers up to date. When a peer does not answer, it resolves the names
// of the peer's endpoints again, and tries all their addresses until the peer answers.
//
//	f := follow.New(device, follow.Config{})
//	f.Set(follow.Endpoints(file))
//	go f.Run(ctx)
//
// A peer does not answer if data has been unanswered for 11 s, or if an initiation has been unanswered for 5 s. A peer that is
// heard keeps its endpoint, whatever its names resolve to. So trouble with DNS does not end a tunnel that works. The first
// place that answers is used, in the spirit of RFC 8305.
//
// After a change of the machine's network and after a resume from sleep, a Follower wakes the device, and begins to look
// anew for the peers that do not answer. [Changes] reports both to a program that has no Follower.
//
// [NewPlan] says what would change if the device got the configuration of another file, and [Follower.Apply] changes it.
//
// search.go says where to look for a peer, and names.go resolves names. changes.go merges what each system reports.
package follow

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
)

// A Config says how to follow. The zero value uses the host's resolver and logs nothing.
type Config struct {
	// Resolution says how to resolve names. Its Retries and Waiting are for Apply alone: while a peer does not answer, names
	// are resolved again every 5 s at first and every minute later.
	Resolution conf.Resolution

	// Changes calls changed when the network changed or the machine woke up, until ctx ends; it must return then. Run calls
	// [wireguard.Device.Wake] each time, and looks anew for peers that do not answer. Nil means the function Changes, with no
	// tunnel. A function that returns nil at once turns this off; tests in virtual time need that.
	Changes func(ctx context.Context, changed func()) error

	// Logger gets a line when a peer was found at another endpoint, one when the system does not report changes, and at
	// Debug one for each change and for each name that does not resolve. Nil means no log.
	Logger *slog.Logger
}

// A Follower follows the peers of one device. New makes it. It must not be copied. Any goroutine may call its methods.
type Follower struct {
	device     *wireguard.Device
	config     Config          // with a Resolution for Run
	resolution conf.Resolution // for Apply

	mu        sync.Mutex // guards endpoints, which Set replaces and Run reads
	endpoints map[wireguard.PublicKey][]conf.Endpoint
}

// New makes a Follower of a device's peers. It follows none until Set names them, and does nothing until Run.
func New(d *wireguard.Device, c Config) *Follower {
	f := &Follower{device: d, resolution: c.Resolution}
	c.Resolution.Retries, c.Resolution.Waiting = -1, nil
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Changes == nil {
		c.Changes = func(ctx context.Context, changed func()) error { return Changes(ctx, "", changed) }
	}
	f.config = c
	return f
}

// Endpoints returns the endpoints of each peer in a file, in the order in which to try them. A peer without endpoints is not
// in the map. Of several sections with one key, the last with an endpoint counts.
func Endpoints(f *conf.File) map[wireguard.PublicKey][]conf.Endpoint {
	all := make(map[wireguard.PublicKey][]conf.Endpoint)
	for i := range f.Peers {
		if es := f.Peers[i].Endpoints(); len(es) > 0 {
			all[f.Peers[i].PublicKey] = es
		}
	}
	return all
}

// Set replaces the endpoints of all peers. A peer that is not in the map is not followed. Set moves no peer: the device
// keeps the endpoints that it has until a peer does not answer.
func (f *Follower) Set(endpoints map[wireguard.PublicKey][]conf.Endpoint) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endpoints = maps.Clone(endpoints)
}

func (f *Follower) endpointsOf(key wireguard.PublicKey) []conf.Endpoint {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.endpoints[key]
}

// Run follows the peers until ctx ends or the device closes. When it returns, none of its goroutines is left. Do not call
// Run again before it has returned.
func (f *Follower) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	r := &run{
		Follower: f, ctx: ctx, searches: make(map[wireguard.PublicKey]*search),
		names: make(map[string]*name), answers: make(chan answer), lookups: make(chan struct{}, maxLookups),
		changes: make(chan struct{}),
	}
	defer r.wg.Wait()
	defer cancel()
	events := f.device.Subscribe(wireguard.EventHandshake, wireguard.EventAttemptFailed, wireguard.EventUnanswered)
	defer events.Close()
	news := make(chan wireguard.Event)
	r.wg.Go(func() {
		defer close(news)
		for e := range events.Events(ctx) {
			select {
			case news <- e:
			case <-ctx.Done():
				return
			}
		}
	})
	r.wg.Go(r.watch)
	r.loop(news)
}

// A run is the state of one call of Run. Only the goroutine of Run uses it, except for lookups and watch.
type run struct {
	*Follower
	ctx      context.Context
	searches map[wireguard.PublicKey]*search // the peers that do not answer
	names    map[string]*name
	answers  chan answer
	lookups  chan struct{} // one element for each lookup under way
	changes  chan struct{} // of the network
	wg       sync.WaitGroup
}

func (r *run) loop(news <-chan wireguard.Event) {
	for {
		var due <-chan time.Time
		if next := r.next(); !next.IsZero() {
			due = time.After(time.Until(next))
		}
		select {
		case e, ok := <-news:
			if !ok {
				return
			}
			r.event(e)
		case a := <-r.answers:
			r.answer(a)
		case <-r.changes:
			r.changed(time.Now())
		case <-due:
		case <-r.ctx.Done():
			return
		}
		r.steps(time.Now())
	}
}

// watch passes changes of the network on to loop, on its own goroutine.
func (r *run) watch() {
	err := r.config.Changes(r.ctx, func() {
		select {
		case r.changes <- struct{}{}:
		case <-r.ctx.Done():
		}
	})
	if err != nil && r.ctx.Err() == nil {
		r.config.Logger.Info("changes of the network go unnoticed: call Device.Wake after each", "err", err)
	}
}

// changed wakes the device and begins all searches anew, because each place may answer now, and each name may resolve.
func (r *run) changed(now time.Time) {
	r.config.Logger.Debug("the network changed, or the machine woke up")
	if err := r.device.Wake(); err != nil {
		r.config.Logger.Warn("the device has no socket until the network changes again", "err", err)
	}
	for _, n := range r.names {
		n.asked = time.Time{}
	}
	for key, s := range r.searches {
		s.tried, s.turns, s.due = nil, 0, now
		r.ask(key, now)
	}
}

// next returns when the next search is due, or zero.
func (r *run) next() (at time.Time) {
	for _, s := range r.searches {
		if !s.due.IsZero() && (at.IsZero() || s.due.Before(at)) {
			at = s.due
		}
	}
	return at
}

// steps continues the searches that are due.
func (r *run) steps(now time.Time) {
	for key, s := range r.searches {
		if !s.due.IsZero() && !s.due.After(now) {
			r.step(key, s, now)
		}
	}
}
