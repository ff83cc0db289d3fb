// Package follow keeps the endpoints of a device's peers up to date. When a peer does not answer, a [Follower] resolves the names
// of the peer's endpoints again, and tries all their addresses until the peer answers.
//
//	f := follow.New(device, follow.Config{})
//	f.Set(follow.Endpoints(file))
//	go f.Run(ctx)
//
// A peer does not answer if the device has received nothing for 11 s after it sent data, or for 5 s after it sent an initiation.
// A peer that answers keeps its endpoint, even if its names resolve to other addresses. So a fault of DNS does not break a tunnel
// that works. A Follower uses the first address that answers, in the spirit of RFC 8305.
//
// After a change of the machine's network, and after the machine resumes from sleep, a Follower calls [wireguard.Device.Wake],
// and restarts its search for the peers that do not answer. A program without a Follower can use [Changes] to learn of changes
// and resumes.
//
// [NewPlan] compares two configuration files, and [Follower.Apply] changes the device from the first to the second.
//
// search.go searches for peers, names.go resolves names, and changes.go merges the reports of the operating system.
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

// A Config configures a [Follower]. The zero value uses the host's resolver and logs nothing.
type Config struct {
	// Resolution says how to resolve names. Only Apply uses its Retries and Waiting. While a peer does not answer, Run resolves
	// the peer's names repeatedly, at intervals that grow from 5 s to a minute.
	Resolution conf.Resolution

	// Changes calls the function changed each time the network changes or the machine resumes from sleep. Changes must return
	// when ctx ends. After each call of changed, Run calls [wireguard.Device.Wake], and restarts the search for peers that do not
	// answer. Nil means the function [Changes] with an empty tunnel name. To turn these reports off, as tests in virtual time
	// must, set a function that returns nil at once.
	Changes func(ctx context.Context, changed func()) error

	// Logger gets a line when a peer answers at another endpoint, and when the system does not report changes. At level Debug, it
	// also gets a line for each change and for each name that does not resolve. Nil means no log.
	Logger *slog.Logger
}

// A Follower keeps the endpoints of one device's peers up to date. Make it with New, and do not copy it. Any goroutine may call
// its methods.
type Follower struct {
	device     *wireguard.Device
	config     Config          // for Run; its Resolution does not retry
	resolution conf.Resolution // for Apply

	mu        sync.Mutex // guards endpoints, which Set replaces and Run reads
	endpoints map[wireguard.PublicKey][]conf.Endpoint
}

// New makes a Follower of a device's peers. Call Set to name the peers to follow, and Run to start.
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

// Endpoints returns the endpoints of each peer in a file, in the order in which to try them. A peer without endpoints is not in
// the map. If several sections have the same PublicKey, the last one with an endpoint counts.
func Endpoints(f *conf.File) map[wireguard.PublicKey][]conf.Endpoint {
	all := make(map[wireguard.PublicKey][]conf.Endpoint)
	for i := range f.Peers {
		if es := f.Peers[i].Endpoints(); len(es) > 0 {
			all[f.Peers[i].PublicKey] = es
		}
	}
	return all
}

// Set replaces the endpoints of all peers. A peer that is not in the map is not followed. Set changes nothing in the device: a
// peer keeps its present endpoint until it does not answer.
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

// Run follows the peers until ctx ends or the device closes. When Run returns, all its goroutines have ended. Do not call Run
// again before it has returned.
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

// A run is the state of one call of Run. Only the goroutine of Run uses a run, except that the methods lookup and watch run on
// other goroutines.
type run struct {
	*Follower
	ctx      context.Context
	searches map[wireguard.PublicKey]*search // one for each peer that does not answer
	names    map[string]*name
	answers  chan answer
	lookups  chan struct{} // one element for each lookup in progress
	changes  chan struct{} // gets an element for each change of the network
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

// watch runs on its own goroutine, and passes each change of the network to loop.
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

// changed calls Device.Wake and restarts all searches, because after a change of the network every address may answer, and every
// name may resolve.
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

// next returns when the next search is due, or the zero time if none is.
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
