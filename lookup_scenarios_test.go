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

// hold makes lookups wait until the test closes the channel that hold returns. The method let ends that: later lookups do not
// wait.
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
		w.want("client initiation", "the register does not know it")
		server.wantDrops(wireguard.DropUnknownPeer, 1, "looked up in vain")
		r.knows(client)
		w.advance(5*time.Second + jitter)
		w.want("client initiation, server response, client data", "now it does: no second round trip")
		server.wantArrived("delivered", "hello")
		server.send(client, "back")
		client.wantArrived("the endpoint came with the initiation", "back")
		if s := server.status(client); !s.LookedUp || s.Timestamp == (wireguard.Timestamp{}) {
			w.Fatalf("status %+v", s)
		}
		if n := r.count(); n != 2 {
			w.Fatalf("%d lookups, want one for each initiation of a stranger", n)
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
		w.want("client initiation x4", "the program takes its time")
		if n := r.count(); n != 1 {
			w.Fatalf("%d lookups for one key at a time, want 1", n)
		}
		other := w.node("other")
		other.knows(server)
		server.knows(other)
		other.send(server, "me first")
		server.wantArrived("a lookup holds up nobody else", "me first")
		w.script()
		close(gate)
		w.want("server response, client data", "the newest initiation is the one that is answered")
		server.wantArrived("in the end", "hello")
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
		w.want("client initiation x2", "the second is the newest")
		w.replay(old, stranger)
		close(gate)
		w.want("server response, client data", "the recording is ignored")
		server.wantEndpoint(client, client.at().Addr, "and moves nothing")
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
		server.wantDrops(wireguard.DropCookieRequired, 0, "so many may come without a cookie")
		strangers(1)
		server.wantDrops(wireguard.DropCookieRequired, 1, "then the device is under load")
		w.advance(10 * time.Second)
		if !server.Status().UnderLoad {
			w.Fatal("the load ends although the lookups do not")
		}
		base := r.count() // includes the last stranger, which has retried with the cookie
		strangers(most - base)
		server.wantDrops(wireguard.DropLookupFull, 0, "so many may wait")
		strangers(3)
		server.wantDrops(wireguard.DropLookupFull, 3, "and not one more")
		if n := r.count(); n != most {
			w.Fatalf("%d lookups", n)
		}
		close(gate)
		w.settle()
		server.wantDrops(wireguard.DropUnknownPeer, uint64(most), "all in vain")
		strangers(1)
		if n := r.count(); n != most+1 {
			w.Fatalf("%d lookups: there is room again", n)
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
				w.Errorf("client %d has no session by its second attempt", i)
			}
		}
		if n := server.Status().Drops[wireguard.DropCookieRequired]; n < uint64(sent*9/10) {
			w.Fatalf("%d of %d strangers were asked for a cookie", n, sent)
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
		server.wantArrived("two are let in", "client", "second")
		server.wantDrops(wireguard.DropLookupFull, 1, "the third is not")
		if n := r.count(); n != 2 {
			w.Fatalf("%d lookups", n)
		}
		client.Close()
		second.Close()
		for range 110 { // the node third keeps trying, and the server forgets client and second after 540 s
			third.send(server, "third")
			w.advance(5 * time.Second)
		}
		if p := server.arrived(); len(p) == 0 {
			w.Fatal("the place of who was forgotten is free again")
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
		server.wantEvents("before", wireguard.EventEndpointMoved, wireguard.EventHandshake, wireguard.EventHandshake,
			wireguard.EventSessionExpired)
		w.advance(1)
		if _, ok := server.Peer(client.pub()); ok {
			w.Fatal("540 s after its last session the peer is still there")
		}
		if _, ok := server.Route(client.addr); ok {
			w.Fatal("its prefixes still route")
		}
		e := server.wantEvents("told", wireguard.EventPeerForgotten)[0]
		if e.Peer != client.pub() || e.Timestamp != newest || e.SentTimestamp != (wireguard.Timestamp{}) {
			w.Fatalf("event %+v, want the newest timestamp %x, and none sent", e, newest)
		}
		if e.Endpoint.IsValid() {
			w.Fatalf("event %+v: fields that its kind does not name are zero", e)
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
		es := server.wantEvents("forgotten", wireguard.EventEndpointMoved, wireguard.EventHandshake,
			wireguard.EventSessionExpired, wireguard.EventPeerForgotten)
		r.knows(client, es[3].Timestamp)
		w.replay(recorded, stranger)
		w.want("", "not answered")
		server.wantDrops(wireguard.DropOldTimestamp, 1, "a recording")
		if _, ok := server.Peer(client.pub()); ok {
			w.Fatal("a recording brought the peer back")
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
		w.want("client initiation, server response, client keepalive", "never confirmed")
		client.Close()
		w.advance(180*time.Second - 1)
		server.status(client)
		w.advance(1)
		if _, ok := server.Peer(client.pub()); ok {
			w.Fatal("it is still there after 180 s")
		}
		if n := wireguard.SessionIndices(server.Device); n != 0 {
			w.Fatalf("%d session indices of nobody", n)
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
		w.want("client initiation, server response, client data", "looked up anew")
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
			w.Fatal("540 s without a session: a looked-up peer must not stay for ever because the device was down")
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
			w.Fatal("an update alone is no adoption")
		}
		server.update(client, wireguard.PeerChange{AllowedIPs: client.prefixes()})
		server.wantSession(client, true, "untouched")
		w.advance(time.Hour)
		if server.status(client).LookedUp {
			w.Fatal("still a looked-up peer")
		}
		server.wantEvents("not forgotten", wireguard.EventEndpointMoved, wireguard.EventHandshake, wireguard.EventSessionExpired)
	})
}

// The device checks the peer that Lookup returns like any configuration. It ignores the peer if the peer's public key is not the
// key that the device looked up.
func TestLookupReturnsNonsense(t *testing.T) {
	withRegister(t, func(w *world, server, client *node, r *register) {
		r.answers(client, wireguard.PeerConfig{PublicKey: wireguard.NewPrivateKey().Public()})
		client.send(server, "x")
		w.want("client initiation", "another key is no answer")
		r.answers(client, wireguard.PeerConfig{PublicKey: client.pub(), AllowedIPs: make([]netip.Prefix, 1)})
		w.advance(5*time.Second + jitter)
		w.want("client initiation", "an invalid prefix is no answer")
		if n := server.Status().Peers; n != 0 {
			w.Fatalf("%d peers", n)
		}
		server.wantDrops(wireguard.DropUnknownPeer, 2, "counted")
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
			w.Fatal("a forgery was looked up")
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
		server.wantArrived("the initiation that waited is taken up", "hello")
		if server.status(client).LookedUp {
			w.Fatal("a configured peer became a looked-up one")
		}
	})
}
