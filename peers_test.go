package wireguard

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// crowdKey returns a key that is computed from i. The keys are not in the order of their numbers.
func crowdKey(i int) (k PublicKey) {
	binary.BigEndian.PutUint64(k[:], uint64(i+1)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(k[8:], uint64(i+1))
	return k
}

// hostPrefixes returns n prefixes in order. Each prefix contains one address.
func hostPrefixes(n int) (ps []netip.Prefix) {
	for i := range n {
		ps = append(ps, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32))
	}
	return ps
}

// strangers returns a change that adds n peers without prefixes, or that removes them if remove is set. The first of these peers
// has the number from.
func strangers(from, n int, remove bool) (c Change) {
	for i := range n {
		c.Peers = append(c.Peers, PeerChange{PublicKey: crowdKey(from + i), Remove: remove})
	}
	return c
}

func (e *end) mustConfigure(t testing.TB, c Change) {
	t.Helper()
	if err := e.Configure(c); err != nil {
		t.Fatal(err)
	}
}

// TestPagesOfPeers reads the peers page by page, and adds and removes peers while it reads a page and between the pages. It must
// read each peer that stays exactly once, in the order of the keys.
func TestPagesOfPeers(t *testing.T) {
	const stay, page = 500, 7
	e := newEnd(t, testKey(1))
	e.mustConfigure(t, strangers(0, 2*stay, false))
	var seen []PublicKey
	next := 2 * stay
	for after := (PublicKey{}); ; {
		n := 0
		for s := range e.PeersAfter(after) {
			if bytes.Compare(s.PublicKey[:], after[:]) <= 0 {
				t.Fatalf("the peer %v was read after the peer %v, want ascending keys", s.PublicKey, after)
			}
			after = s.PublicKey
			seen = append(seen, after)
			e.mustConfigure(t, strangers(next, 3, false))
			e.mustConfigure(t, strangers(next-stay, 3, true))
			next += 3
			if n++; n == page {
				break
			}
		}
		if n < page {
			break
		}
	}
	for i := range stay {
		n := 0
		for _, key := range seen {
			if key == crowdKey(i) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("peer %d, which was not removed, was read %d times, want once", i, n)
		}
	}
	if !slices.Equal(seen, slices.Compact(slices.Clone(seen))) {
		t.Error("a peer was read twice")
	}
}

// TestPagesOfAllowedIPs reads the prefixes of one peer page by page, and adds and removes prefixes between the pages.
func TestPagesOfAllowedIPs(t *testing.T) {
	prefixes := hostPrefixes(600)
	stay, goes := prefixes[:300], prefixes[300:]
	key := crowdKey(1)
	e := newEnd(t, testKey(1), PeerConfig{PublicKey: key, AllowedIPs: stay})
	var seen []netip.Prefix
	for after, round := (netip.Prefix{}), 0; ; round++ {
		n := 0
		for prefix := range e.AllowedIPsAfter(key, after) {
			after = prefix
			seen = append(seen, prefix)
			if n++; n == 7 {
				break
			}
		}
		if n < 7 {
			break
		}
		c := PeerChange{PublicKey: key, RemoveAllowedIPs: goes}
		if round%2 == 0 {
			c = PeerChange{PublicKey: key, AllowedIPs: goes}
		}
		e.mustConfigure(t, Change{Peers: []PeerChange{c}})
	}
	if got := seen[:min(len(stay), len(seen))]; !slices.Equal(got, stay) {
		t.Errorf("read %v, want the prefixes that stay in order, each once", got)
	}
	for range e.AllowedIPs(PublicKey{9}) {
		t.Error("an unknown peer has a prefix")
	}
}

// A hookedBind calls the function listen in Listen, while the device holds the configuration lock.
type hookedBind struct {
	Bind
	listen func()
}

func (b hookedBind) Listen(port uint16) (Socket, error) {
	b.listen()
	return b.Bind.Listen(port)
}

// TestStatusWaitsForNothing checks that reading the status does not wait for the configuration lock.
func TestStatusWaitsForNothing(t *testing.T) {
	var d *Device
	read := false
	line, _ := newLoop()
	key, prefixes := crowdKey(1), hostPrefixes(3)
	d, err := New(Config{PrivateKey: testKey(1), Tunnel: newDrain(), Peers: []PeerConfig{{PublicKey: key, AllowedIPs: prefixes}},
		Bind: hookedBind{line, func() {
			done := make(chan struct{})
			go func() {
				defer close(done)
				s, ok := d.Peer(key)
				_, hasKey := d.PresharedKey(key)
				read = d.Status().Peers == 1 && ok && hasKey && s.AllowedIPs == 3 && slices.Equal(slices.Collect(d.AllowedIPs(key)), prefixes)
				for range d.Peers() {
				}
			}()
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				t.Error("reading the status waits for the configuration lock")
			}
		}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Up(); err != nil || !read {
		t.Errorf("Up returned %v, or the status that was read while Up held the lock is wrong", err)
	}
	d.Close()
}

// TestStatusSeesAllOrNothing counts the peers while Configure adds many. It must see either all new peers or none.
func TestStatusSeesAllOrNothing(t *testing.T) {
	testkit.NeedsThreads(t, "the test reads the status during a change")
	n := crowdSize(20_000)
	e := newEnd(t, testKey(1))
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.mustConfigure(t, strangers(0, n, false))
	}()
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		default:
		}
		status, listed := e.Status().Peers, 0
		for range e.Peers() {
			listed++
		}
		if status != 0 && status != n || listed != 0 && listed != n {
			t.Fatalf("the status counts %d peers, and %d peers are listed; want 0 or %d in both cases", status, listed, n)
		}
	}
	if got := e.Status().Peers; got != n {
		t.Fatalf("%d peers, want %d", got, n)
	}
}

// A cost is the memory that one change or one read allocates on average.
type cost struct{ bytes, allocs uint64 }

func costOf(f func(try int)) cost {
	const tries = 50
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for try := range tries {
		f(try)
	}
	runtime.ReadMemStats(&after)
	return cost{(after.TotalAlloc - before.TotalAlloc) / tries, (after.Mallocs - before.Mallocs) / tries}
}

// TestCostOfOne checks that changing or reading one prefix or peer allocates about as much memory with 64,000 prefixes and peers
// as with 1,000. The test compares allocations, because times depend on the machine. For the time, TestSteps in internal/ordered
// checks that the number of key comparisons grows only with the logarithm of the number of items.
func TestCostOfOne(t *testing.T) {
	costs := func(n int) map[string]cost {
		prefixes, key, other := hostPrefixes(n), crowdKey(1), crowdKey(n+1)
		e := newEnd(t, testKey(1))
		e.mustConfigure(t, strangers(0, n, false))
		e.mustConfigure(t, Change{Peers: []PeerChange{{PublicKey: key, AllowedIPs: prefixes}}})
		one := func(c PeerChange) { e.mustConfigure(t, Change{Peers: []PeerChange{c}}) }
		m := n / 2
		return map[string]cost{
			"move a prefix":   costOf(func(i int) { one(PeerChange{PublicKey: other, AllowedIPs: prefixes[m+i : m+i+1]}) }),
			"remove a prefix": costOf(func(i int) { one(PeerChange{PublicKey: key, RemoveAllowedIPs: prefixes[m+i+100 : m+i+101]}) }),
			"Peer":            costOf(func(int) { e.Peer(key) }),
			"add a peer":      costOf(func(i int) { one(PeerChange{PublicKey: crowdKey(n + 10 + i)}) }),
			"remove a peer":   costOf(func(i int) { one(PeerChange{PublicKey: crowdKey(n + 10 + i), Remove: true}) }),
			"a page of peers": costOf(func(int) {
				n := 0
				for range e.PeersAfter(key) {
					if n++; n == 50 {
						break
					}
				}
			}),
			"a page of prefixes": costOf(func(int) {
				n := 0
				for range e.AllowedIPsAfter(key, prefixes[m]) {
					if n++; n == 50 {
						break
					}
				}
			}),
		}
	}
	few, many := costs(1000), costs(64_000)
	for what, c := range many {
		one := few[what]
		t.Logf("%s: %d allocations and %d B with 1,000 prefixes and peers; %d allocations and %d B with 64,000", what, one.allocs, one.bytes, c.allocs, c.bytes)
		if c.bytes > 64<<10 || c.bytes > 5*one.bytes+1024 || c.allocs > 3*one.allocs+10 {
			t.Errorf("%s: %d allocations and %d bytes with 64,000 prefixes and peers, but %d allocations and %d bytes with 1,000", what, c.allocs, c.bytes, one.allocs, one.bytes)
		}
	}
}

// TestSetPeerOfTheSame checks that if SetPeer is called with a peer's current configuration, the table of allowed IPs does not
// change. If one of many prefixes is replaced, the device edits the table and does not copy the whole table.
func TestSetPeerOfTheSame(t *testing.T) {
	prefixes := hostPrefixes(10_000)
	c := PeerConfig{PublicKey: crowdKey(1), AllowedIPs: slices.Clone(prefixes)}
	e := newEnd(t, testKey(1), c)
	before := e.allowed.table.Load()
	slices.Reverse(c.AllowedIPs)
	c.AllowedIPs = append(c.AllowedIPs, c.AllowedIPs[:9]...)
	if err := e.SetPeer(c); err != nil || e.allowed.table.Load() != before {
		t.Errorf("SetPeer returned %v, or replaced the table although it got the same prefixes, in another order and some of them twice", err)
	}
	c.AllowedIPs = append(prefixes[1:], netip.MustParsePrefix("192.0.2.0/24"))
	edit := e.allowed.edit()
	edit.change(c.AllowedIPs, nil, true, e.peers.Find(c.PublicKey))
	if edit.copied || edit.paths != 2 {
		t.Errorf("replacing one of the prefixes changes %d prefixes, want 2, and copies the table: %v, want false", edit.paths, edit.copied)
	}
	edit.publish()
	if s, _ := e.Peer(c.PublicKey); s.AllowedIPs != len(prefixes) || !slices.Equal(slices.Collect(e.AllowedIPs(c.PublicKey)), c.AllowedIPs) {
		t.Errorf("the peer has %d prefixes, or other ones than SetPeer was called with", s.AllowedIPs)
	}
}

// TestRemovedPeersLeaveNothing checks that the memory of removed peers in the tables is freed, even if other peers stay.
func TestRemovedPeersLeaveNothing(t *testing.T) {
	n := crowdSize(20_000)
	e := newEnd(t, testKey(1), PeerConfig{PublicKey: crowdKey(n + 1)})
	before := heapAndStack()
	c := strangers(0, n, false)
	for i, prefix := range hostPrefixes(n) {
		c.Peers[i].AllowedIPs = []netip.Prefix{prefix}
	}
	e.mustConfigure(t, c)
	c = strangers(0, n, true)
	e.mustConfigure(t, c)
	c = Change{}
	if left := heapAndStack() - before; left > int64(20*n) && !testkit.Race {
		t.Errorf("%d bytes of memory are left of %d removed peers", left, n)
	}
	if e.Status().Peers != 1 {
		t.Errorf("%d peers are left, want 1", e.Status().Peers)
	}
}
