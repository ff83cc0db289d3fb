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

// TestEveryCallInEveryState calls the main methods in each state of a device, for example before Up and after Close. A method must
// do what its comment says, or return an error that says why it cannot. The test fails if a goroutine is left.
func TestEveryCallInEveryState(t *testing.T) {
	states := []struct {
		name  string
		enter func(n *node)
		up    bool
		want  error // the error of calls that need a device that is up
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
		"SetPeer":   func(w *world, a, b *node) error { return a.SetPeer(b.peer()) },
		"Handshake": func(w *world, a, b *node) error { return a.Handshake(w.Context(), b.pub()) },
		"Send": func(w *world, a, b *node) error {
			batch := a.NewBatch()
			batch.Append(a.packet(b, "x"))
			defer func() {
				if batch.Len() != 0 {
					w.Error("Send left packets in the batch, want an empty batch in every case")
				}
			}()
			return a.Send(batch)
		},
		"Down":  func(w *world, a, b *node) error { a.Down(); return nil },
		"Wake":  func(w *world, a, b *node) error { return a.Wake() },
		"Close": func(w *world, a, b *node) error { return a.Close() },
		"Status": func(w *world, a, b *node) error {
			s := a.Status()
			n := 0
			for range a.Peers() {
				n++
			}
			key, ok := a.PeerOf(&net.UDPAddr{IP: b.addr.AsSlice()})
			if _, known := a.PresharedKey(b.pub()); !known || !ok || key != b.pub() || a.PrivateKey().Public() != a.pub() || n != 1 || s.Peers != 1 || s.PublicKey != a.pub() {
				return fmt.Errorf("the status is %+v, and %d peers are listed; want the configured keys and one peer", s, n)
			}
			return nil
		},
	}
	needsUp := map[string]bool{"Handshake": true, "Send": true}
	afterClose := map[string]bool{"Up": true, "Configure": true, "SetPeer": true, "Handshake": true, "Send": true}
	for _, s := range states {
		for name, call := range calls {
			t.Run(s.name+"/"+name, func(t *testing.T) {
				inWorld(t, func(w *world) {
					a, b := w.nodeDown("a"), w.node("b")
					a.knows(b)
					b.knows(a)
					s.enter(a)
					if up := a.Status().Up; up != s.up {
						w.Fatalf("Status().Up is %v, want %v", up, s.up)
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
						w.Fatalf("Err after Close returned %v, want nil", err)
					}
					<-a.Done()
				})
			})
		}
	}
}

// Down keeps the configuration and the counters, and deletes the sessions and the staged packets (row 26 of the list decisions in
// coverage_test.go).
func TestDownAndUpAgain(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		a.send(b, "one")
		b.wantArrived("the devices have made a session", "one")
		w.advance(10 * time.Second)
		w.want("a initiation, b response, a data, b keepalive", "b answers with a keepalive, and nothing else is due")
		before := a.status(b)
		a.Down()
		if n := wireguard.SessionIndices(a.Device); n != 0 {
			w.Fatalf("the device has %d session indices while it is down, want 0", n)
		}
		s := a.status(b)
		if s.Sent != before.Sent || s.Received != before.Received || s.Timestamp != before.Timestamp ||
			s.LastHandshake.IsZero() || s.Endpoint.Addr != before.Endpoint.Addr || s.AllowedIPs != 2 {
			w.Fatalf("Down changed counters or configuration: before %+v\nafter %+v", before, s)
		}
		if s.Session || s.NextReason != "" {
			w.Fatalf("the peer has a session or a deadline while the device is down: %+v", s)
		}
		a.send(b, "dropped")
		a.wantDrops(wireguard.DropDown, 1, "the device is down")
		w.wantIdle(time.Hour, "a device that is down sends nothing")
		if err := a.Up(); err != nil {
			w.Fatal(err)
		}
		a.send(b, "two")
		w.want("a initiation, b response, a data", "after Up, the device begins a handshake at once")
		b.wantArrived("the packet that was sent while the device was down is dropped", "two")
	})
}

// If a Tunnel's ReadPackets fails, the device closes itself, and Err says why. If ReadPackets returns io.EOF, the device stops
// reading from the Tunnel but stays up.
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
					w.Fatal("after io.EOF the device ended or did not deliver a packet, want it to stop only reading")
				}
				return
			}
			<-a.Done()
			if err := a.Err(); !errors.Is(err, gone) {
				w.Fatalf("Err returned %v, want an error that wraps the tunnel's error", err)
			}
			if err := a.Close(); err != nil {
				w.Fatalf("Close returned %v, want nil", err)
			}
			if err := a.Up(); !errors.Is(err, net.ErrClosed) {
				w.Fatalf("Up returned %v, want net.ErrClosed", err)
			}
		})
	}
}

// A failingTunnel has nothing to send. Its method ReadPackets returns the error that the test sends to the channel fail.
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

// TestCloseUnderLoad calls Close on several goroutines at the same time, while other goroutines send packets and wait for
// handshakes.
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
					w.Error("Close returned before the channel Done was closed")
				}
			})
		}
		time.Sleep(time.Millisecond)
		b.Close()
		close(stop)
		wg.Wait()
		if n, m := wireguard.StagedBytes(a.Device), wireguard.StagedBytes(b.Device); n != 0 || m != 0 {
			w.Fatalf("%d and %d bytes are staged after Close, want 0", n, m)
		}
	})
}

// An event has values in exactly those fields that the comment of its kind names.
func TestEventFields(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		a.clock.stepWall(time.Hour)
		w.connect(a, b)
		wall := a.clock.Wall()
		w.advance(180 * time.Second)
		w.net.Cut(nil, nil)
		a.send(b, "x")
		w.advance(120 * time.Second)
		es := a.wantEvents("the device publishes one event of each kind", wireguard.EventHandshake, wireguard.EventSessionExpired, wireguard.EventHandshakeFailed)
		for i, want := range []wireguard.Event{
			{Kind: wireguard.EventHandshake, Time: wall, Endpoint: b.at(), SentTimestamp: b.status(a).Timestamp},
			{Kind: wireguard.EventSessionExpired, Time: wall.Add(180 * time.Second)},
			{Kind: wireguard.EventHandshakeFailed, Time: es[2].Time, Endpoint: b.at(), Err: wireguard.ErrNoAnswer},
		} {
			got := es[i]
			got.Endpoint.Source = want.Endpoint.Source // the local source address does not matter here
			want.Peer = b.pub()
			if got != want {
				w.Errorf("the event is %+v\nwant         %+v", got, want)
			}
		}
	})
}

// If Up fails, the device stays down, and Up can be called again.
func TestUpFails(t *testing.T) {
	withMood(t, func(w *world, a, b *node, mood *moodyBind) {
		a.Down()
		busy := errors.New("address in use")
		mood.set(func() { mood.fail = busy })
		if err := a.Up(); !errors.Is(err, busy) || a.Status().Up {
			w.Fatalf("Up returned %v, and Status().Up is %v; want the error of the Bind, and false", err, a.Status().Up)
		}
		mood.set(func() { mood.fail = nil })
		if err := a.Up(); err != nil {
			w.Fatal(err)
		}
		w.connect(a, b)
	})
}

// Wake replaces the socket with a new one on the same port. If that fails, Wake returns an error, and the device stays up without
// a socket until the next Wake.
func TestWake(t *testing.T) {
	withMood(t, func(w *world, a, b *node, mood *moodyBind) {
		w.connect(a, b)
		a.wantEvents("the first handshake", wireguard.EventHandshake)
		a.move(elsewhere)
		if err := a.Wake(); err != nil {
			w.Fatal(err)
		}
		w.want("a keepalive", "Wake tells the peer the new address")
		b.wantEndpoint(a, a.at().Addr, "b uses a's new address")
		busy := errors.New("no network")
		mood.set(func() { mood.fail = busy })
		if err := a.Wake(); !errors.Is(err, busy) {
			w.Fatalf("Wake returned %v, want the error of the Bind", err)
		}
		if s := a.Status(); !s.Up || s.ListenPort != a.port {
			w.Fatalf("the status is %+v, want a device that is up with the same port", s)
		}
		if e := a.wantEvents("the device publishes the error of the Bind", wireguard.EventBindTrouble)[0]; !errors.Is(e.Err, busy) {
			w.Fatalf("the event is %+v, want the error of the Bind", e)
		}
		a.send(b, "lost")
		b.wantArrived("a has no socket")
		if n := a.status(b).Drops[wireguard.DropSendFailed]; n == 0 {
			w.Fatal("the packet that could not be sent is not counted as dropped")
		}
		mood.set(func() { mood.fail = nil })
		if err := a.Wake(); err != nil {
			w.Fatal(err)
		}
		a.send(b, "found")
		b.wantArrived("the session survives the failed Wake", "found")
		mood.set(func() {
			for _, p := range mood.opened {
				if p != a.port {
					w.Errorf("Listen(%d), want the same port each time", p)
				}
			}
		})
	})
}
