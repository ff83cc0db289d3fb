package wireguard_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A moodyBind fails as it is told to, and notes what it was asked for.
type moodyBind struct {
	wireguard.Bind

	mu     sync.Mutex // guards all below
	fail   error      // of Listen
	noMark error      // of SetMark
	opened []uint16
	marks  []uint32
	moods  []error // of the next calls of Receive
}

type moodySocket struct {
	wireguard.Socket
	b *moodyBind
}

type moodyReceiver struct {
	wireguard.Receiver
	b *moodyBind
}

func (b *moodyBind) Listen(port uint16) (wireguard.Socket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened = append(b.opened, port)
	if b.fail != nil {
		return nil, b.fail
	}
	s, err := b.Bind.Listen(port)
	if err != nil {
		return nil, err
	}
	return moodySocket{s, b}, nil
}

func (s moodySocket) SetMark(mark uint32) error {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.marks = append(s.b.marks, mark)
	return s.b.noMark
}

func (s moodySocket) Receivers() []wireguard.Receiver {
	return []wireguard.Receiver{moodyReceiver{s.Socket.Receivers()[0], s.b}}
}

func (r moodyReceiver) Receive() ([]wireguard.Train, error) {
	r.b.mu.Lock()
	if len(r.b.moods) > 0 {
		err := r.b.moods[0]
		r.b.moods = r.b.moods[1:]
		r.b.mu.Unlock()
		return nil, err
	}
	r.b.mu.Unlock()
	return r.Receiver.Receive()
}

func (b *moodyBind) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

// withMood plays with a device a whose bind is moody, and its peer b.
func withMood(t *testing.T, play func(w *world, a, b *node, mood *moodyBind)) {
	inWorld(t, func(w *world) {
		mood := &moodyBind{}
		a := w.node("a", func(c *wireguard.Config) { mood.Bind, c.Bind = c.Bind, mood })
		b := w.node("b")
		a.knows(b)
		b.knows(a)
		play(w, a, b, mood)
	})
}

// Every call in every state of a device's life: it does what it says, or fails with an error that says why. What it
// leaves behind would fail the test by itself.
func TestEveryCallInEveryState(t *testing.T) {
	states := []struct {
		name  string
		enter func(n *node)
		up    bool
		want  error // of what needs a device that is up
	}{
		{"new", func(n *node) {}, false, nil},
		{"up", func(n *node) { n.Up() }, true, nil},
		{"up twice", func(n *node) { n.Up(); n.Up() }, true, nil},
		{"down", func(n *node) { n.Up(); n.Down() }, false, nil},
		{"down twice", func(n *node) { n.Up(); n.Down(); n.Down() }, false, nil},
		{"up again", func(n *node) { n.Up(); n.Down(); n.Up() }, true, nil},
		{"closed", func(n *node) { n.Close() }, false, net.ErrClosed},
		{"closed when up", func(n *node) { n.Up(); n.Close() }, false, net.ErrClosed},
		{"closed when down", func(n *node) { n.Up(); n.Down(); n.Close(); n.Close() }, false, net.ErrClosed},
	}
	calls := map[string]func(w *world, a, b *node) error{
		"Up":        func(w *world, a, b *node) error { return a.Up() },
		"Configure": func(w *world, a, b *node) error { return a.Configure(wireguard.Change{ListenPort: ptr(uint16(9))}) },
		"AddPeer":   func(w *world, a, b *node) error { return a.AddPeer(b.peer()) },
		"Handshake": func(w *world, a, b *node) error { return a.Handshake(w.Context(), b.pub()) },
		"Send": func(w *world, a, b *node) error {
			batch := a.NewBatch()
			batch.Append(a.packet(b, "x"))
			defer func() {
				if batch.Len() != 0 {
					w.Error("Send must empty the batch, whatever happens")
				}
			}()
			return a.Send(batch)
		},
		"Down":  func(w *world, a, b *node) error { return a.Down() },
		"Wake":  func(w *world, a, b *node) error { return a.Wake() },
		"Close": func(w *world, a, b *node) error { return a.Close() },
		"Status": func(w *world, a, b *node) error {
			s := a.Status()
			n := 0
			for range a.Peers() {
				n++
			}
			if _, ok := a.Route(b.addr); !ok || n != 1 || s.Peers != 1 || s.PublicKey != a.pub() {
				return fmt.Errorf("status %+v, %d peers", s, n)
			}
			return nil
		},
	}
	needsUp := map[string]bool{"Handshake": true, "Send": true}
	afterClose := map[string]bool{"Up": true, "Configure": true, "AddPeer": true, "Handshake": true, "Send": true}
	for _, s := range states {
		for name, call := range calls {
			t.Run(s.name+"/"+name, func(t *testing.T) {
				inWorld(t, func(w *world) {
					a, b := w.nodeDown("a"), w.node("b")
					a.knows(b)
					b.knows(a)
					s.enter(a)
					if up := a.Status().Up; up != s.up {
						w.Fatalf("up: %v, want %v", up, s.up)
					}
					err := call(w, a, b)
					switch {
					case s.want != nil && afterClose[name]:
						if !errors.Is(err, s.want) {
							w.Fatalf("error %v, want one that wraps %v", err, s.want)
						}
					case needsUp[name] && !s.up:
						if err == nil || errors.Is(err, net.ErrClosed) {
							w.Fatalf("error %v, want one that says that the device is down", err)
						}
					case err != nil:
						w.Fatal(err)
					}
					a.Close()
					b.Close()
					if err := a.Err(); err != nil {
						w.Fatalf("Err after Close: %v", err)
					}
					<-a.Done()
				})
			})
		}
	}
}

// Down keeps configuration and counters, and drops sessions and what is staged; row 26.
func TestDownAndUpAgain(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		a.send(b, "one")
		b.wantArrived("a session", "one")
		w.advance(10 * time.Second)
		w.want("a initiation, b response, a data, b keepalive", "nobody owes anything")
		before := a.status(b)
		a.Down()
		if n := wireguard.SessionIndices(a.Device); n != 0 {
			w.Fatalf("%d session indices while down", n)
		}
		s := a.status(b)
		if s.Sent != before.Sent || s.Received != before.Received || s.Timestamp != before.Timestamp ||
			s.LastHandshake.IsZero() || s.Endpoint.Addr != before.Endpoint.Addr || len(s.AllowedIPs) != 2 {
			w.Fatalf("before %+v\nafter %+v", before, s)
		}
		if s.Session || s.NextReason != "" {
			w.Fatalf("a session, or a deadline, while down: %+v", s)
		}
		a.send(b, "dropped")
		a.wantDrops(wireguard.DropDown, 1, "down")
		w.wantIdle(time.Hour, "down")
		if err := a.Up(); err != nil {
			w.Fatal(err)
		}
		a.send(b, "two")
		w.want("a initiation, b response, a data", "up again: at once")
		b.wantArrived("what was sent while down is gone", "two")
	})
}

// A tunnel that fails ends the device, which says why; one that ends just ends.
func TestTunnelFails(t *testing.T) {
	gone := errors.New("the interface is gone")
	for _, failure := range []error{gone, io.EOF} {
		inWorld(t, func(w *world) {
			failing := &failingTunnel{Tunnel: pipe.NewTunnel(0), fail: make(chan error)}
			a := w.node("a", func(c *wireguard.Config) { c.Tunnel = failing })
			b := w.node("b")
			a.knows(b)
			b.knows(a)
			w.connect(a, b)
			failing.fail <- failure
			w.settle()
			if failure == io.EOF {
				b.send(a, "still")
				if p := failing.Tunnel.TryReceive(); p == nil || a.Err() != nil {
					w.Fatal("io.EOF ends the reading, not the device")
				}
				return
			}
			<-a.Done()
			if err := a.Err(); !errors.Is(err, gone) {
				w.Fatalf("Err: %v, want one that wraps the tunnel's", err)
			}
			if err := a.Close(); err != nil {
				w.Fatalf("Close: %v", err)
			}
			if err := a.Up(); !errors.Is(err, net.ErrClosed) {
				w.Fatalf("Up: %v, want net.ErrClosed", err)
			}
		})
	}
}

// A failingTunnel has nothing to send, and fails when told to.
type failingTunnel struct {
	*pipe.Tunnel
	fail chan error
	once sync.Once
}

func (t *failingTunnel) ReadPackets(*wireguard.Batch) error {
	err, ok := <-t.fail
	if !ok {
		return net.ErrClosed
	}
	return err
}

func (t *failingTunnel) Close() error {
	t.once.Do(func() { close(t.fail) })
	return t.Tunnel.Close()
}

// Close in full swing, from several goroutines at once.
func TestCloseUnderLoad(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for _, n := range []*node{a, b} {
			o := map[*node]*node{a: b, b: a}[n]
			for range 2 {
				wg.Go(func() {
					batch := n.NewBatch()
					for {
						select {
						case <-stop:
							return
						default:
						}
						for range 64 {
							batch.Append(n.packet(o, "load"))
						}
						if err := n.Send(batch); err != nil && !errors.Is(err, net.ErrClosed) {
							w.Error(err)
						}
						n.tun.TryReceive()
						time.Sleep(time.Microsecond)
					}
				})
			}
			wg.Go(func() {
				if err := n.Handshake(context.Background(), o.pub()); err != nil && !errors.Is(err, net.ErrClosed) {
					w.Error(err)
				}
			})
		}
		time.Sleep(time.Millisecond)
		for range 3 {
			wg.Go(func() {
				if err := a.Close(); err != nil {
					w.Error(err)
				}
				select {
				case <-a.Done():
				default:
					w.Error("Close returned before it was over")
				}
			})
		}
		time.Sleep(time.Millisecond)
		b.Close()
		close(stop)
		wg.Wait()
		if n, m := wireguard.StagedBytes(a.Device), wireguard.StagedBytes(b.Device); n != 0 || m != 0 {
			w.Fatalf("%d and %d bytes staged in the end", n, m)
		}
	})
}

// All endings of Handshake. None leaves a waiter behind.
func TestHandshakeEndings(t *testing.T) {
	for _, test := range []struct {
		name string
		// during happens while Handshake waits.
		before, during func(w *world, a, b *node)
		ctx            func() (context.Context, context.CancelFunc)
		want           error // nil: success
		text           string
	}{
		{name: "a session", before: func(w *world, a, b *node) { w.net.Mend(nil, nil) }},
		{name: "answered late", during: func(w *world, a, b *node) { w.net.Mend(nil, nil); w.advance(6 * time.Second) }},
		{name: "the peer initiates", during: func(w *world, a, b *node) {
			w.net.Mend(nil, nil)
			b.send(a, "x")
		}},
		{name: "stands already", before: func(w *world, a, b *node) { w.net.Mend(nil, nil); w.connect(a, b) }},
		{name: "no such peer", before: func(w *world, a, b *node) { a.RemovePeer(b.pub()) }, text: "no such peer"},
		{name: "no endpoint", before: func(w *world, a, b *node) {
			a.update(b, wireguard.PeerChange{Endpoint: &wireguard.Endpoint{}})
		}, text: "endpoint"},
		{name: "no key", before: func(w *world, a, b *node) {
			a.configure(wireguard.Change{PrivateKey: &wireguard.PrivateKey{}})
		}, text: "private key"},
		{name: "context", ctx: func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(context.Background(), 30*time.Second)
		}, during: func(w *world, a, b *node) { w.advance(30 * time.Second) }, want: context.DeadlineExceeded},
		{name: "gives up", during: func(w *world, a, b *node) { w.advance(107 * time.Second) }, text: "20 initiations"},
		{name: "removed", during: func(w *world, a, b *node) { a.RemovePeer(b.pub()) }, text: "removed"},
		{name: "endpoint taken away", during: func(w *world, a, b *node) {
			a.update(b, wireguard.PeerChange{Endpoint: &wireguard.Endpoint{}})
		}, text: "no endpoint"},
		{name: "key taken away", during: func(w *world, a, b *node) {
			a.configure(wireguard.Change{PrivateKey: &wireguard.PrivateKey{}})
		}, text: "no private key"},
		{name: "key changed", during: func(w *world, a, b *node) {
			w.net.Mend(nil, nil)
			old := a.pub()
			a.key = wireguard.NewPrivateKey()
			b.configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: old, Remove: true}, ptr(a.peer()).Change()}})
			a.configure(wireguard.Change{PrivateKey: &a.key})
			w.advance(6 * time.Second)
		}},
		{name: "down", during: func(w *world, a, b *node) { a.Down() }, text: "down"},
		{name: "closed", during: func(w *world, a, b *node) { a.Close() }, want: net.ErrClosed},
		{name: "closed before", before: func(w *world, a, b *node) { a.Close() }, want: net.ErrClosed},
		{name: "down before", before: func(w *world, a, b *node) { a.Down() }, text: "down"},
	} {
		t.Run(test.name, func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				w.net.Cut(nil, nil)
				if test.before != nil {
					test.before(w, a, b)
				}
				ctx, cancel := context.Background(), func() {}
				if test.ctx != nil {
					c, stop := test.ctx()
					ctx, cancel = c, stop
				}
				defer cancel()
				ended := make(chan error, 2)
				for range cap(ended) { // several may wait for one peer
					go func() { ended <- a.Handshake(ctx, b.pub()) }()
				}
				w.settle()
				if test.during != nil {
					if len(ended) > 0 {
						w.Fatalf("Handshake did not wait: %v", <-ended)
					}
					test.during(w, a, b)
				}
				w.settle()
				for range cap(ended) {
					if len(ended) == 0 {
						w.Fatal("Handshake still waits")
					}
					err := <-ended
					switch {
					case test.want == nil && test.text == "":
						if err != nil {
							w.Fatal(err)
						}
					case test.want != nil && !errors.Is(err, test.want):
						w.Fatalf("error %v, want one that wraps %v", err, test.want)
					case !contains(err, test.text) || !contains(err, "wireguard: handshake with "+b.pub().String()):
						w.Fatalf("error %v, want one about %q", err, test.text)
					case test.want == nil && errors.Is(err, net.ErrClosed):
						w.Fatalf("error %v wraps net.ErrClosed, and the device is not closed", err)
					}
				}
				if n := wireguard.Waiters(a.Device); n != 0 {
					w.Fatalf("%d waiters are left", n)
				}
			})
		})
	}
}

// A subscriber that does not read delays nobody, and is told how many events it missed.
func TestSlowSubscriber(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		slow, cancel := a.Subscribe(2)
		for range 5 {
			w.connectAgain(a, b)
			w.advance(time.Second)
		}
		a.wantEvents("the quick one has them all", wireguard.EventHandshake, wireguard.EventHandshake,
			wireguard.EventHandshake, wireguard.EventHandshake, wireguard.EventHandshake)
		if first, second := <-slow, <-slow; first.Missed != 0 || second.Missed != 0 {
			w.Fatal("the first two were in time")
		}
		w.connectAgain(a, b)
		if e := <-slow; e.Missed != 3 || e.Kind != wireguard.EventHandshake || e.Peer != b.pub() {
			w.Fatalf("event %+v, want one that says that 3 were missed", e)
		}
		w.advance(time.Second)
		w.connectAgain(a, b)
		if e := <-slow; e.Missed != 0 {
			w.Fatalf("event %+v: told once", e)
		}
		cancel()
		cancel()
		if _, ok := <-slow; ok {
			w.Fatal("the channel is open after cancel")
		}
		open, cancel := a.Subscribe(0)
		a.Close()
		if _, ok := <-open; ok {
			w.Fatal("the channel is open after Close")
		}
		cancel()
		late, cancel := a.Subscribe(1)
		defer cancel()
		if _, ok := <-late; ok {
			w.Fatal("a subscription to a closed device is open")
		}
	})
}

// Events say what they say they do, and nothing else.
func TestEventFields(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		a.clock.stepWall(time.Hour)
		w.connect(a, b)
		wall := a.clock.Wall()
		w.advance(180 * time.Second)
		w.net.Cut(nil, nil)
		a.send(b, "x")
		w.advance(120 * time.Second)
		es := a.wantEvents("one of each", wireguard.EventHandshake, wireguard.EventSessionExpired, wireguard.EventHandshakeFailed)
		for i, want := range []wireguard.Event{
			{Kind: wireguard.EventHandshake, Time: wall, Endpoint: b.at()},
			{Kind: wireguard.EventSessionExpired, Time: wall.Add(180 * time.Second)},
			{Kind: wireguard.EventHandshakeFailed, Time: es[2].Time, Endpoint: b.at()},
		} {
			got := es[i]
			got.Endpoint.Source = want.Endpoint.Source // where it was reached is not what this is about
			want.Peer = b.pub()
			if got != want {
				w.Errorf("event %+v\nwant  %+v", got, want)
			}
		}
	})
}

// Fault of a peer project: a receiver that stops for ever after one odd socket error. It goes on, tells of it, and does
// not spin.
func TestReceiverSurvivesErrors(t *testing.T) {
	withMood(t, func(w *world, a, b *node, mood *moodyBind) {
		w.connect(a, b)
		a.wantEvents("before", wireguard.EventHandshake)
		odd := errors.New("recvmsg: network is down")
		mood.set(func() {
			for range 12 {
				mood.moods = append(mood.moods, odd)
			}
		})
		b.send(a, "one") // the Receive under way still brings it
		a.wantArrived("before the trouble", "one")
		w.advance(10 * time.Second)
		es := a.wantEvents("told once a second at most", wireguard.EventBindTrouble, wireguard.EventBindTrouble, wireguard.EventBindTrouble)
		if !errors.Is(es[0].Err, odd) {
			w.Fatalf("event %+v", es[0])
		}
		b.send(a, "two")
		a.wantArrived("it goes on", "two")
		mood.set(func() { mood.moods = []error{odd, odd, odd} })
		b.send(a, "three")
		a.Close() // amid the wait
	})
}

// Up fails as a whole, and can be tried again.
func TestUpFails(t *testing.T) {
	withMood(t, func(w *world, a, b *node, mood *moodyBind) {
		a.Down()
		busy := errors.New("address in use")
		mood.set(func() { mood.fail = busy })
		if err := a.Up(); !errors.Is(err, busy) || a.Status().Up {
			w.Fatalf("Up: %v, up: %v", err, a.Status().Up)
		}
		mood.set(func() { mood.fail = nil })
		if err := a.Up(); err != nil {
			w.Fatal(err)
		}
		w.connect(a, b)
	})
}

// Wake opens the socket anew on the same port. Where that fails the device stays up without one, says so, and the next
// Wake mends it.
func TestWake(t *testing.T) {
	withMood(t, func(w *world, a, b *node, mood *moodyBind) {
		w.connect(a, b)
		a.wantEvents("before", wireguard.EventHandshake)
		a.move(elsewhere)
		if err := a.Wake(); err != nil {
			w.Fatal(err)
		}
		w.want("a keepalive", "the peer hears of the new address")
		b.wantEndpoint(a, a.at().Addr, "and follows")
		busy := errors.New("no network")
		mood.set(func() { mood.fail = busy })
		if err := a.Wake(); !errors.Is(err, busy) {
			w.Fatalf("Wake: %v", err)
		}
		if s := a.Status(); !s.Up || s.ListenPort != a.port {
			w.Fatalf("status %+v: want a device that is up", s)
		}
		if e := a.wantEvents("told", wireguard.EventBindTrouble)[0]; !errors.Is(e.Err, busy) {
			w.Fatalf("event %+v", e)
		}
		a.send(b, "lost")
		b.wantArrived("there is no socket")
		if n := a.status(b).Drops[wireguard.DropSendFailed]; n == 0 {
			w.Fatal("what could not be sent is not counted")
		}
		mood.set(func() { mood.fail = nil })
		if err := a.Wake(); err != nil {
			w.Fatal(err)
		}
		a.send(b, "found")
		b.wantArrived("the session outlived it", "found")
		mood.set(func() {
			for _, p := range mood.opened {
				if p != a.port {
					w.Errorf("Listen(%d), want the same port each time", p)
				}
			}
		})
	})
}

// NextDeadline and NextReason tell what a peer will do next.
func TestStatusOfDeadlines(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		want := func(n, o *node, in time.Duration, reason string) {
			w.Helper()
			w.settle()
			if s := n.status(o); s.NextReason != reason || s.NextDeadline < in || s.NextDeadline > in+2*jitter {
				w.Fatalf("%s: next %q in %v, want %q in %v", n.name, s.NextReason, s.NextDeadline, reason, in)
			}
		}
		want(a, b, 0, "")
		w.net.Cut(nil, nil)
		a.send(b, "x")
		want(a, b, 5*time.Second, "retransmit the initiation")
		if s := a.status(b); !s.Initiating || s.Attempts != 1 || s.Staged != 1 || s.Session {
			w.Fatalf("status %+v", s)
		}
		w.net.Mend(nil, nil)
		w.advance(5*time.Second + jitter)
		want(b, a, 10*time.Second-jitter, "send a keepalive")
		want(a, b, 15*time.Second-jitter, "make a new session: data went unanswered")
		w.advance(10 * time.Second)
		at := 180*time.Second - a.status(b).SessionAge
		want(a, b, at, "the session expires")
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(25 * time.Second)})
		want(a, b, 25*time.Second, "send a persistent keepalive")
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(time.Duration(0))})
		w.advance(at)
		want(a, b, 360*time.Second, "wipe the session")
		if s := a.status(b); s.Session || s.SessionAge != 0 || s.Initiating {
			w.Fatalf("status %+v", s)
		}
	})
}

// The time of the last handshake is that of the wall clock at that moment, whatever the clock does
// later: programs compare it to see whether there was a new handshake.
func TestLastHandshakeIsFixed(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.advance(1500 * time.Millisecond)
		a.send(b, "one")
		w.settle()
		at := a.clock.Wall()
		for _, then := range []struct {
			why string
			do  func()
		}{
			{"at once", func() {}},
			{"later", func() { w.advance(10 * time.Second) }},
			{"when the clock was set", func() { a.clock.stepWall(-time.Hour); b.clock.stepWall(time.Hour) }},
			{"down", func() { a.Down() }},
		} {
			then.do()
			for _, s := range []wireguard.PeerStatus{a.status(b), b.status(a)} {
				if !s.LastHandshake.Equal(at) {
					t.Errorf("%s: the last handshake was at %v, want %v", then.why, s.LastHandshake, at)
				}
			}
		}
	})
}
