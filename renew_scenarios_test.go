package wireguard_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// within calls the function wait, which is the method Handshake or Renew of n, with a context that ends after d. It returns the
// error of wait.
func (n *node) within(d time.Duration, wait func(context.Context, wireguard.PublicKey) error, o *node) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return wait(ctx, o.pub())
}

// moves gives o another listen port. The other nodes still have the old port in their configuration.
func (o *node) moves() {
	o.port += 100
	o.configure(wireguard.Change{ListenPort: &o.port})
}

// After a change of the endpoint, Handshake does not rely on the established session. It sends an initiation to the new endpoint
// at once, even if the device sent one to the old endpoint less than 5 s ago.
func TestHandshakeAfterEndpointChange(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		b.moves()
		a.update(b, wireguard.PeerChange{Endpoint: ptr(b.at())})
		w.wantIdle(time.Second, "a change of the endpoint alone sends nothing, as in the kernel")
		a.wantSession(b, true, "a change of the endpoint keeps the session")

		start := w.now()
		if err := a.Handshake(context.Background(), b.pub()); err != nil {
			w.Fatal(err)
		}
		if took := w.now() - start; took != 0 {
			w.Fatalf("Handshake took %v, want no time", took)
		}
		w.want("a initiation, b response, a keepalive", "a handshake with the new endpoint")
		if got := w.last("a initiation").dst; got != b.at().Addr {
			w.Fatalf("the initiation went to %v, want %v", got, b.at())
		}
		if err := a.Handshake(context.Background(), b.pub()); err != nil {
			w.Fatal(err)
		}
		w.want("", "a message has arrived in the new session")
	})
}

// If a change sets the endpoint to the one that the peer already has, Handshake relies on the session as before.
func TestHandshakeSameEndpoint(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(6 * time.Second)
		a.update(b, wireguard.PeerChange{Endpoint: ptr(b.at())})
		if err := a.Handshake(context.Background(), b.pub()); err != nil {
			w.Fatal(err)
		}
		w.want("", "Handshake relies on the session")
	})
}

// Handshake makes a new session if the peer has not answered data in the current session for 10 s. Before that, it relies on the
// current session.
func TestHandshakeUnansweredData(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(time.Second)
		w.net.Cut(nil, nil)
		a.send(b, "lost")
		w.want("a data", "the packet is sent in the session")
		w.advance(10*time.Second - 1)
		if err := a.Handshake(context.Background(), b.pub()); err != nil {
			w.Fatal(err)
		}
		w.want("", "an answer may still arrive")
		w.advance(1)
		w.net.Mend(nil, nil)
		if err := a.Handshake(context.Background(), b.pub()); err != nil {
			w.Fatal(err)
		}
		w.want("a initiation, b response, a keepalive", "data has been unanswered for 10 s")
	})
}

// If a message arrives in the old session while Handshake waits for a new session, Handshake returns, because the old session
// works. Renew still waits for a new session.
func TestHandshakeRevived(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.update(b, wireguard.PeerChange{Endpoint: &nowhere})
		ended, renewed := make(chan error, 1), make(chan error, 1)
		go func() { ended <- a.Handshake(w.Context(), b.pub()) }()
		go func() { renewed <- a.Renew(w.Context(), b.pub()) }()
		w.want("a initiation", "the initiation is sent to an address without a device")
		b.send(a, "alive")
		w.want("b data", "the packet is sent in the session")
		if len(ended) != 1 || len(renewed) != 0 {
			w.Fatalf("Handshake returned: %v, Renew returned: %v; want only Handshake to return", len(ended) == 1, len(renewed) == 1)
		}
		if err := <-ended; err != nil {
			w.Fatal(err)
		}
		w.wantJittered(5*time.Second, "a initiation, b response, a keepalive", "the retry is sent to the endpoint from which b sent last")
		if err := <-renewed; err != nil {
			w.Fatal(err)
		}
	})
}

// nowhere is an endpoint at which no device listens.
var nowhere = wireguard.EndpointOf(netip.MustParseAddrPort("203.0.113.9:9"))

// Renew makes a new session even if there is one. If Renew is called less than 5 s after the device sent an initiation to the
// same endpoint, the device sends the next initiation when the 5 s are over.
func TestRenew(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		if err := a.Renew(context.Background(), b.pub()); err != nil {
			w.Fatal(err)
		}
		w.want("a initiation, b response, a keepalive", "there was no session before")
		w.advance(5 * time.Second)
		if err := a.Renew(context.Background(), b.pub()); err != nil {
			w.Fatal(err)
		}
		w.want("a initiation, b response, a keepalive", "there was a session before")
		if age := a.status(b).SessionAge; age != 0 {
			w.Fatalf("the session is %v old, want a new session", age)
		}
		w.advance(time.Second)
		ended := make(chan error, 1)
		go func() { ended <- a.Renew(context.Background(), b.pub()) }()
		w.wantJittered(4*time.Second, "a initiation, b response, a keepalive", "5 s after the last initiation")
		if err := <-ended; err != nil {
			w.Fatal(err)
		}
		b.Renew(context.Background(), a.pub())
		w.want("b initiation, a response, b keepalive", "b has not sent an initiation to a, and its response does not delay one")
	})
}

// A new device that has the private key and the SentTimestamp of an old device sends only timestamps after those of the old
// device, even if its clock is an hour behind. Without the SentTimestamp, the peer refuses its initiations.
func TestSentTimestampFloor(t *testing.T) {
	const back = -time.Hour
	for name, take := range map[string]func(c *wireguard.Config, b *node, ts wireguard.Timestamp){
		"of the peer": func(c *wireguard.Config, b *node, ts wireguard.Timestamp) {
			c.Peers[0].SentTimestamp = ts
		},
		"of the device": func(c *wireguard.Config, b *node, ts wireguard.Timestamp) { c.SentTimestamp = ts },
		"none":          func(c *wireguard.Config, b *node, ts wireguard.Timestamp) {},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				a, b := w.node("a"), w.node("b")
				a.knows(b)
				b.knows(a)
				w.connect(a, b)
				old := a.status(b).SentTimestamp
				if old != b.status(a).Timestamp {
					w.Fatalf("a sent %v, and b accepted %v", old, b.status(a).Timestamp)
				}
				a.Close()
				c := w.node("c", func(c *wireguard.Config) {
					c.PrivateKey, c.Peers = a.key, []wireguard.PeerConfig{b.peer()}
					take(c, b, old)
				})
				c.clock.stepWall(back)
				for i := range 3 {
					w.advance(6 * time.Second)
					w.script()
					err := c.within(time.Second, c.Renew, b)
					if name == "none" {
						if err == nil {
							w.Fatal("an initiation was accepted although its timestamp was old")
						}
						continue
					}
					if err != nil {
						w.Fatal(err)
					}
					now := c.status(b).SentTimestamp
					if !now.After(old) || now != b.status(c).Timestamp {
						w.Fatalf("renewal %d: c sent %v after %v, and b accepted %v", i, now, old, b.status(c).Timestamp)
					}
					old = now
				}
				floor := old
				floor[0]++
				c.update(b, wireguard.PeerChange{SentTimestamp: &floor})
				c.update(b, wireguard.PeerChange{SentTimestamp: &old})
				if got := c.status(b).SentTimestamp; got != floor {
					w.Fatalf("the SentTimestamp is %v, want %v: an older value is ignored", got, floor)
				}
			})
		})
	}
}

// A caller of Renew that does not want to wait passes a context that has already ended. Renew then returns at once, and the
// device still renews the session.
func TestRenewWithoutWaiting(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.advance(10 * time.Second)
		w.wantIdle(time.Second, "the session is idle")
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := a.Renew(ctx, b.pub()); !errors.Is(err, context.Canceled) {
			w.Fatalf("Renew returned %v, want context.Canceled", err)
		}
		w.want("a initiation, b response, a keepalive", "the device renews the session nevertheless")
	})
}
