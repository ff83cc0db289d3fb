package wireguard

import (
	"context"
	"fmt"
	"iter"
	"net"
	"slices"
	"sync"
)

// maxUnread is the number of peers that may have an unread event of one kind in one subscription.
const maxUnread = 1 << 16

// A Subscription keeps the events of a device until its reader reads them. Subscribe makes it; it must not be copied. Any
// goroutine may call its methods.
//
// A slow reader never delays the device. At most one event of each kind is unread for each peer: a newer one replaces it,
// counts it in Merged and keeps the greater timestamps. A peer that causes many events therefore displaces its own events
// of the same kind, and no others. An unread event takes about 400 bytes.
//
// The unread events of one peer are read together, in the order in which they happened. Peers take turns in the order of
// their oldest unread event; events that happen while a peer's events are being read wait for its next turn. The device
// itself counts as one peer.
//
// Each kind has room for 65,536 peers. While it is full, events of that kind about further peers are lost, and the next
// event of that kind says in Missed how many.
type Subscription struct {
	in    *subscriptions // its mu guards all below
	kinds []EventKind    // that it wants; empty means all
	ready chan struct{}  // holds a token while Next has something to return
	err   error          // why no further events are added; nil means that the subscription is open

	reading []Event               // of the peer whose turn it is
	turns   []PublicKey           // of the peers in unread, oldest first
	unread  map[PublicKey][]Event // one for each kind at most, newest last

	count, missed [eventKinds]int // by kind: how many events are unread, and how many were lost since one was read
}

// subscriptions are the open subscriptions of a device. The zero value is ready.
type subscriptions struct {
	mu   sync.Mutex // guards all below; taken last of all locks
	open []*Subscription
	err  error // why no further ones are opened
}

var errUnsubscribed = fmt.Errorf("wireguard: the subscription is closed: %w", net.ErrClosed)

// Subscribe returns a subscription to the device's events of these kinds from now on, or of all kinds if none is named.
// Close it when it is no longer read.
func (d *Device) Subscribe(kinds ...EventKind) *Subscription {
	s := &Subscription{in: &d.subscriptions, kinds: slices.Clone(kinds), ready: make(chan struct{}, 1)}
	s.clear()
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	if s.err = s.in.err; s.err == nil {
		s.in.open = append(s.in.open, s)
	}
	return s
}

// Next waits for an event and returns it. The error is that of ctx if ctx has ended, even if events are unread. It wraps
// net.ErrClosed if the subscription was closed, or if the device was closed and no event is left to read.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	if err := ctx.Err(); err != nil {
		return Event{}, err
	}
	for {
		if e, err := s.take(); e.Kind != 0 || err != nil {
			return e, err
		}
		select {
		case <-s.ready:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Events iterates over the events that Next returns, until it fails. The loop may end early, and another may follow it.
func (s *Subscription) Events(ctx context.Context) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		for e, err := s.Next(ctx); err == nil && yield(e); e, err = s.Next(ctx) {
		}
	}
}

// Close ends the subscription and drops its unread events. It may be called again. (Device.Close ends it too, but leaves
// the unread events to be read.)
func (s *Subscription) Close() {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	s.in.open = slices.DeleteFunc(s.in.open, func(o *Subscription) bool { return o == s })
	s.clear()
	s.reading, s.err = nil, errUnsubscribed
	s.wake()
}

// close ends all subscriptions, and those that are still to come.
func (ss *subscriptions) close() {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, s := range ss.open {
		s.err = errClosed
		s.wake()
	}
	ss.open, ss.err = nil, errClosed
}

// publish adds e to the subscriptions to its kind. It waits for no reader. To publish the events of one peer in order,
// the caller holds the peer's mutex.
func (ss *subscriptions) publish(e Event) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, s := range ss.open {
		if len(s.kinds) == 0 || slices.Contains(s.kinds, e.Kind) {
			s.add(e)
		}
	}
}

// add makes e unread. The device's subscriptions are locked.
func (s *Subscription) add(e Event) {
	events, waits := s.unread[e.Peer]
	switch i := slices.IndexFunc(events, func(old Event) bool { return old.Kind == e.Kind }); {
	case i >= 0:
		old := &events[i]
		e.Merged = old.Merged + 1
		// Timestamps protect against replays: the greatest must not get lost where the peer was forgotten meanwhile.
		e.Timestamp, e.SentTimestamp = e.Timestamp.latest(old.Timestamp), e.SentTimestamp.latest(old.SentTimestamp)
		events = slices.Delete(events, i, i+1)
	case s.count[e.Kind] == maxUnread:
		s.missed[e.Kind]++
		return
	default:
		s.count[e.Kind]++
	}
	if !waits {
		s.turns = append(s.turns, e.Peer)
	}
	s.unread[e.Peer] = append(events, e)
	s.wake()
}

// take takes the next unread event. If none is left, e is zero and err says why none will follow.
func (s *Subscription) take() (e Event, err error) {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	if len(s.reading) == 0 && len(s.turns) > 0 {
		s.reading, s.turns = s.unread[s.turns[0]], s.turns[1:]
		if delete(s.unread, s.reading[0].Peer); len(s.turns) == 0 {
			s.clear() // an emptied map keeps its memory
		}
	}
	if err = s.err; len(s.reading) > 0 {
		e, s.reading, err = s.reading[0], s.reading[1:], nil
		s.count[e.Kind]--
		e.Missed, s.missed[e.Kind] = s.missed[e.Kind], 0
	}
	if len(s.reading)+len(s.turns) > 0 || s.err != nil {
		s.wake() // another goroutine may wait too
	}
	return e, err
}

// clear drops what is unread, but not what is being read. The device's subscriptions are locked, or do not know s yet.
func (s *Subscription) clear() { s.turns, s.unread = nil, make(map[PublicKey][]Event) }

// wake lets one goroutine that waits in Next look again. The device's subscriptions are locked.
func (s *Subscription) wake() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}
