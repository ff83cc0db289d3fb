package wireguard

import (
	"context"
	"fmt"
	"iter"
	"net"

	"github.com/seed-86b749af/wireguard/internal/inbox"
)

// A Subscription keeps the events of a device until its reader reads them. [Device.Subscribe] makes a Subscription. A
// Subscription must not be copied. Any goroutine may call its methods.
//
// A slow reader never delays the device. At most one event of each kind is unread for each peer. A newer event of the same kind
// replaces the unread one, counts it in Merged, and gets the greater Timestamp and SentTimestamp of the two events. So a peer that
// causes many events displaces only its own events of the same kind. An unread event takes about 400 bytes.
//
// Next returns all unread events of one peer, in the order in which they happened, before those of another peer. It begins with
// the peer that has the oldest unread event. If more events of a peer happen while Next returns the events of this peer, Next
// returns those of other peers first. The device itself counts as one peer.
//
// A Subscription keeps the unread events of each kind about at most 65,536 peers. Beyond that, events of the same kind about
// other peers are lost. The next event of this kind says in Missed how many were lost.
type Subscription struct {
	inbox *inbox.Inbox[EventKind, PublicKey, Event]
}

var errUnsubscribed = fmt.Errorf("wireguard: the subscription is closed: %w", net.ErrClosed)

// Subscribe returns a subscription to the device's events of these kinds from now on, or of all kinds if none is named. Close the
// subscription when it is no longer read.
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

// announce publishes an event to the subscribers. Readers get the events of one peer in the order in which they are announced. So
// publish and forget, which announce changes of a peer's state, hold the peer's mutex. An EventBindTrouble is not about this state,
// so sendTrouble holds no lock.
func (d *Device) announce(e Event) { d.subscriptions.Publish(e.Kind, e.Peer, e, mergeEvents) }

// mergeEvents returns the event that takes the place of old, which is unread, when e is published. It keeps the greatest
// timestamps, because they protect against replays even after the peer was forgotten.
func mergeEvents(e, old Event) Event {
	e.Merged = old.Merged + 1
	e.Timestamp, e.SentTimestamp = e.Timestamp.latest(old.Timestamp), e.SentTimestamp.latest(old.SentTimestamp)
	return e
}
