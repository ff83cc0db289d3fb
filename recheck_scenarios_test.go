package wireguard_test

import (
	"runtime"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// A device computes handshake messages without holding a lock. It sends a message only if the values from which it computed the
// message have not changed since. These tests change such values during the computation: at the moment when the device reads
// random bytes.

// playMeanwhile calls play with the devices a, which initiates, and b. While the device called name computes its first handshake
// message, playMeanwhile calls interrupt.
func playMeanwhile(t *testing.T, name string, interrupt func(w *world, a, b *node), play func(w *world, a, b *node)) {
	inWorld(t, func(w *world) {
		a, b := w.nodeDown("a"), w.nodeDown("b")
		a.knows(b)
		b.knows(a)
		map[string]*node{"a": a, "b": b}[name].meanwhile(func() { interrupt(w, a, b) })
		for _, n := range []*node{a, b} {
			if err := n.Up(); err != nil {
				w.Fatal(err)
			}
		}
		w.settle()
		a.send(b, "hello")
		play(w, a, b)
	})
}

// change calls Configure during a computation. Unlike the method configure, it does not call settle, because during the
// computation the test's goroutine is already inside settle.
func change(w *world, n *node, c wireguard.Change) {
	if err := n.Configure(c); err != nil {
		w.Error(err)
	}
}

func changePeer(w *world, n, o *node, c wireguard.PeerChange) {
	c.PublicKey = o.pub()
	change(w, n, wireguard.Change{Peers: []wireguard.PeerChange{c}})
}

func TestChangesAmidInitiation(t *testing.T) {
	next := wireguard.NewPrivateKey()
	for name, c := range map[string]struct {
		interrupt func(w *world, a, b *node)
		script    string
		then      func(w *world, a, b *node)
	}{
		"peer removed": {func(w *world, a, b *node) { a.RemovePeer(b.pub()) }, "", func(w *world, a, b *node) {
			w.wantIdle(time.Minute, "the peer was removed")
		}},
		"key taken away": {func(w *world, a, b *node) { change(w, a, wireguard.Change{PrivateKey: &wireguard.PrivateKey{}}) }, "",
			func(w *world, a, b *node) {
				w.wantIdle(time.Minute, "a device without a private key sends nothing")
				a.configure(wireguard.Change{PrivateKey: &a.key})
				w.want("a initiation, b response, a data", "the staged packet waited for a private key")
			}},
		"another key": {func(w *world, a, b *node) {
			a.key = next
			change(w, b, wireguard.Change{Peers: []wireguard.PeerChange{a.peer().Change()}})
			// After this call another worker may make the next initiation, so b must already know the new key.
			change(w, a, wireguard.Change{PrivateKey: &next})
		}, "a initiation, b response, a data", func(w *world, a, b *node) {
			b.wantSession(a, true, "the devices made a session with the new key")
			b.wantArrived("the packet was sent in the session of the new key", "hello")
		}},
		"endpoint forgotten": {func(w *world, a, b *node) { changePeer(w, a, b, wireguard.PeerChange{Endpoint: &wireguard.Endpoint{}}) }, "",
			func(w *world, a, b *node) {
				w.wantIdle(time.Minute, "the peer has no endpoint")
				a.update(b, wireguard.PeerChange{Endpoint: ptr(b.at())})
				w.want("a initiation, b response, a data", "the staged packet waited for an endpoint")
			}},
		"endpoint moved": {func(w *world, a, b *node) {
			changePeer(w, a, b, wireguard.PeerChange{Endpoint: ptr(wireguard.EndpointOf(stranger))})
		}, "a initiation", func(w *world, a, b *node) {
			if m := w.last("a initiation"); m.dst != stranger {
				w.Fatalf("the initiation was sent to %v, want the new endpoint", m.dst)
			}
		}},
		"down": {func(w *world, a, b *node) { a.Down() }, "", func(w *world, a, b *node) {
			w.wantIdle(time.Minute, "a device that is down sends nothing")
			if n := wireguard.SessionIndices(a.Device); n != 0 {
				w.Fatalf("the device has %d session indices while it is down, want 0", n)
			}
			a.Up()
			a.send(b, "again")
			w.want("a initiation, b response, a data", "the interrupted initiation leaves no state")
		}},
		"preshared key": {func(w *world, a, b *node) {
			changePeer(w, a, b, wireguard.PeerChange{PresharedKey: &wireguard.PresharedKey{1}})
			changePeer(w, b, a, wireguard.PeerChange{PresharedKey: &wireguard.PresharedKey{1}})
		}, "a initiation, b response, a data", func(w *world, a, b *node) {
			b.wantArrived("an initiation does not depend on the preshared key", "hello")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			playMeanwhile(t, "a", c.interrupt, func(w *world, a, b *node) {
				w.want(c.script, name)
				c.then(w, a, b)
			})
		})
	}
}

func TestChangesAmidResponse(t *testing.T) {
	for name, interrupt := range map[string]func(w *world, a, b *node){
		"peer removed":   func(w *world, a, b *node) { b.RemovePeer(a.pub()) },
		"key taken away": func(w *world, a, b *node) { change(w, b, wireguard.Change{PrivateKey: &wireguard.PrivateKey{}}) },
		"preshared key": func(w *world, a, b *node) {
			changePeer(w, a, b, wireguard.PeerChange{PresharedKey: &wireguard.PresharedKey{1}})
			changePeer(w, b, a, wireguard.PeerChange{PresharedKey: &wireguard.PresharedKey{1}})
		},
		"down": func(w *world, a, b *node) { b.Down() },
	} {
		t.Run(name, func(t *testing.T) {
			playMeanwhile(t, "b", interrupt, func(w *world, a, b *node) {
				w.want("a initiation", "b drops the response, because its state has changed")
				b.wantDrops(wireguard.DropSuperseded, 1, "the state from which the response was computed has changed")
				if n := wireguard.SessionIndices(b.Device); n != 0 {
					w.Fatalf("%d session indices are left of the dropped response, want 0", n)
				}
				switch name {
				case "peer removed":
					b.knows(a)
				case "key taken away":
					b.configure(wireguard.Change{PrivateKey: &b.key})
				case "down":
					b.Up()
				}
				w.wantJittered(5*time.Second, "a initiation, b response, a data", "b answers the retry with its current state")
				b.wantArrived("the staged packet is sent in the session", "hello")
			})
		})
	}
}

// A newer initiation of a peer arrives while the device computes the response to an older one. The device answers only the newer
// initiation.
func TestNewerInitiationAmidResponse(t *testing.T) {
	testkit.NeedsThreads(t, "two workers handle initiations at the same time")
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2)) // one worker for each initiation
	playMeanwhile(t, "b", func(w *world, a, b *node) { time.Sleep(50 * time.Millisecond) }, func(w *world, a, b *node) {
		w.advance(30 * time.Millisecond)
		a.restart()
		a.send(b, "newer")
		w.want("a initiation x2, b response, a data", "the newer initiation is answered at once")
		w.advance(30 * time.Millisecond)
		w.want("", "the older initiation is not answered any more")
		b.wantDrops(wireguard.DropSuperseded, 1, "the older initiation is superseded")
		b.wantArrived("the packet was sent in the session of the newer initiation", "newer")
		wantWorks(w, a, b, "the session of the newer initiation works")
	})
}

// If the initiator's preshared key changes after it sent an initiation, the initiator refuses the response, because the responder
// made the response with the old key. Once both devices have the new key, the next retry makes a session.
func TestPresharedKeyChangeAmidHandshake(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.hold("b response", 1)
		a.send(b, "hello")
		w.want("a initiation, b response", "the response is made with the old key")
		a.update(b, wireguard.PeerChange{PresharedKey: &wireguard.PresharedKey{1}})
		w.release()
		w.want("", "a makes no session with the old key")
		a.wantDrops(wireguard.DropForged, 1, "the response was made with another preshared key")
		b.update(a, wireguard.PeerChange{PresharedKey: &wireguard.PresharedKey{1}})
		w.wantJittered(5*time.Second, "a initiation, b response, a data", "both devices have the new key")
		b.wantArrived("the staged packet is sent in the session", "hello")
	})
}
