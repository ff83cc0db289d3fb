package wireguard

import (
	"errors"
	"net"
	"sync/atomic"
	"time"
)

// An Event is something that happened to a device or to one of its peers. Fields that the comment of its kind does not
// name are zero.
type Event struct {
	Kind     EventKind // what happened; never zero
	Time     time.Time // when it happened, by the wall clock
	Peer     PublicKey // the peer that it happened to; zero means the device
	Endpoint Endpoint  // where the peer is, or the endpoint to which a send failed; zero means unknown

	// Timestamp is the newest timestamp of an initiation that the device accepted from the peer. SentTimestamp is the newest one
	// that the device sent to the peer. Zero means none.
	Timestamp, SentTimestamp Timestamp

	Attempt int   // number of the initiation, counted from 1 after each handshake; initiations that Renew replaced count too
	Err     error // what failed, and why

	Merged int // how many older events of this kind and peer this one replaced, because nobody had read them
	Missed int // how many events of this kind were lost before this one; see Subscription
}

// publish passes the events of p to the subscribers, and wakes the calls of Handshake and Renew that wait for a session with p. The
// caller holds p.mu, so that the events of a peer are published in the order in which they happened. In a subscription, each event
// replaces an unread one of the same kind and peer, so it must be the newer of the two.
func (d *Device) publish(p *peer, events []outEvent) {
	for i := range events {
		e := Event{Kind: events[i].kind, Time: d.clock.Wall(), Peer: p.key, Endpoint: events[i].endpoint}
		switch e.Kind {
		case EventHandshake:
			p.handshakeWall = e.Time.UnixNano() // stored now, because the wall clock may be set before the value is read
			e.Timestamp, e.SentTimestamp = p.lastTimestamp, p.ownTimestamp
			p.endWaits(nil)
		case EventAttemptFailed:
			e.Attempt, e.Err = int(p.timers.tries), p.attemptError()
		case EventHandshakeFailed:
			e.Err = p.attemptError()
			p.endWaits(p.because(ErrNoAnswer))
		}
		d.announce(e)
	}
}

// trouble reports err, with which a socket failed to receive or to open.
func (d *Device) trouble(err error) {
	d.warn("bind trouble", "err", err)
	d.announce(Event{Kind: EventBindTrouble, Time: d.clock.Wall(), Err: err})
}

// sendTrouble reports err, the result of sending a message to p, unless err is nil. It reports at most once per second for each
// peer. It does not report net.ErrClosed: the socket is then closed because the device goes down or replaces the socket, or because
// Wake could not open another one, which was reported already. It logs the error at Debug, since an unreachable peer is normal for
// a machine that moves between networks.
func (d *Device) sendTrouble(p *peer, to *Endpoint, err error) {
	if err == nil || errors.Is(err, net.ErrClosed) || !d.onceASecond(&p.troubled) {
		return
	}
	err = &sendError{*to, err}
	d.debug("bind trouble", "peer", p.key, "err", err)
	d.announce(Event{Kind: EventBindTrouble, Time: d.clock.Wall(), Peer: p.key, Endpoint: *to, Err: err})
}

// onceASecond returns true at most once per second. last holds the time when it last returned true.
func (d *Device) onceASecond(last *atomic.Int64) bool {
	now, then := d.now(), last.Load()
	return (then == 0 || now-then >= second) && last.CompareAndSwap(then, now)
}
