package wireguard

import (
	"encoding/binary"
	"flag"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var loadPeers = flag.Int("peers", 0, "how many peers TestReplacePeersUnderTraffic configures, of which one in 100 is active; 0 means 10,000, or 1,000 with -race")

// A crowded is a device with many peers. Only the active peers exchange packets with it.
type crowded struct {
	*end
	active []*remote
	idle   int            // number of peers without a session; each has a prefix
	sent   []atomic.Int64 // number of packets that the device sent to each active peer
	got    atomic.Int64   // number of packets that the device delivered

	stop atomic.Bool
	wg   sync.WaitGroup
}

func newCrowded(t *testing.T, n int) *crowded {
	c := &crowded{idle: n, active: make([]*remote, max(n/100, 20)), sent: make([]atomic.Int64, max(n/100, 20)+1)}
	c.end = newEndOf(t, Config{PrivateKey: testKey(1)})
	c.line.send = func(ts []Train) {
		for i := range ts {
			for m := range ts[i].Datagrams() {
				switch {
				case m[0] != typeData:
					c.line.sent <- datagram{b: append([]byte(nil), m...)}
				case len(m) > messageOverhead:
					c.sent[binary.LittleEndian.Uint32(m[4:])>>8].Add(1) // the number of the remote
				}
			}
		}
	}
	c.tunnel.write = func(pkts [][]byte) int {
		c.got.Add(int64(len(pkts)))
		return len(pkts)
	}
	for i := range c.active {
		c.active[i] = newRemote(i+1, testKey(1).Public())
	}
	c.replace(t, 0)
	if err := c.Up(); err != nil {
		t.Fatal(err)
	}
	for _, r := range c.active {
		c.connect(t, r)
	}
	return c
}

// replace replaces the device's peers with the active ones and with idle ones whose numbers begin at from.
func (c *crowded) replace(t *testing.T, from int) {
	t.Helper()
	change := Change{ReplacePeers: true, Peers: make([]PeerChange, 0, len(c.active)+c.idle)}
	for _, r := range c.active {
		change.Peers = append(change.Peers, r.config().Change())
	}
	for i := from; i < from+c.idle; i++ {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
		change.Peers = append(change.Peers, PeerChange{PublicKey: crowdKey(i), AllowedIPs: []netip.Prefix{prefix}})
	}
	c.mustConfigure(t, change)
}

// loop starts a goroutine that calls f with one active peer after the other until stop is set. After every 16 calls, the
// goroutine sleeps for 1 ms. loop returns a counter of the calls.
func (c *crowded) loop(f func(i int, r *remote)) *atomic.Int64 {
	var n atomic.Int64
	c.wg.Go(func() {
		for !c.stop.Load() {
			i := int(n.Load()) % len(c.active)
			f(i, c.active[i])
			if n.Add(1)%16 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	})
	return &n
}

// TestReplacePeersUnderTraffic replaces a tenth of the idle peers three times, while the active peers send and receive packets,
// and a goroutine reads the status of the peers. No packet may be lost, and no session may be renewed. At the end, the test
// removes the idle peers, and checks that their memory is freed.
func TestReplacePeersUnderTraffic(t *testing.T) {
	n := *loadPeers
	if n == 0 {
		n = crowdSize(10_000)
	}
	var before, full, after runtime.MemStats
	weigh := func(m *runtime.MemStats) {
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(m)
	}
	weigh(&before)
	c := newCrowded(t, n)
	weigh(&full)

	in := c.loop(func(_ int, r *remote) { c.line.receive(r.train(r.data(packet4(100, r.addr, here)))) })
	out := c.loop(func(_ int, r *remote) { c.send(t, packet4(100, here, r.addr)) })
	var longest atomic.Int64
	looks := c.loop(func(_ int, r *remote) {
		began := time.Now()
		s, ok := c.Peer(r.id.public)
		if peers := c.Status().Peers; !ok || !s.Session || s.AllowedIPs != 1 || peers != len(c.active)+n {
			t.Errorf("the status of an active peer is %+v (found: %v), and the device has %d peers, want %d", s, ok, peers, len(c.active)+n)
			c.stop.Store(true)
		}
		for range c.PeersAfter(s.PublicKey) {
			break
		}
		longest.Store(max(longest.Load(), int64(time.Since(began))))
	})
	for round := range 3 {
		began, i, o, l := time.Now(), in.Load(), out.Load(), looks.Load()
		c.replace(t, (round+1)*n/10)
		t.Logf("round %d took %v; meanwhile %d packets in, %d out, %d looks", round+1, time.Since(began), in.Load()-i, out.Load()-o, looks.Load()-l)
	}
	eventually(t, "each of the three loops has made 100 calls", func() bool { return in.Load() > 100 && out.Load() > 100 && looks.Load() > 100 })
	c.stop.Store(true)
	c.wg.Wait()
	t.Logf("%d peers, %d of them active, %d MiB of heap; the longest look took %v", n+len(c.active), len(c.active),
		(full.HeapInuse-before.HeapInuse)>>20, time.Duration(longest.Load()))

	total := func() (sum int64) {
		for i := range c.sent {
			sum += c.sent[i].Load()
		}
		return sum
	}
	eventually(t, "all packets to the active peers are sent", func() bool { return total() == out.Load() })
	if got := c.got.Load(); got != in.Load() {
		t.Errorf("%d of %d packets from the active peers arrived", got, in.Load())
	}
	if drops := c.Status().Drops.Total(); drops != 0 {
		t.Errorf("the device counted %d drops, want 0: %v", drops, c.Status().Drops)
	}
	c.line.nothing(t, "no session is renewed")

	c.idle = 0
	c.replace(t, 0)
	weigh(&after)
	if c.Status().Peers != len(c.active) {
		t.Errorf("%d peers are left, want %d", c.Status().Peers, len(c.active))
	}
	if grown, left := int64(full.HeapInuse-before.HeapInuse), int64(after.HeapInuse)-int64(before.HeapInuse); left > grown/5+1<<20 {
		t.Errorf("of %d bytes of heap for %d idle peers, %d are still in use after the removal of all but %d peers", grown, n, left, len(c.active))
	} else {
		t.Logf("%d KiB of heap are in use after the removal", left>>10)
	}
	for _, r := range c.active { // this also keeps the peers and the device alive until here
		if s, ok := c.Peer(r.id.public); !ok || !s.Session {
			t.Fatal("an active peer lost its session")
		}
	}
}
