package wireguard

import (
	"sync"
	"time"
)

// An EventKind says what an Event tells of.
type EventKind uint8

// What a device tells its subscribers of.
const (
	EventHandshake       EventKind = iota + 1 // a session stands; Peer, Endpoint
	EventSessionExpired                       // the session got too old and no new one replaced it; Peer
	EventEndpointMoved                        // the peer was heard from another place, or for the first time; Peer, Endpoint (the new one)
	EventHandshakeFailed                      // 20 initiations went unanswered; Peer, Endpoint. While packets come, tries go on
	EventBindTrouble                          // a socket failed to receive, or to open after Wake; Err. Once a second at most
	EventPeerForgotten                        // a peer that Lookup supplied has gone; Peer, Timestamp
)

// String names the kind in lower-case words.
func (k EventKind) String() string {
	switch k {
	case EventHandshake:
		return "handshake completed"
	case EventSessionExpired:
		return "session expired"
	case EventEndpointMoved:
		return "endpoint moved"
	case EventHandshakeFailed:
		return "handshake failed"
	case EventBindTrouble:
		return "bind trouble"
	case EventPeerForgotten:
		return "peer forgotten"
	}
	return "unknown event"
}

// An Event is something that happened to a device or to one of its peers. Fields that its kind does not name are
// zero.
type Event struct {
	Kind      EventKind
	Time      time.Time // wall time
	Peer      PublicKey
	Endpoint  Endpoint
	Timestamp Timestamp
	Err       error
	Missed    int // how many events before this one the subscriber was too slow for
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
