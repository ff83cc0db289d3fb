package wireguard_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A countingBind counts how often its sockets' method Send is called.
type countingBind struct {
	wireguard.Bind
	calls atomic.Int64
}

type countingSocket struct {
	wireguard.Socket
	calls *atomic.Int64
}

func (b *countingBind) Listen(port uint16) (wireguard.Socket, error) {
	s, err := b.Bind.Listen(port)
	return countingSocket{s, &b.calls}, err
}

func (s countingSocket) Send(ts []wireguard.Train) {
	s.calls.Add(1)
	s.Socket.Send(ts)
}

// A choir is a device (the hub) that has a session with each of many peers. It records when the hub sent its last keepalive to
// each peer.
type choir struct {
	*world
	hub    *node
	peers  []*node
	bind   *countingBind
	before int64
	heard  []time.Duration // for each peer, when the hub sent its last keepalive to the peer; guarded by world.mu
}

func inChoir(t *testing.T, n int, play func(c *choir)) {
	inWorld(t, func(w *world) {
		c := &choir{world: w, bind: new(countingBind), heard: make([]time.Duration, n)}
		c.hub = w.node("hub", func(config *wireguard.Config) {
			c.bind.Bind = config.Bind
			config.Bind = c.bind
		})
		at := make(map[wireguard.Endpoint]int, n)
		for i := range n {
			p := w.node(fmt.Sprint("peer ", i))
			p.knows(c.hub)
			c.hub.knows(p)
			w.connect(c.hub, p)
			c.peers, at[p.at()] = append(c.peers, p), i
		}
		w.judge(func(m *message) pipe.Verdict {
			if i, ok := at[wireguard.EndpointOf(m.dst)]; ok && m.from == c.hub && m.String() == "hub keepalive" {
				c.heard[i] = m.at
			}
			return pipe.Pass
		})
		c.calls()
		play(c)
	})
}

// calls returns how often the hub has called Send of its socket since the previous call of this method.
func (c *choir) calls() int64 {
	c.settle()
	before := c.before
	c.before = c.bind.calls.Load()
	return c.before - before
}

// keepAlive sets the persistent keepalive of all peers to the given interval (every), in one change.
func (c *choir) keepAlive(every time.Duration) {
	c.Helper()
	var change wireguard.Change
	for _, p := range c.peers {
		change.Peers = append(change.Peers, wireguard.PeerChange{PublicKey: p.pub(), PersistentKeepalive: &every})
	}
	c.hub.configure(change)
	c.settle()
}

// wantHeard checks when the hub sent its last keepalive to each peer. The slice since has an earlier time for each peer. From
// that time to the keepalive, at least the duration after and at most the duration after+late must have passed.
func (c *choir) wantHeard(since []time.Duration, after, late time.Duration, why string) {
	c.Helper()
	for i, at := range c.since() {
		if took := at - since[i]; took < after || took > after+late {
			c.Fatalf("%s: the hub sent peer %d a keepalive after %v, want %v or up to %v later", why, i, took, after, late)
		}
	}
}

// since returns a copy of c.heard: for each peer, the time of the hub's last keepalive to the peer.
func (c *choir) since() []time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.heard)
}

// TestKeepalivesTogether checks that the device sends keepalives to many peers in a few calls of Send if they are due one
// millisecond after another. None may be early, and none may be more than 10 ms late. The next interval begins when the keepalive
// is sent, so the keepalives stay together.
func TestKeepalivesTogether(t *testing.T) {
	const n, slack = 40, 10 * time.Millisecond
	inChoir(t, n, func(c *choir) {
		for _, p := range c.peers {
			c.hub.update(p, wireguard.PeerChange{PersistentKeepalive: ptr(25 * time.Second)})
			c.advance(time.Millisecond)
		}
		if calls := c.calls(); calls != n {
			t.Fatalf("%d calls of Send for %d keepalives that are turned on one after another, want one call each", calls, n)
		}
		for interval := range 3 {
			since := c.since()
			c.advance(25*time.Second + n/2*time.Millisecond)
			c.wantHeard(since, 25*time.Second, slack, fmt.Sprintf("interval %d", interval+1))
			if calls := c.calls(); calls > n*int64(time.Millisecond)/int64(slack)+1 {
				t.Errorf("interval %d: %d calls of Send for %d keepalives that are due within %d ms, want fewer", interval+1, calls, n, n)
			}
		}
	})
}

// TestKeepalivesBeginTogether checks that if one change sets the persistent keepalives of many peers, the device sends them in
// batches, exactly when they are due. After Wake it does the same.
func TestKeepalivesBeginTogether(t *testing.T) {
	const n, batches = 130, 2 // a batch has at most 128 packets
	inChoir(t, n, func(c *choir) {
		want := func(since []time.Duration, after time.Duration, why string) {
			t.Helper()
			c.wantHeard(since, after, 0, why)
			if calls := c.calls(); calls != batches {
				t.Errorf("%s: %d calls of Send for %d peers, want %d", why, calls, n, batches)
			}
		}
		now := func() []time.Duration {
			all := make([]time.Duration, n)
			for i := range all {
				all[i] = c.now()
			}
			return all
		}
		begin := now()
		c.keepAlive(25 * time.Second)
		want(begin, 0, "the keepalives are turned on")
		c.advance(25 * time.Second)
		want(begin, 25*time.Second, "an interval later")
		c.advance(5 * time.Second)
		begin = now()
		if err := c.hub.Wake(); err != nil {
			t.Fatal(err)
		}
		want(begin, 0, "after a Wake")
		c.advance(25 * time.Second)
		want(begin, 25*time.Second, "an interval after the Wake")
	})
}

// TestLoneDeadlineIsExact checks that the device handles a deadline exactly on time. There is one exception: if the alarm rang
// less than 10 ms before the deadline, the device handles the deadline 10 ms after the alarm rang.
func TestLoneDeadlineIsExact(t *testing.T) {
	inChoir(t, 2, func(c *choir) {
		on := func(i int, every time.Duration) {
			c.hub.update(c.peers[i], wireguard.PeerChange{PersistentKeepalive: &every})
		}
		on(0, 10*time.Second)
		c.advance(time.Millisecond)
		on(1, 20*time.Second)
		c.settle()
		begin := c.since()
		c.advance(10*time.Second - time.Millisecond)
		c.advance(10 * time.Second)
		if took := c.since()[0] - begin[0]; took != 20*time.Second {
			t.Errorf("the second keepalive to peer 0 was sent after %v, want 20 s, because no other deadline is near", took)
		}
		c.advance(20 * time.Millisecond)
		if took := c.since()[1] - begin[1]; took != 20*time.Second+9*time.Millisecond {
			t.Errorf("the keepalive to peer 1, due 1 ms after that to peer 0, was sent after %v, want 20.009 s", took)
		}
	})
}
