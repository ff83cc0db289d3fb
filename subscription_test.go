package wireguard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/inbox"
)

// take removes the next unread event, and returns it. If there is none, it does not wait, and returns the zero value.
func (s *Subscription) take() (Event, error) {
	e, missed, _, err := s.inbox.Take()
	e.Missed = missed
	return e, err
}

// unreadEvents reads and returns all events that are unread now.
func unreadEvents(t testing.TB, s *Subscription) (all []Event) {
	t.Helper()
	for {
		e, err := s.take()
		if err != nil && !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		if e.Kind == 0 {
			return all
		}
		all = append(all, e)
	}
}

// eventTexts returns a text of the form "kind peer attempt" for each event.
func eventTexts(events []Event) (all []string) {
	for _, e := range events {
		all = append(all, fmt.Sprintf("%v %d %d", e.Kind, e.Peer[0], e.Attempt))
	}
	return all
}

// TestMergedEvents checks how a subscription merges unread events of one kind about one peer: it keeps only the newest event. The
// kept event has the greatest timestamps of all merged events, and the number of events that it replaced.
func TestMergedEvents(t *testing.T) {
	place := func(port uint16) Endpoint {
		return EndpointOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), port))
	}
	old, new := TimestampOf(epoch), TimestampOf(epoch.Add(time.Hour))
	for _, test := range []struct {
		name                 string
		first, second, third Event
		want                 Event
	}{
		{"handshakes",
			Event{Kind: EventHandshake, Endpoint: place(1), Timestamp: old, SentTimestamp: new},
			Event{Kind: EventHandshake, Endpoint: place(2), Timestamp: new, SentTimestamp: new},
			Event{Kind: EventHandshake, Endpoint: place(3), Timestamp: new, SentTimestamp: new},
			Event{Kind: EventHandshake, Endpoint: place(3), Timestamp: new, SentTimestamp: new, Merged: 2}},
		{"moves", Event{Kind: EventEndpointMoved, Endpoint: place(1)}, Event{Kind: EventEndpointMoved, Endpoint: place(2)},
			Event{Kind: EventEndpointMoved, Endpoint: place(1)}, Event{Kind: EventEndpointMoved, Endpoint: place(1), Merged: 2}},
		{"attempts", Event{Kind: EventAttemptFailed, Attempt: 7}, Event{Kind: EventAttemptFailed, Attempt: 8},
			Event{Kind: EventAttemptFailed, Attempt: 1}, // after a handshake, the attempts are numbered from 1 again
			Event{Kind: EventAttemptFailed, Attempt: 1, Merged: 2}},
		{"trouble", Event{Kind: EventBindTrouble, Err: net.ErrClosed}, Event{Kind: EventBindTrouble, Err: net.ErrClosed},
			Event{Kind: EventBindTrouble, Err: net.ErrWriteToConnected},
			Event{Kind: EventBindTrouble, Err: net.ErrWriteToConnected, Merged: 2}},
		{"a recording brought the peer back, and it was forgotten again",
			Event{Kind: EventPeerForgotten, Timestamp: new, SentTimestamp: new},
			Event{Kind: EventPeerForgotten, Timestamp: old}, Event{Kind: EventPeerForgotten, SentTimestamp: old},
			Event{Kind: EventPeerForgotten, Timestamp: new, SentTimestamp: new, Merged: 2}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var d Device
			s := d.Subscribe()
			for i, e := range []Event{test.first, test.second, test.third} {
				e.Time = epoch.Add(time.Duration(i))
				d.announce(e)
			}
			test.want.Time = epoch.Add(2)
			if got := unreadEvents(t, s); len(got) != 1 || got[0] != test.want {
				t.Errorf("the events are\n%+v, want\n%+v", got, test.want)
			}
			d.announce(test.first)
			if got := unreadEvents(t, s); len(got) != 1 || got[0] != test.first {
				t.Errorf("the events are %+v, want one event that is not merged with an event that was read", got)
			}
		})
	}
}

// TestEventOrder checks that the events of a peer are read in the order in which they last happened, and that the events of
// different peers alternate.
func TestEventOrder(t *testing.T) {
	var d Device
	s := d.Subscribe()
	attempts := make(map[byte]int)
	publish := func(peer byte, kinds ...EventKind) {
		for _, k := range kinds {
			attempts[peer]++
			d.announce(Event{Kind: k, Peer: PublicKey{peer}, Attempt: attempts[peer]})
		}
	}
	want := func(why string, texts ...string) {
		t.Helper()
		var got []Event
		for range texts {
			e, _ := s.take()
			got = append(got, e)
		}
		if !slices.Equal(eventTexts(got), texts) {
			t.Errorf("%s: %q, want %q", why, eventTexts(got), texts)
		}
	}
	publish(1, EventHandshake, EventSessionExpired, EventHandshake)
	publish(2, EventHandshake)
	publish(1, EventEndpointMoved)
	publish(3, EventHandshake)
	want("the first events are of peer 1, in the order in which they last happened", "session expired 1 2", "handshake completed 1 3")
	publish(1, EventSessionExpired, EventEndpointMoved)
	publish(2, EventSessionExpired)
	want("the turn of peer 1 ends with the last event that was unread when the turn began", "endpoint moved 1 4")
	want("the next turn is that of peer 2", "handshake completed 2 1", "session expired 2 2")
	publish(2, EventHandshake)
	want("then it is the turn of peer 3, of peer 1 and again of peer 2", "handshake completed 3 1", "session expired 1 5", "endpoint moved 1 6", "handshake completed 2 3")
	if left := unreadEvents(t, s); left != nil {
		t.Errorf("the unread events %+v are left, want none", left)
	}
}

// TestNoPeerIsStarved is about a slow reader: each time it reads one event, each of three peers has caused two more. The reader
// must still read events of each kind and each peer, all about equally often.
func TestNoPeerIsStarved(t *testing.T) {
	var d Device
	s := d.Subscribe()
	seen := make(map[string]int)
	for range 600 {
		for peer := range byte(3) {
			d.announce(Event{Kind: EventEndpointMoved, Peer: PublicKey{peer}})
			d.announce(Event{Kind: EventHandshake, Peer: PublicKey{peer}})
		}
		e, _ := s.take()
		seen[eventTexts([]Event{e})[0]]++
	}
	if len(seen) != 6 {
		t.Errorf("the events that were read are %v, want two kinds for each of three peers", seen)
	}
	for e, n := range seen {
		if n < 99 || n > 101 {
			t.Errorf("of 600 events, %q was read %d times, want a sixth", e, n)
		}
	}
}

func peerNumber(i int) (k PublicKey) {
	binary.BigEndian.PutUint32(k[:], uint32(i))
	return k
}

// TestFullKind checks that for each kind, a subscription keeps unread events of up to inbox.Max peers. It drops events of the
// same kind about any further peer, and counts these events as missed. It must not lose events of other kinds, or about peers
// that already have an unread event of that kind. Other subscriptions must not lose events.
func TestFullKind(t *testing.T) {
	var d Device
	s, other := d.Subscribe(EventEndpointMoved, EventPeerForgotten), d.Subscribe(EventPeerForgotten)
	for range 2 {
		for i := range inbox.Max + 5 {
			d.announce(Event{Kind: EventEndpointMoved, Peer: peerNumber(i)})
		}
	}
	for i := range inbox.Max {
		d.announce(Event{Kind: EventPeerForgotten, Peer: peerNumber(inbox.Max + i)})
		d.announce(Event{Kind: EventHandshake, Peer: peerNumber(i)}) // no subscription wants this kind
	}
	if n := len(unreadEvents(t, other)); n != inbox.Max {
		t.Errorf("the other subscription has %d of %d events", n, inbox.Max)
	}
	moved, forgotten := 0, 0
	for i, e := range unreadEvents(t, s) {
		if missed := 10; (e.Missed == missed) != (i == 0) || i > 0 && e.Missed != 0 {
			t.Fatalf("event %d says that %d events were missed, want 10 in the first event and 0 in the others", i, e.Missed)
		}
		switch e.Kind {
		case EventEndpointMoved:
			if moved++; e.Merged != 1 {
				t.Fatalf("the event is %+v, want Merged to be 1", e)
			}
		case EventPeerForgotten:
			forgotten++
		}
	}
	if moved != inbox.Max || forgotten != inbox.Max {
		t.Errorf("%d moves and %d forgotten peers, want %d each", moved, forgotten, inbox.Max)
	}
	d.announce(Event{Kind: EventEndpointMoved, Peer: peerNumber(inbox.Max + 6)})
	if got := unreadEvents(t, s); len(got) != 1 || got[0].Missed != 0 {
		t.Errorf("the events are %+v, want one event: there is room again after all were read", got)
	}
}

// TestUnreadMemory checks that an unread event uses about 400 bytes of memory, at most 500, and that the memory is freed when the
// event is read or dropped.
func TestUnreadMemory(t *testing.T) {
	for _, end := range []string{"read", "closed"} {
		var d Device
		before := heapAndStack()
		s := d.Subscribe()
		for i := range inbox.Max {
			d.announce(Event{Kind: EventEndpointMoved, Peer: peerNumber(i)})
		}
		if each := (heapAndStack() - before) / inbox.Max; each > 500 && !raceEnabled {
			t.Errorf("an unread event uses %d bytes of memory, want at most 500", each)
		} else {
			t.Logf("an unread event uses %d bytes of memory", each)
		}
		if end == "read" {
			unreadEvents(t, s)
		} else {
			s.Close()
		}
		if left := heapAndStack() - before; left > 256<<10 {
			t.Errorf("%s: %d bytes of memory are left", end, left)
		}
		runtime.KeepAlive(&d)
		runtime.KeepAlive(s)
	}
}

// TestPublishAllocatesNothing checks that publishing an event allocates nothing if no subscription includes its kind, or if it
// replaces an unread event.
func TestPublishAllocatesNothing(t *testing.T) {
	var d Device
	e := Event{Kind: EventEndpointMoved, Peer: PublicKey{1}}
	publish := func() { d.announce(e) }
	if n := testing.AllocsPerRun(100, publish); n != 0 {
		t.Errorf("without a subscription, publishing allocates %v times, want 0", n)
	}
	d.Subscribe(EventHandshake)
	if n := testing.AllocsPerRun(100, publish); n != 0 {
		t.Errorf("without a subscription to the kind, publishing allocates %v times, want 0", n)
	}
	d.Subscribe()
	if n := testing.AllocsPerRun(100, publish); n != 0 {
		t.Errorf("when the last event is unread, publishing allocates %v times, want 0", n)
	}
}

// TestNextEnds checks that Next and a loop over Events end when their context ends, whether or not there are unread events.
func TestNextEnds(t *testing.T) {
	var d Device
	over, cancel := context.WithCancel(t.Context())
	cancel()
	event := Event{Kind: EventHandshake, Peer: PublicKey{1}}
	s := d.Subscribe()
	d.announce(event)
	if e, err := s.Next(over); err != context.Canceled {
		t.Errorf("with an ended context, Next returned %+v and the error %v, want context.Canceled", e, err)
	}
	for range s.Events(over) {
		t.Error("the loop over Events continues although its context has ended")
	}
	if e, err := s.Next(t.Context()); err != nil || e != event {
		t.Errorf("Next returned %+v and the error %v, want the unread event", e, err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if e, err := s.Next(soon); err != context.DeadlineExceeded {
		t.Errorf("without an unread event, Next returned %+v and the error %v, want context.DeadlineExceeded", e, err)
	}
	for i := range 3 {
		d.announce(Event{Kind: EventHandshake, Peer: peerNumber(i)})
	}
	soon, cancel = context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	n := 0
	for range s.Events(soon) {
		n++
		break
	}
	for range s.Events(soon) {
		n++
	}
	if n != 3 {
		t.Errorf("two loops read %d events, want 3", n)
	}
}

// TestSubscriptionClose checks that Subscription.Close drops the unread events, but that they can still be read after
// Device.Close.
func TestSubscriptionClose(t *testing.T) {
	var d Device
	event := Event{Kind: EventHandshake, Peer: PublicKey{1}}
	closed, kept := d.Subscribe(), d.Subscribe()
	for range 3 {
		d.announce(event)
		event.Peer[1]++
	}
	if e, err := closed.Next(t.Context()); err != nil || e.Peer != (PublicKey{1}) {
		t.Errorf("Next returned %+v and the error %v, want the first event", e, err)
	}
	for range 2 {
		closed.Close()
		if e, err := closed.Next(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Subscription.Close, Next returned %+v and the error %v, want net.ErrClosed", e, err)
		}
	}
	d.subscriptions.Close(errClosed)
	d.subscriptions.Close(errClosed)
	d.announce(event)
	n := 0
	for e := range kept.Events(t.Context()) {
		if e.Peer != (PublicKey{1, byte(n)}) {
			t.Errorf("event %d is %+v, want the events in the order of their publication", n, e)
		}
		if n++; n == 2 {
			break
		}
	}
	for range kept.Events(t.Context()) {
		n++
	}
	if n != 3 {
		t.Errorf("%d events were left when the device was closed, want 3", n)
	}
	for _, s := range []*Subscription{kept, d.Subscribe()} {
		if e, err := s.Next(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Device.Close, Next returned %+v and the error %v, want net.ErrClosed", e, err)
		}
		s.Close()
	}
}

// TestSubscriptionsConcurrently runs publishers together with three kinds of readers: readers that share a subscription and
// sometimes stop waiting, the only reader of a subscription, and readers that close their own subscriptions. Each event must be
// delivered, merged or counted as missed. The only reader must get the events of each peer in order. No reader may wait while an
// event is unread. Closing the device must end all readers.
func TestSubscriptionsConcurrently(t *testing.T) {
	const publishers, perPublisher = 4, 5000
	var d Device
	var sharers, owners, publishing sync.WaitGroup
	var got [3]atomic.Int64
	shared, alone := d.Subscribe(), d.Subscribe(EventHandshake)
	for i := range 3 {
		sharers.Go(func() {
			for {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*50*time.Microsecond+time.Microsecond)
				e, err := shared.Next(ctx)
				cancel()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					got[0].Add(int64(1 + e.Merged + e.Missed))
				}
			}
		})
	}
	owners.Go(func() {
		last := make(map[PublicKey]int)
		for e := range alone.Events(context.Background()) {
			if e.Attempt <= last[e.Peer] {
				t.Errorf("event %d of peer %x was read after event %d, want ascending numbers", e.Attempt, e.Peer[:2], last[e.Peer])
			}
			last[e.Peer] = e.Attempt
			got[1].Add(int64(1 + e.Merged + e.Missed))
		}
	})
	for range 2 {
		owners.Go(func() {
			for range 200 {
				s := d.Subscribe()
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					for range s.Events(context.Background()) {
						got[2].Add(1)
					}
				}()
				runtime.Gosched()
				go s.Close()
				s.Close()
				<-ended
			}
		})
	}
	for i := range publishers {
		publishing.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for n := range perPublisher {
				d.announce(Event{Kind: EventHandshake, Peer: PublicKey{byte(i), byte(r.IntN(4))}, Attempt: n + 1})
				if n%64 == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	publishing.Wait()
	for i := range 2 {
		eventually(t, "the readers have got all events, merged and missed ones included", func() bool {
			return got[i].Load() == publishers*perPublisher
		})
	}
	d.subscriptions.Close(errClosed)
	sharers.Wait()
	owners.Wait()
}

// A yieldingClock lets other goroutines run whenever the device reads the wall time, which it does for each event.
type yieldingClock struct{ handClock }

func (c *yieldingClock) Wall() time.Time { runtime.Gosched(); return c.handClock.Wall() }

// TestNewestEventWins checks that if several receivers change a peer's endpoint at the same time, the newest event has the peer's
// current endpoint.
func TestNewestEventWins(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e, err := New(Config{Tunnel: newDrain(), Bind: newLine(), Clock: new(yieldingClock), Peers: []PeerConfig{r.config()}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s, p := e.Subscribe(EventEndpointMoved), e.peers.Find(r.id.public)
	for round := range 200 {
		var receivers sync.WaitGroup
		for i := range 4 {
			receivers.Go(func() {
				for j := range 10 {
					var out outbox
					from := EndpointOf(netip.AddrPortFrom(r.from.Addr.Addr(), uint16(2000+100*i+j)))
					p.mu.Lock()
					p.moveTo(from, &out)
					e.release(p, &out)
				}
			})
		}
		receivers.Wait()
		if got := unreadEvents(t, s); len(got) != 1 || got[0].Merged != 39 || got[0].Endpoint != p.endpoint {
			t.Fatalf("round %d: the events are %+v, want one event with 39 merged ones and the peer's endpoint %v", round, got, p.endpoint)
		}
	}
}

// TestFlappingPeer makes a peer send 100,000 authentic keepalives, each from a different port than the last, while nobody reads
// the events. The subscription must not lose an event of another peer. It must not lose EventPeerForgotten either, because the
// timestamp in that event protects against replayed initiations.
func TestFlappingPeer(t *testing.T) {
	flaps := 100_000
	if raceEnabled || testing.Short() {
		flaps = 10_000
	}
	public := testKey(1).Public()
	flapping, quiet, guest := newRemote(1, public), newRemote(2, public), newRemote(3, public)
	e := newEnd(t, testKey(1), flapping.config(), quiet.config())
	e.lookup = func(_ context.Context, k PublicKey) (PeerConfig, error) {
		c := guest.config()
		if c.PublicKey != k {
			return c, errors.New("not a guest")
		}
		return c, nil
	}
	e.lookups.MaxAdmitted = 1
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	all, forgotten := e.Subscribe(), e.Subscribe(EventPeerForgotten)
	e.connect(t, flapping)
	flap := func(n int) {
		for i := range n {
			tr := flapping.train(flapping.data(nil))
			tr.Endpoint = EndpointOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(2000+i%50000)))
			e.line.receive(tr)
		}
	}
	flap(flaps / 2)
	e.connect(t, guest)
	e.connect(t, quiet)
	flap(flaps / 2)
	for range 4 {
		e.advance(t, 180*time.Second)
	}
	for name, s := range map[string]*Subscription{"all kinds": all, "one kind": forgotten} {
		got := unreadEvents(t, s)
		if i := slices.IndexFunc(got, func(e Event) bool { return e.Kind == EventPeerForgotten }); i < 0 ||
			got[i].Peer != guest.id.public || got[i].Timestamp != guest.ts {
			t.Errorf("%s: the event of the forgotten peer is not among %q", name, eventTexts(got))
		}
		if s == forgotten {
			continue
		}
		moves, handshakes := 0, 0
		for _, ev := range got {
			switch {
			case ev.Missed != 0:
				t.Errorf("the event %+v says that events were missed, want none", ev)
			case ev.Kind == EventEndpointMoved && ev.Peer == flapping.id.public:
				if moves += 1 + ev.Merged; ev.Endpoint != e.peer(flapping).endpoint {
					t.Errorf("the event is %+v, but the peer's endpoint is %v", ev, e.peer(flapping).endpoint)
				}
			case ev.Kind == EventHandshake && ev.Peer == quiet.id.public:
				if handshakes++; ev.Timestamp != quiet.ts || ev.Endpoint != quiet.from {
					t.Errorf("the quiet peer's event is %+v, want its timestamp and endpoint", ev)
				}
			}
		}
		if moves != flaps || handshakes != 1 {
			t.Errorf("%d moves of the flapping peer, want %d; %d handshakes of the quiet one, want 1", moves, flaps, handshakes)
		}
	}
}
