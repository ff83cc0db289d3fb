package wireguard_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// TestStorm calls many methods of a device at the same time, on several goroutines. Each goroutine draws its calls and their
// arguments from its own seed. The scheduler determines the order of the calls. In every order, Send may fail only if the device
// is down, no other call except Handshake may fail, no packet may arrive twice or changed, and afterwards the tunnel must work.
func TestStorm(t *testing.T) {
	seeds := uint64(8)
	if testkit.OneThread {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			inWorld(t, func(w *world) { playStorm(w, seed) })
		})
	}
}

func playStorm(w *world, seed uint64) {
	h, b, c, d := hub(w)
	var wg sync.WaitGroup
	each := func(n int, calls ...func(r *rand.Rand) error) {
		id := uint64(len(calls)) << 32
		for i := range n {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, id+uint64(i)))
				for range 150 {
					if err := calls[r.IntN(len(calls))](r); err != nil {
						w.Error(err)
					}
					time.Sleep(time.Duration(r.ExpFloat64() * float64(200*time.Millisecond)))
				}
			})
		}
	}
	spokes := []*node{b, c, d}
	any := func(r *rand.Rand) *node { return spokes[r.IntN(len(spokes))] }
	number, mu := 0, sync.Mutex{}
	sent := map[string]bool{}
	send := func(from, to *node) error {
		mu.Lock()
		number++
		payload := fmt.Sprint(number)
		sent[payload] = true
		mu.Unlock()
		batch := from.NewBatch()
		batch.Append(from.packet(to, payload))
		if err := from.Send(batch); err != nil && from.Status().Up && !contains(err, "down") {
			return err
		}
		return nil
	}
	// These goroutines send packets from the hub and from its peers.
	each(2, func(r *rand.Rand) error { return send(h, any(r)) }, func(r *rand.Rand) error { return send(any(r), h) })
	// These goroutines change the configuration.
	keep := func(n *node) wireguard.PeerChange { return n.peer().Change() }
	each(2,
		func(r *rand.Rand) error {
			return h.Configure(wireguard.Change{ListenPort: ptr(uint16(2000 + r.IntN(3)))})
		},
		func(r *rand.Rand) error { return h.Configure(wireguard.Change{FirewallMark: ptr(uint32(r.IntN(3)))}) },
		func(r *rand.Rand) error { return h.RemovePeer(any(r).pub()) },
		func(r *rand.Rand) error { return h.SetPeer(any(r).peer()) },
		func(r *rand.Rand) error {
			return h.Configure(wireguard.Change{ReplacePeers: true, Peers: []wireguard.PeerChange{keep(b), keep(c), keep(d)}})
		},
		func(r *rand.Rand) error {
			n := any(r)
			return h.Configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: n.pub(), Remove: true}, keep(n)}})
		},
		func(r *rand.Rand) error {
			every := time.Duration(r.IntN(3)) * time.Second
			return h.Configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: any(r).pub(), UpdateOnly: true, PersistentKeepalive: &every}}})
		},
		func(r *rand.Rand) error { return h.Configure(wireguard.Change{PrivateKey: &wireguard.PrivateKey{}}) },
		func(r *rand.Rand) error { return h.Configure(wireguard.Change{PrivateKey: &h.key}) },
		func(r *rand.Rand) error { return h.Configure(wireguard.Change{PrivateKey: &h.key}) },
	)
	// This goroutine calls Up, Down and Wake, reads the status, and waits for handshakes.
	each(1,
		func(r *rand.Rand) error { return h.Up() },
		func(r *rand.Rand) error { return h.Up() },
		func(r *rand.Rand) error { h.Down(); return nil },
		func(r *rand.Rand) error { return h.Wake() },
		func(r *rand.Rand) error {
			for p := range h.Peers() {
				h.Status()
				if k := h.PrivateKey(); !k.IsZero() && k.Public() != h.pub() {
					return errors.New("the device has another private key")
				}
				if _, ok := h.PresharedKey(p.PublicKey); ok {
					h.PeerOf(&net.TCPAddr{IP: net.IP(h.addr.AsSlice())})
				}
			}
			return nil
		},
		func(r *rand.Rand) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if err := h.Handshake(ctx, any(r).pub()); errors.Is(err, net.ErrClosed) {
				return err
			}
			return nil
		},
	)
	wg.Wait()

	if err := errors.Join(h.Configure(wireguard.Change{PrivateKey: &h.key, ListenPort: &h.port}), h.Up()); err != nil {
		w.Fatal(err)
	}
	for _, n := range spokes {
		h.knows(n)
		n.update(h, wireguard.PeerChange{Endpoint: ptr(h.at())})
	}
	w.advance(20 * time.Second) // so that no message is in flight, and every peer may send an initiation again
	arrived := 0
	for _, n := range append(spokes, h) {
		for _, p := range n.arrived() {
			if p[0] == 'E' {
				continue // this is an ICMP error about a packet whose peer was removed
			}
			if arrived++; !sent[p] {
				w.Fatalf("the payload %q arrived, but was never sent or arrived twice", p)
			}
			delete(sent, p)
		}
	}
	w.Logf("%d of %d packets arrived, in %d handshakes and %v", arrived, number, w.net.Sent().Initiations, w.now())
	if arrived < number/10 {
		w.Fatalf("only %d of %d packets arrived, want at least a tenth", arrived, number)
	}
	for _, n := range spokes {
		h.send(n, "after the storm")
		n.send(h, "calm")
	}
	w.advance(5*time.Second + jitter)
	for _, n := range spokes {
		n.wantArrived("the tunnel works", "after the storm")
	}
	h.wantArrived("the tunnel works", "calm", "calm", "calm")
	for _, n := range append(spokes, h) {
		if k, m := wireguard.StagedBytes(n.Device), wireguard.Waiters(n.Device); k != 0 || m != 0 {
			w.Fatalf("%s: %d bytes are staged and %d calls wait at the end, want 0", n.name, k, m)
		}
	}
	for _, n := range spokes {
		h.RemovePeer(n.pub())
	}
	if k := wireguard.SessionIndices(h.Device); k != 0 {
		w.Fatalf("%d session indices are left after all peers were removed, want 0", k)
	}
}
