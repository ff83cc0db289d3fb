package wireguard_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// A register is the set of peers that the server's Config.Lookup finds.
type register struct {
	mu    sync.Mutex // guards all fields below
	peers map[wireguard.PublicKey]wireguard.PeerConfig
	calls int
	gate  chan struct{} // lookups wait until this channel is closed; they do not wait if it is nil
	ended int           // how many lookups returned because their context ended
}

func (r *register) lookup(ctx context.Context, key wireguard.PublicKey) (wireguard.PeerConfig, error) {
	r.mu.Lock()
	r.calls++
	c, ok := r.peers[key]
	gate := r.gate
	r.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			r.mu.Lock()
			r.ended++
			r.mu.Unlock()
			return c, ctx.Err()
		}
	}
	if !ok {
		return c, errors.New("no such user")
	}
	return c, nil
}

func (r *register) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

// knows adds o to the register. The peer's configuration has no endpoint, because the server learns the endpoint from the
// initiation.
func (r *register) knows(o *node, ts ...wireguard.Timestamp) {
	c := wireguard.PeerConfig{PublicKey: o.pub(), AllowedIPs: o.prefixes()}
	for _, ts := range ts {
		c.Timestamp = ts
	}
	r.answers(o, c)
}

// answers makes lookups of o's key return c.
func (r *register) answers(o *node, c wireguard.PeerConfig) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.peers == nil {
		r.peers = map[wireguard.PublicKey]wireguard.PeerConfig{}
	}
	r.peers[o.pub()] = c
}

// hold makes lookups wait. It returns a channel, and when the test closes the channel, these lookups continue. Lookups that begin
// after a call of let do not wait.
func (r *register) hold() chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gate = make(chan struct{})
	return r.gate
}

func (r *register) let() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gate = nil
}

// withRegister calls play with a server that looks up its peers in the register r, and a client that has the server as a peer.
func withRegister(t *testing.T, play func(w *world, server, client *node, r *register), alter ...func(c *wireguard.Config)) {
	inWorld(t, func(w *world) {
		r := &register{}
		asks := func(c *wireguard.Config) { c.Lookup = r.lookup }
		server := w.node("server", append([]func(*wireguard.Config){asks}, alter...)...)
		client := w.node("client")
		client.knows(server)
		play(w, server, client, r)
	})
}

// A device answers an initiation from an unknown key as soon as Lookup has returned the peer.
func TestLookup(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		client.send(server, "hello")
		w.want("client initiation", "the register does not have the client's key")
		server.wantDrops(wireguard.DropUnknownPeer, 1, "the lookup found no peer")
		r.knows(client)
		w.advance(5*time.Second + jitter)
		w.want("client initiation, server response, client data", "the server answers as soon as the lookup has found the client")
		server.wantArrived("the packet waited for the session", "hello")
		server.send(client, "back")
		client.wantArrived("the server learned the endpoint from the initiation", "back")
		if s := server.status(client); !s.LookedUp || s.Timestamp == (wireguard.Timestamp{}) {
			w.Fatalf("the client's status is %+v, want a looked-up peer with a timestamp", s)
		}
		if n := r.count(); n != 2 {
			w.Fatalf("%d lookups, want 2: one for each initiation from an unknown key", n)
		}
	})
}

// The workers do not wait for Lookup. While a lookup for a key is under way, further initiations from this key do not cause
// another lookup.
func TestLookupIsAsynchronousAndMerged(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		gate := r.hold()
		r.knows(client)
		client.send(server, "hello")
		w.advance(16 * time.Second)
		w.want("client initiation x4", "the lookup has not returned yet")
		if n := r.count(); n != 1 {
			w.Fatalf("%d lookups of one key are under way, want 1", n)
		}
		other := w.node("other")
		other.knows(server)
		server.knows(other)
		other.send(server, "me first")
		server.wantArrived("a pending lookup does not delay other peers", "me first")
		w.script()
		close(gate)
		w.want("server response, client data", "after the lookup, the server answers the newest initiation")
		server.wantArrived("the packet waited for the lookup", "hello")
	})
}

// While a lookup is under way, the device keeps the newest initiation of the key. A replayed older initiation does not replace
// it.
func TestLookupKeepsNewestInitiation(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		gate := r.hold()
		r.knows(client)
		client.send(server, "hello")
		old := w.last("client initiation")
		w.advance(5*time.Second + jitter)
		w.want("client initiation x2", "the client has sent a newer initiation")
		w.replay(old, stranger)
		close(gate)
		w.want("server response, client data", "the server ignores the replayed initiation")
		server.wantEndpoint(client, client.at().Addr, "the replayed initiation does not change the endpoint")
	})
}

// At most Config.MaxLookups lookups (by default 256) are pending at a time. Once an eighth of that number is pending, the device
// answers an initiation from another unknown key with a cookie reply. It looks up this key only if the sender then sends an
// initiation with a valid mac2, which proves that the sender can receive at its address.
func TestLookupBound(t *testing.T) {
	for _, most := range []int{0, 2, 24} {
		testLookupBound(t, most, cmp.Or(most, 256))
	}
}

func testLookupBound(t *testing.T, config, most int) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		gate := r.hold()
		strangers := func(n int) {
			for range n {
				client.configure(wireguard.Change{PrivateKey: ptr(wireguard.NewPrivateKey())})
				client.send(server, "x")
				w.advance(50 * time.Millisecond)
			}
		}
		free := max(most/8, 1)
		strangers(free)
		server.wantDrops(wireguard.DropCookieRequired, 0, "this many lookups need no cookie")
		strangers(1)
		server.wantDrops(wireguard.DropCookieRequired, 1, "the next lookup needs a cookie")
		w.advance(10 * time.Second)
		if !server.Status().UnderLoad {
			w.Fatal("the device is not under load any more, although the lookups are still pending")
		}
		base := r.count() // includes the last stranger, which has retried with the cookie
		strangers(most - base)
		server.wantDrops(wireguard.DropLookupFull, 0, "this many lookups may be pending")
		strangers(3)
		server.wantDrops(wireguard.DropLookupFull, 3, "no further lookup may be pending")
		if n := r.count(); n != most {
			w.Fatalf("Lookup was called %d times, want as often as Config.MaxLookups allows", n)
		}
		close(gate)
		w.settle()
		server.wantDrops(wireguard.DropUnknownPeer, uint64(most), "no lookup found a peer")
		strangers(1)
		if n := r.count(); n != most+1 {
			w.Fatalf("Lookup was called %d times, want one more call: there is room again", n)
		}
	}, func(c *wireguard.Config) { c.MaxLookups = config })
}

// TestStrangersDoNotStarveKnownKeys floods a server with 5,000 initiations per second, from 1,000 unknown keys and from many
// addresses. Each lookup takes 200 ms. During the flood, each of 40 clients whose keys are in the register must have a session
// after at most two attempts.
func TestStrangersDoNotStarveKnownKeys(t *testing.T) {
	withRegister(t, func(w *world, server, _ *node, r *register) {
		var clients []*node
		for i := range 40 {
			n := w.node(fmt.Sprint("client ", i))
			r.knows(n)
			n.knows(server)
			clients = append(clients, n)
		}
		var pool [][]byte
		for range 1000 {
			pool = append(pool, wireguard.StrangersInitiation(server.pub(), time.Now()))
		}
		sent := 0
		strangers := func(d time.Duration) {
			for end := w.now() + d; w.now() < end; w.advance(10 * time.Millisecond) {
				for range 50 {
					from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, 64, byte(sent >> 8), byte(sent)}), 1000)
					if err := w.net.Inject(from, server.at().Addr, pool[sent%len(pool)]); err != nil {
						w.Fatal(err)
					}
					sent++
				}
			}
		}
		strangers(500 * time.Millisecond)
		begin := w.now()
		for _, n := range clients {
			n.send(server, "x")
			strangers(10 * time.Millisecond)
		}
		strangers(time.Second)
		w.advance(begin + 4500*time.Millisecond - w.now())
		strangers(2 * time.Second) // this covers the second attempts, after 5 s and the jitter, and their lookups
		for i, n := range clients {
			if s := n.status(server); !s.Session {
				w.Errorf("client %d has no session after its second attempt", i)
			}
		}
		if n := server.Status().Drops[wireguard.DropCookieRequired]; n < uint64(sent*9/10) {
			w.Fatalf("%d of %d initiations from strangers were dropped because they had no cookie, want at least 90 %%", n, sent)
		}
	}, func(c *wireguard.Config) {
		lookup := c.Lookup
		c.Lookup = func(ctx context.Context, key wireguard.PublicKey) (wireguard.PeerConfig, error) {
			time.Sleep(200 * time.Millisecond) // for example for a query to a database
			return lookup(ctx, key)
		}
	})
}

// Config.MaxLookedUp limits the number of peers that Lookup has returned and that the device has not forgotten yet.
func TestMaxLookedUp(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		second, third := w.node("second"), w.node("third")
		second.knows(server)
		third.knows(server)
		for _, n := range []*node{client, second, third} {
			r.knows(n)
			n.send(server, n.name)
		}
		server.wantArrived("the server admits two looked-up peers", "client", "second")
		server.wantDrops(wireguard.DropLookupFull, 1, "the server does not admit a third looked-up peer")
		if n := r.count(); n != 2 {
			w.Fatalf("Lookup was called %d times, want 2", n)
		}
		client.Close()
		second.Close()
		for range 110 { // the node third keeps trying, and the server forgets client and second after 540 s
			third.send(server, "third")
			w.advance(5 * time.Second)
		}
		if p := server.arrived(); len(p) == 0 {
			w.Fatal("no packet of the third peer arrived, although the server has forgotten the other peers")
		}
	}, func(c *wireguard.Config) { c.MaxLookedUp = 2 })
}

// The device forgets a looked-up peer 540 s after its last session began. EventPeerForgotten has the timestamp that Lookup must
// return the next time.
func TestLookedUpPeerForgotten(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		r.knows(client)
		w.connect(client, server)
		at := w.now()
		w.advance(100 * time.Second)
		w.connectAgain(client, server)
		w.advance(at + 540*time.Second - w.now())
		newest := server.status(client).Timestamp
		w.advance(100*time.Second - 1)
		server.status(client) // fails if the peer is gone
		server.wantEvents("the peer is not forgotten yet", wireguard.EventEndpointMoved, wireguard.EventHandshake, wireguard.EventHandshake,
			wireguard.EventSessionExpired)
		w.advance(1)
		if _, ok := server.Peer(client.pub()); ok {
			w.Fatal("540 s after its last session began, the server still has the peer")
		}
		if _, ok := server.Route(client.addr); ok {
			w.Fatal("the prefixes of the forgotten peer still have a route")
		}
		e := server.wantEvents("the server has forgotten the peer", wireguard.EventPeerForgotten)[0]
		if e.Peer != client.pub() || e.Timestamp != newest || e.SentTimestamp != (wireguard.Timestamp{}) {
			w.Fatalf("the event is %+v, want the newest timestamp %x and no SentTimestamp", e, newest)
		}
		if e.Endpoint.IsValid() {
			w.Fatalf("the event is %+v, want no endpoint: fields that its kind does not name must be zero", e)
		}
		w.connectAgain(client, server)
	})
}

// If Lookup returns the greatest timestamp that the device has seen from a key, a replayed initiation of this key does not bring
// the forgotten peer back.
func TestReplayedInitiationDoesNotBringPeerBack(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		r.knows(client)
		w.connect(client, server)
		recorded := w.last("client initiation")
		w.advance(541 * time.Second)
		es := server.wantEvents("the server forgets the peer", wireguard.EventEndpointMoved, wireguard.EventHandshake,
			wireguard.EventSessionExpired, wireguard.EventPeerForgotten)
		r.knows(client, es[3].Timestamp)
		w.replay(recorded, stranger)
		w.want("", "the server does not answer the replayed initiation")
		server.wantDrops(wireguard.DropOldTimestamp, 1, "the replayed initiation has an old timestamp")
		if _, ok := server.Peer(client.pub()); ok {
			w.Fatal("a replayed initiation brought the peer back")
		}
		w.connectAgain(client, server) // the client itself can come back
	})
}

// If no session with a looked-up peer is confirmed, the device forgets the peer 180 s after it was added. A replayed initiation
// adds such a peer if Lookup does not return the greatest timestamp.
func TestUnconfirmedLookedUpPeerForgottenAfter180s(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		r.knows(client)
		w.lose("client keepalive", 1)
		go client.Handshake(w.Context(), server.pub())
		w.want("client initiation, server response, client keepalive", "the keepalive that confirms the session is lost")
		client.Close()
		w.advance(180*time.Second - 1)
		server.status(client)
		w.advance(1)
		if _, ok := server.Peer(client.pub()); ok {
			w.Fatal("the server still has the unconfirmed peer after 180 s")
		}
		if n := wireguard.SessionIndices(server.Device); n != 0 {
			w.Fatalf("%d session indices are left of the forgotten peer, want 0", n)
		}
	})
}

// When a device goes down, it ends the lookups that are under way: their contexts end.
func TestLookupAndDown(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		r.hold()
		client.send(server, "x")
		w.script()
		server.Down()
		w.settle()
		r.mu.Lock()
		ended := r.ended
		r.mu.Unlock()
		if ended != 1 {
			w.Fatal("the context of the lookup did not end")
		}
		r.let()
		if err := server.Up(); err != nil {
			w.Fatal(err)
		}
		r.knows(client)
		w.advance(5*time.Second + jitter)
		w.want("client initiation, server response, client data", "the server looks the client up again")
	})
}

// The device forgets a looked-up peer 540 s after its last session, even if the device was down during that time.
func TestLookedUpPeerForgottenAfterDown(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		r.knows(client)
		w.connect(client, server)
		client.Close()
		server.restart()
		w.advance(541 * time.Second)
		if _, ok := server.Peer(client.pub()); ok {
			w.Fatal("the server still has the looked-up peer after 540 s without a session, because the device was down")
		}
	})
}

// If Configure sets a looked-up peer, it becomes an ordinary peer, which the device does not forget.
func TestLookedUpPeerConfigured(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		r.knows(client)
		w.connect(client, server)
		server.update(client, wireguard.PeerChange{UpdateOnly: true, PersistentKeepalive: ptr(time.Duration(0))})
		if !server.status(client).LookedUp {
			w.Fatal("a change with UpdateOnly made the looked-up peer an ordinary peer")
		}
		server.update(client, wireguard.PeerChange{AllowedIPs: client.prefixes()})
		server.wantSession(client, true, "Configure keeps the session")
		w.advance(time.Hour)
		if server.status(client).LookedUp {
			w.Fatal("the peer is still a looked-up peer after Configure has set it")
		}
		server.wantEvents("the device does not forget a configured peer", wireguard.EventEndpointMoved, wireguard.EventHandshake, wireguard.EventSessionExpired)
	})
}

// The device checks the peer that Lookup returns like any configuration. It ignores the peer if the peer's public key is not the
// key that the device looked up.
func TestLookupReturnsNonsense(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		r.answers(client, wireguard.PeerConfig{PublicKey: wireguard.NewPrivateKey().Public()})
		client.send(server, "x")
		w.want("client initiation", "Lookup returned a peer with another key")
		r.answers(client, wireguard.PeerConfig{PublicKey: client.pub(), AllowedIPs: make([]netip.Prefix, 1)})
		w.advance(5*time.Second + jitter)
		w.want("client initiation", "Lookup returned a peer with an invalid prefix")
		if n := server.Status().Peers; n != 0 {
			w.Fatalf("the server has %d peers, want 0", n)
		}
		server.wantDrops(wireguard.DropUnknownPeer, 2, "the server counts both initiations")
	})
}

// Only an authentic initiation causes a lookup. So a sender that does not have the private key of a peer cannot cause a lookup of
// that peer.
func TestForgedInitiationIsNotLookedUp(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		r.knows(client)
		client.send(server, "x")
		initiation := w.last("client initiation")
		n := r.count()
		for _, at := range []int{9, 50, 90, 120} {
			m := initiation
			m.data = append([]byte(nil), m.data...)
			m.data[at] ^= 1
			w.replay(m, stranger)
		}
		if r.count() != n {
			w.Fatal("a forged initiation caused a lookup")
		}
	})
}

// If Configure adds a peer while a lookup of its key is under way, the peer is a configured peer, not a looked-up one.
func TestLookupWhileConfigured(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		gate := r.hold()
		r.knows(client)
		client.send(server, "hello")
		server.knows(client) // the lookup is still waiting at this point
		close(gate)
		w.settle()
		server.wantArrived("the server answers the initiation that waited for the lookup", "hello")
		if server.status(client).LookedUp {
			w.Fatal("a configured peer became a looked-up peer")
		}
	})
}
