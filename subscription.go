package wireguard

import (
	"context"
	"fmt"
	"iter"
	"net"

	"github.com/seed-86b749af/wireguard/internal/inbox"
)

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
	inbox *inbox.Inbox[EventKind, PublicKey, Event]
}

var errUnsubscribed = fmt.Errorf("wireguard: the subscription is closed: %w", net.ErrClosed)

// Subscribe returns a subscription to the device's events of these kinds from now on, or of all kinds if none is named.
// Close it when it is no longer read.
func (d *Device) Subscribe(kinds ...EventKind) *Subscription {
	return &Subscription{d.subscriptions.Open(kinds)}
}

// Next waits for an event and returns it. The error is that of ctx if ctx has ended, even if events are unread. It wraps
// net.ErrClosed if the subscription was closed, or if the device was closed and no event is left to read.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	e, missed, err := s.inbox.Next(ctx)
	e.Missed = missed
	return e, err
}

// Events iterates over the events that Next returns, until Next fails. The loop may end early, and another loop may
// follow it.
func (s *Subscription) Events(ctx context.Context) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		for e, err := s.Next(ctx); err == nil && yield(e); e, err = s.Next(ctx) {
		}
	}
}

// Close ends the subscription and drops its unread events. It may be called again. (Device.Close ends it too, but leaves
// the unread events to be read.)
func (s *Subscription) Close() { s.inbox.Close(errUnsubscribed) }

// announce publishes an event to the subscribers. To announce the events of one peer in order, the caller holds the peer's
// mutex.
func (d *Device) announce(e Event) { d.subscriptions.Publish(e.Kind, e.Peer, e, mergeEvents) }

// mergeEvents returns the event that takes the place of old, which is unread, when e is published. Timestamps protect against
// replays, so the greatest must not get lost even if the peer was forgotten meanwhile.
func mergeEvents(e, old Event) Event {
	e.Merged = old.Merged + 1
	e.Timestamp, e.SentTimestamp = e.Timestamp.latest(old.Timestamp), e.SentTimestamp.latest(old.SentTimestamp)
	return e
}
