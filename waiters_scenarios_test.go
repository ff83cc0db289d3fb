package wireguard_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
)

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
