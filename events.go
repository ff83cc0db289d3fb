package wireguard

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// An Event is something that happened to a device or to one of its peers. Fields that its kind does not name are
// zero.
type Event struct {
	Kind      EventKind // never zero
	Time      time.Time // wall time
	Peer      PublicKey // whom it is about; zero: the device
	Endpoint  Endpoint  // where the peer is, or where a send failed; zero: unknown
	Timestamp Timestamp // the newest initiation accepted from the peer that was forgotten
	Err       error     // of the socket
	Missed    int       // how many events before this one the subscriber was too slow for
}

// subscribers are the channels that events go to. The zero value is ready.
type subscribers struct {
	mu   sync.Mutex // guards all below; taken last of all locks
	all  map[*subscriber]struct{}
	done bool
}

type subscriber struct {
	c      chan Event
	missed int
}

// Subscribe returns a channel of the device's events from now on, with room for n of them (at least 1), and a function
// that ends the subscription. A reader that is too slow loses events, never delays the device: the next event that it
// gets says how many it missed. The channel is closed by cancel, which may be called at any time and again, and by
// Device.Close.
func (d *Device) Subscribe(n int) (events <-chan Event, cancel func()) {
	s := &subscriber{c: make(chan Event, max(n, 1))}
	return s.c, d.subscribers.add(s)
}

func (ss *subscribers) add(s *subscriber) (cancel func()) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.done {
		close(s.c)
		return func() {}
	}
	if ss.all == nil {
		ss.all = make(map[*subscriber]struct{})
	}
	ss.all[s] = struct{}{}
	return func() {
		ss.mu.Lock()
		defer ss.mu.Unlock()
		if _, ok := ss.all[s]; ok {
			delete(ss.all, s)
			close(s.c)
		}
	}
}

// noteHandshake keeps the wall time of a session that was just confirmed: worked out later, it would shift with the
// clock, and by the nanoseconds between two readings. p.mu is held.
func (d *Device) noteHandshake(p *peer, out *outbox) {
	for i := range out.events {
		if out.events[i].kind == EventHandshake {
			p.handshakeWall = d.clock.Wall().UnixNano()
		}
	}
}

func (ss *subscribers) publish(e Event) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for s := range ss.all {
		e.Missed = s.missed
		select {
		case s.c <- e:
			s.missed = 0
		default:
			s.missed++
		}
	}
}

func (ss *subscribers) close() {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.done = true
	for s := range ss.all {
		delete(ss.all, s)
		close(s.c)
	}
}

// trouble tells of a socket that failed to receive or to open.
func (d *Device) trouble(err error) {
	if d.onceASecond(&d.troubled) {
		d.warn("bind trouble", "err", err)
		d.subscribers.publish(Event{Kind: EventBindTrouble, Time: d.clock.Wall(), Err: err})
	}
}

// sendTrouble tells of a socket that failed to send to p, where err says so. A closed one is no trouble: the device goes
// down, changes its port, or told already that Wake could not open it. The log has it at Debug, since a peer that cannot
// be reached is the daily life of a machine that moves.
func (d *Device) sendTrouble(p *peer, to *Endpoint, err error) {
	if err == nil || errors.Is(err, net.ErrClosed) || !d.onceASecond(&d.sendTroubled) {
		return
	}
	err = fmt.Errorf("wireguard: send to %v: %w", to, err)
	d.debug("bind trouble", "peer", p.key, "err", err)
	d.subscribers.publish(Event{Kind: EventBindTrouble, Time: d.clock.Wall(), Peer: p.key, Endpoint: *to, Err: err})
}

// onceASecond is true once a second at most. last is when it was.
func (d *Device) onceASecond(last *atomic.Int64) bool {
	now, then := d.now(), last.Load()
	return (then == 0 || now-then >= second) && last.CompareAndSwap(then, now)
}
