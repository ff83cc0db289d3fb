package page

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/observe"
)

const (
	defaultViewers = 32

	// A viewer is disconnected if more messages or bytes than these wait for it, and its page connects again. All viewers
	// share the memory of a message.
	unreadMessages = 128
	maxUnread      = 4 << 20

	keptEvents    = 100 // a page that is opened while another one is open first gets up to this many past events
	eventsPerLook = 50  // how many events may be shown one by one between two readings of the status; others are only counted
)

// A hub reads the status of all devices at regular intervals, once for all viewers. Such a reading is a look. The hub's
// goroutines run while it has a viewer.
type hub struct {
	config *Config

	mu      sync.Mutex // guards all below
	devices []*watched
	looked  time.Time // the time of the last look
	viewers map[*viewer]bool
	stop    context.CancelFunc // ends the goroutines; nil means that none run
	closed  bool

	kept    []event // the newest events; the oldest of them is first
	budget  int     // events that may be shown until the next look
	skipped int     // events that were not shown since the last look
}

// A viewer is the open stream of a page.
type viewer struct {
	news   chan []byte  // closed when the stream has to end
	unread atomic.Int64 // the total length of the messages in the channel news
}

var (
	errClosed  = errors.New("page: closed; the program ends")
	errViewers = errors.New("page: too many pages are open; close one, or raise Config.Viewers")
)

func (h *hub) init(c *Config) {
	h.config, h.viewers = c, make(map[*viewer]bool)
	for _, d := range c.Devices {
		h.devices = append(h.devices, &watched{Device: d, explainer: observe.Explainer{Addresses: c.Addresses}})
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for v := range h.viewers {
		h.drop(v)
	}
}

// join adds a viewer and returns the first message for it.
func (h *hub) join(now time.Time) (v *viewer, first []byte, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return nil, nil, errClosed
	case len(h.viewers) >= h.config.Viewers:
		return nil, nil, errViewers
	}
	if len(h.viewers) == 0 {
		h.kept, h.skipped = nil, 0
		h.start()
	}
	all := h.all(now)
	all.Interval = h.config.Interval.Milliseconds()
	first = append([]byte("retry: 2000\n"), message("all", all)...)
	for i := range h.kept {
		first = append(first, message("event", &h.kept[i])...)
	}
	v = &viewer{news: make(chan []byte, unreadMessages)}
	h.viewers[v] = true
	return v, first, nil
}

func (h *hub) leave(v *viewer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop(v)
}

// drop ends a viewer. After the last viewer, drop also ends the hub's goroutines. The caller holds h.mu.
func (h *hub) drop(v *viewer) {
	if !h.viewers[v] {
		return
	}
	delete(h.viewers, v)
	close(v.news)
	for range v.news { // frees the messages now: the handler may still wait for a browser that does not read
	}
	if len(h.viewers) == 0 {
		h.stop()
		h.stop = nil
	}
}

// start starts the hub's goroutines. The caller holds h.mu.
func (h *hub) start() {
	ctx, stop := context.WithCancel(context.Background())
	h.stop, h.budget = stop, eventsPerLook
	for i := range h.devices {
		sub := h.devices[i].Device.Device.Subscribe()
		go h.follow(ctx, i, sub)
	}
	go h.run(ctx)
}

// run calls tick once per interval until ctx ends.
func (h *hub) run(ctx context.Context) {
	ticks := time.NewTicker(h.config.Interval)
	defer ticks.Stop()
	for {
		select {
		case now := <-ticks.C:
			h.tick(ctx, now)
		case <-ctx.Done():
			return
		}
	}
}

func (h *hub) tick(ctx context.Context, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ctx.Err() != nil {
		return // the last viewer left; for a later viewer, start has started another goroutine
	}
	b := message("changes", h.look(now))
	if h.skipped > 0 {
		b = append(b, message("skipped", h.skipped)...)
	}
	h.budget, h.skipped = eventsPerLook, 0
	h.broadcast(b)
}

// look reads the status of all devices, and returns what has changed since the last look. The caller holds h.mu.
func (h *hub) look(now time.Time) report {
	h.looked = now
	r := report{Time: now.UnixMilli(), Devices: make([]view, len(h.devices))}
	for i, d := range h.devices {
		r.Devices[i] = d.look(h.config, now)
	}
	return r
}

// status returns the whole status of all devices. Callers within one interval share a look.
func (h *hub) status(now time.Time) report {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all(now)
}

// all returns the whole status of all devices, as a look within the last interval found it. While there are viewers, only tick
// calls look, because look returns each change only once and all viewers must get it.
func (h *hub) all(now time.Time) report {
	if h.looked.IsZero() || len(h.viewers) == 0 && now.Sub(h.looked) >= h.config.Interval {
		h.look(now)
	}
	r := report{Time: h.looked.UnixMilli(), Devices: make([]view, len(h.devices))}
	for i, d := range h.devices {
		r.Devices[i] = d.all()
	}
	return r
}

// broadcast sends b to each viewer, and drops viewers that are too slow. The caller holds h.mu.
func (h *hub) broadcast(b []byte) {
	for v := range h.viewers {
		if v.unread.Load() > maxUnread || len(v.news) == cap(v.news) {
			h.drop(v)
			continue
		}
		v.unread.Add(int64(len(b)))
		v.news <- b // does not wait, because the channel is not full and only broadcast sends
	}
}

// An event is a wireguard.Event as the page shows it.
type event struct {
	Time     int64  `json:"time"`   // Unix time in ms
	Device   int    `json:"device"` // an index into Config.Devices
	Kind     string `json:"kind"`
	Bad      bool   `json:"bad,omitempty"`
	Key      string `json:"key,omitempty"`
	Name     string `json:"name,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	Attempt  int    `json:"attempt,omitempty"`
	Error    string `json:"error,omitempty"`
	Merged   int    `json:"merged,omitempty"`
}

// follow shows the events of a device until ctx ends or the device is closed.
func (h *hub) follow(ctx context.Context, device int, sub *wireguard.Subscription) {
	defer sub.Close()
	for e := range sub.Events(ctx) {
		shown := event{Time: e.Time.UnixMilli(), Device: device, Kind: e.Kind.String(), Bad: observe.Level(e.Kind) > slog.LevelInfo, Attempt: e.Attempt, Merged: e.Merged + e.Missed}
		if !e.Peer.IsZero() {
			shown.Key = e.Peer.String()
			if h.config.Name != nil {
				shown.Name = h.config.Name(e.Peer)
			}
		}
		if e.Endpoint.IsValid() {
			shown.Endpoint = e.Endpoint.String()
		}
		if e.Err != nil {
			shown.Error = e.Err.Error()
		}
		h.show(ctx, shown)
	}
}

func (h *hub) show(ctx context.Context, e event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	if h.budget == 0 {
		h.skipped++
		return
	}
	h.budget--
	if len(h.kept) == keptEvents {
		h.kept = slices.Delete(h.kept, 0, 1)
	}
	h.kept = append(h.kept, e)
	h.broadcast(message("event", &e))
}

// message returns a server-sent event with a value as JSON, which has no line feed.
func message(name string, value any) []byte {
	b, err := json.Marshal(value)
	if err != nil {
		b = []byte("null") // numbers, booleans and strings always have a JSON form
	}
	return slices.Concat([]byte("event: "+name+"\ndata: "), b, []byte("\n\n"))
}
