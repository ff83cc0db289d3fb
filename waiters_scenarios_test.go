package wireguard_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// TestHandshakeEndings checks each possible outcome of Handshake and Renew. After each one, the device must have no waiting
// caller left.
func TestHandshakeEndings(t *testing.T) {
	sentinels := []error{wireguard.ErrDown, wireguard.ErrNoPeer, wireguard.ErrNoEndpoint, wireguard.ErrNoPrivateKey,
		wireguard.ErrNoAnswer, net.ErrClosed, context.DeadlineExceeded}
	for _, test := range []struct {
		name string
		// The function during is called while Handshake or Renew waits.
		before, during func(w *world, a, b *node)
		ctx            func() (context.Context, context.CancelFunc)
		want           error // nil means that the call succeeds
	}{
		{name: "a session", before: func(w *world, a, b *node) { w.net.Mend(nil, nil) }},
		{name: "answered late", during: func(w *world, a, b *node) { w.net.Mend(nil, nil); w.advance(6 * time.Second) }},
		{name: "the peer initiates", during: func(w *world, a, b *node) {
			w.net.Mend(nil, nil)
			b.send(a, "x")
		}},
		{name: "stands already", before: func(w *world, a, b *node) {
			w.net.Mend(nil, nil)
			w.connect(a, b)
			w.advance(5 * time.Second) // so that Renew does not have to wait for the limit of 5 s
		}},
		{name: "no such peer", before: func(w *world, a, b *node) { a.RemovePeer(b.pub()) }, want: wireguard.ErrNoPeer},
		{name: "no endpoint", before: func(w *world, a, b *node) {
			a.update(b, wireguard.PeerChange{Endpoint: &wireguard.Endpoint{}})
		}, want: wireguard.ErrNoEndpoint},
		{name: "no key", before: func(w *world, a, b *node) {
			a.configure(wireguard.Change{PrivateKey: &wireguard.PrivateKey{}})
		}, want: wireguard.ErrNoPrivateKey},
		{name: "context", ctx: func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(context.Background(), 30*time.Second)
		}, during: func(w *world, a, b *node) { w.advance(30 * time.Second) }, want: context.DeadlineExceeded},
		{name: "gives up", during: func(w *world, a, b *node) { w.advance(107 * time.Second) }, want: wireguard.ErrNoAnswer},
		{name: "removed", during: func(w *world, a, b *node) { a.RemovePeer(b.pub()) }, want: wireguard.ErrNoPeer},
		{name: "endpoint taken away", during: func(w *world, a, b *node) {
			a.update(b, wireguard.PeerChange{Endpoint: &wireguard.Endpoint{}})
		}, want: wireguard.ErrNoEndpoint},
		{name: "key taken away", during: func(w *world, a, b *node) {
			a.configure(wireguard.Change{PrivateKey: &wireguard.PrivateKey{}})
		}, want: wireguard.ErrNoPrivateKey},
		{name: "key changed", during: func(w *world, a, b *node) {
			w.net.Mend(nil, nil)
			old := a.pub()
			a.key = wireguard.NewPrivateKey()
			b.configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: old, Remove: true}, a.peer().Change()}})
			a.configure(wireguard.Change{PrivateKey: &a.key})
			w.advance(6 * time.Second)
		}},
		{name: "down", during: func(w *world, a, b *node) { a.Down() }, want: wireguard.ErrDown},
		{name: "closed", during: func(w *world, a, b *node) { a.Close() }, want: net.ErrClosed},
		{name: "closed before", before: func(w *world, a, b *node) { a.Close() }, want: net.ErrClosed},
		{name: "down before", before: func(w *world, a, b *node) { a.Down() }, want: wireguard.ErrDown},
	} {
		for name, wait := range map[string]func(*node, context.Context, wireguard.PublicKey) error{
			"Handshake": func(n *node, ctx context.Context, key wireguard.PublicKey) error { return n.Handshake(ctx, key) },
			"Renew":     func(n *node, ctx context.Context, key wireguard.PublicKey) error { return n.Renew(ctx, key) },
		} {
			t.Run(name+"/"+test.name, func(t *testing.T) {
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
					for range cap(ended) { // several callers may wait for one peer
						go func() { ended <- wait(a, ctx, b.pub()) }()
					}
					w.settle()
					if test.during != nil {
						if len(ended) > 0 {
							w.Fatalf("Handshake or Renew returned too early, with the error %v", <-ended)
						}
						test.during(w, a, b)
					}
					if name == "Renew" && test.want == nil {
						w.advance(5*time.Second + jitter) // the initiation of the second call is delayed for that long
					}
					w.settle()
					for range cap(ended) {
						if len(ended) == 0 {
							w.Fatal("Handshake or Renew has not returned")
						}
						err := <-ended
						if test.want == nil && err != nil {
							w.Fatal(err)
						}
						for _, s := range sentinels {
							if got := errors.Is(err, s); got != (s == test.want) {
								w.Fatalf("the error is %v: errors.Is with %q returned %v, want %v", err, s, got, !got)
							}
						}
						if err != nil && (!contains(err, b.pub().String()) || strings.Count(err.Error(), "wireguard: ") != 1) {
							w.Fatalf("the error is %q, want one that has the peer's key and one prefix", err)
						}
					}
					if n := wireguard.Waiters(a.Device); n != 0 {
						w.Fatalf("%d calls still wait, want 0", n)
					}
				})
			})
		}
	}
}

// When the context of one of several waiting calls ends, only that call returns. The others still get the session.
func TestHandshakeEndsAlone(t *testing.T) {
	for canceled := range 3 {
		scenario(t, func(w *world, a, b *node) {
			w.net.Cut(nil, nil)
			var cancels [3]context.CancelFunc
			var ended [3]chan error
			for i := range ended {
				var ctx context.Context
				ctx, cancels[i] = context.WithCancel(context.Background())
				defer cancels[i]()
				ended[i] = make(chan error, 1)
				go func() { ended[i] <- a.Handshake(ctx, b.pub()) }()
				w.settle() // so that the calls begin in order
			}
			cancels[canceled]()
			w.settle()
			if n := wireguard.Waiters(a.Device); n != 2 || len(ended[canceled]) != 1 {
				w.Fatalf("after call %d of 3 was canceled, %d calls wait, want the other two", canceled, n)
			}
			w.net.Mend(nil, nil)
			w.advance(6 * time.Second)
			for i, c := range ended {
				if len(c) == 0 {
					w.Fatalf("call %d has not returned after the handshake", i)
				}
				if err := <-c; errors.Is(err, context.Canceled) != (i == canceled) || err != nil && i != canceled {
					w.Fatalf("call %d returned %v; call %d was canceled", i, err, canceled)
				}
			}
		})
	}
}

// If the device cannot send an initiation, the errors of Handshake and Renew wrap the error of the socket, both when the context
// ends and after 20 attempts.
func TestHandshakeSaysWhySendingFails(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.net.SetConditions(pipe.Conditions{MTU: 60, RefuseTooBig: true})
		for name, wait := range map[string]func(context.Context, wireguard.PublicKey) error{"Handshake": a.Handshake, "Renew": a.Renew} {
			for d, want := range map[time.Duration]error{time.Second: context.DeadlineExceeded, time.Hour: wireguard.ErrNoAnswer} {
				err := a.within(d, wait, b)
				if !errors.Is(err, want) || !errors.Is(err, syscall.EMSGSIZE) || strings.Count(err.Error(), "wireguard: ") != 1 {
					w.Fatalf("%s within %v: error %q, want one that wraps %q and %q, with one prefix", name, d, err, want, syscall.EMSGSIZE)
				}
				if !contains(err, b.at().String()) {
					w.Fatalf("%s: error %q does not name the endpoint", name, err)
				}
			}
		}
		w.net.SetConditions(pipe.Conditions{})
		w.net.Cut(nil, nil)
		a.restart()
		if err := a.within(time.Second, a.Handshake, b); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.EMSGSIZE) {
			w.Fatalf("the error is %q, want only context.DeadlineExceeded: the initiation was sent", err)
		}
	})
}

// The error of Handshake says whether there was no response, or a response that could not be opened, for example because of a
// wrong preshared key.
func TestHandshakeSaysAnswersDoNotOpen(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		psk := wireguard.NewPresharedKey()
		a.update(b, wireguard.PeerChange{PresharedKey: &psk})
		for d, want := range map[time.Duration]error{time.Second: context.DeadlineExceeded, time.Hour: wireguard.ErrNoAnswer} {
			if err := a.within(d, a.Handshake, b); !errors.Is(err, want) || !contains(err, "preshared key") {
				w.Fatalf("the error is %q, want one that wraps %q and mentions the preshared key", err, want)
			}
			w.advance(6 * time.Second)
		}
		w.net.Cut(nil, nil)
		if err := a.within(6*time.Second, a.Handshake, b); !errors.Is(err, context.DeadlineExceeded) || contains(err, "preshared key") {
			w.Fatalf("the error is %q, want one that wraps context.DeadlineExceeded and does not mention the preshared key", err)
		}
	})
}

// LastReceived is the time of the last authentic message, including keepalives. The device computes it from the current wall
// clock, so it changes if the clock is set.
func TestLastReceived(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		if got := a.status(b).LastReceived; !got.IsZero() {
			w.Fatalf("LastReceived is %v before any message has arrived, want the zero time", got)
		}
		w.connect(a, b)
		heard := a.clock.Wall()
		want := func(why string) {
			w.Helper()
			if got := a.status(b).LastReceived; !got.Equal(heard) {
				w.Fatalf("LastReceived is %v, want %v: %s", got, heard, why)
			}
		}
		want("the last message of the handshake was received")
		w.advance(3 * time.Second)
		a.send(b, "x")
		want("a message that is sent does not count")
		w.replay(w.last("b response"))
		want("a replayed message does not count")
		w.advance(10 * time.Second)
		heard = a.clock.Wall()
		w.want("a data, b keepalive", "b answers with a keepalive")
		want("a keepalive counts")
		w.advance(time.Hour)
		want("the time does not change without a message")
		a.restart()
		want("Down does not change the time")
		a.clock.stepWall(time.Minute)
		heard = heard.Add(time.Minute)
		want("the time is computed from the current wall clock")
	})
}
