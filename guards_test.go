package wireguard

import (
	"bytes"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

func heapAndStack() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// TestIdleDevice checks that a device that is up and idle uses at most 1 MiB of memory and 8 goroutines.
func TestIdleDevice(t *testing.T) {
	goroutines, heap := runtime.NumGoroutine(), heapAndStack()
	a, _ := newLoop()
	d, err := New(Config{PrivateKey: NewPrivateKey(), Tunnel: &counter{closed: make(chan struct{})}, Bind: a})
	if err != nil {
		t.Fatal(err)
	}
	d.Up()
	if n := runtime.NumGoroutine() - goroutines; n > 8 {
		t.Errorf("the device has %d goroutines, want at most 8", n)
	}
	if n := heapAndStack() - heap; n > 1<<20 && !testkit.Race {
		t.Errorf("the device takes %d bytes, want at most 1 MiB", n)
	}
	d.Close()
	eventually(t, "Close leaves no goroutine", func() bool { return runtime.NumGoroutine() <= goroutines })
}

// crowdSize returns n, or n/10 if the test runs in an environment where a handshake takes about ten times as long.
func crowdSize(n int) int {
	if testkit.Race || strconv.IntSize == 32 || testkit.OneThread {
		return n / 10
	}
	return n
}

// crowd returns a device with n peers, newRemote(1) to newRemote(n). It also returns how many goroutines and bytes of heap were
// in use before it added the peers. The device's keepalives are counted in keepalives and are not sent.
func crowd(t *testing.T, n int) (e *end, keepalives *atomic.Int64, goroutines int, heap int64) {
	e, keepalives = newEnd(t, testKey(1)), new(atomic.Int64)
	e.line.send = func(ts []Train) {
		for _, t := range ts {
			if len(t.Data) == messageOverhead {
				keepalives.Add(1)
			} else {
				e.line.sent <- datagram{bytes.Clone(t.Data), t.Endpoint, t.TOS}
			}
		}
	}
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	goroutines, heap = runtime.NumGoroutine(), heapAndStack()
	change := Change{Peers: make([]PeerChange, n)}
	for i := range change.Peers {
		c := newRemote(i+1, PublicKey{}).config()
		change.Peers[i] = c.Change()
	}
	if err := e.Configure(change); err != nil {
		t.Fatal(err)
	}
	return e, keepalives, goroutines, heap
}

// wantLight fails if the n peers of e use more than 1 KiB of memory each, including their prefixes and their entries in tables,
// or if there are goroutines for them.
func (e *end) wantLight(t *testing.T, n, goroutines int, heap int64) {
	t.Helper()
	got := (heapAndStack() - heap) / int64(n)
	t.Logf("%d bytes per peer", got)
	if got > 1024 && !testkit.Race {
		t.Errorf("%d bytes per peer, want at most 1024", got)
	}
	eventually(t, "the device has no goroutines for idle peers", func() bool { return runtime.NumGoroutine() <= goroutines })
	last := newRemote(n, PublicKey{})
	if key, ok := e.Route(last.addr); !ok || key != last.id.public {
		t.Error("the prefix of the last peer has no route to that peer")
	}
}

// TestIdlePeers checks that a peer that was never used takes at most 1 KiB of memory and has no goroutine.
func TestIdlePeers(t *testing.T) {
	n := crowdSize(10_000)
	e, _, goroutines, heap := crowd(t, n)
	e.wantLight(t, n, goroutines, heap)
}

// TestIdlePeersAfterUse checks that a peer takes at most 1 KiB even after use: the device had a session with the peer, sent,
// received and dropped packets, and wiped the session 540 s later.
func TestIdlePeersAfterUse(t *testing.T) {
	n := crowdSize(10_000)
	e, keepalives, goroutines, heap := crowd(t, n)
	for i := range n {
		r := newRemote(i+1, testKey(1).Public())
		e.connect(t, r)
		e.send(t, packet4(100, here, r.addr))
		r.open(t, e.line.next(t, "the packet to the remote").b)
		e.line.receive(r.train(r.data(packet4(100, r.addr, here))), r.train(r.dataAt(0, nil))) // the second is a replay
		e.tunnel.next(t, "the packet from the remote")
	}
	if got := SessionIndices(e.Device); got != n {
		t.Errorf("%d sessions, want %d", got, n)
	}
	for _, d := range []time.Duration{11 * time.Second, 170 * time.Second, 360 * time.Second} {
		e.advance(t, d)
	}
	if got := SessionIndices(e.Device); got != 0 || StagedBytes(e.Device) != 0 || keepalives.Load() != int64(n) {
		t.Errorf("%d sessions and %d staged bytes are left, and %d keepalives were sent, want 0, 0 and 1 per peer", got, StagedBytes(e.Device), keepalives.Load())
	}
	e.wantLight(t, n, goroutines, heap)
}

// TestPeerFitsItsClass checks that the struct peer fits into the allocator's size class of 576 bytes; the next class has 640
// bytes. The allocator needs 8 of these bytes for itself if an object is larger than 512 bytes.
func TestPeerFitsItsClass(t *testing.T) {
	if got := unsafe.Sizeof(peer{}); got > 576-8 {
		t.Errorf("a peer takes %d bytes, want %d at most: place small fields next to each other", got, 576-8)
	}
}

// FuzzText parses arbitrary text as a key and as an endpoint. If the text is a key, it must be the key's only text form. If it is
// an endpoint, the endpoint's text form must be parsed as the same endpoint.
func FuzzText(f *testing.F) {
	f.Add("192.0.2.1:51820")
	f.Add("[fe80::1%eth0]:1")
	f.Add(NewPrivateKey().Public().String())
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParsePublicKey(s); err == nil && k.String() != s {
			t.Errorf("the text %q is parsed as the key %q", s, k)
		}
		var e, again Endpoint
		if e.UnmarshalText([]byte(s)) != nil || !e.IsValid() {
			return
		}
		text, err := e.MarshalText()
		if err != nil || again.UnmarshalText(text) != nil || again != e {
			t.Errorf("the text %q is parsed as an endpoint with the text form %q, which is parsed as %v", s, text, again)
		}
	})
}

// TestPacketsStayWhereTheyAre checks that the library does not copy packets. It seals and sends a packet in the memory into which
// the Tunnel wrote it. It opens and delivers a packet in the memory into which the socket received it.
func TestPacketsStayWhereTheyAre(t *testing.T) {
	key := testKey(1)
	r := newRemote(1, key.Public())
	e := up(t, key, r.config())
	e.connect(t, r)

	var sent []*byte
	e.line.send = func(ts []Train) {
		for _, t := range ts {
			for at := 0; at < len(t.Data); at += t.Size {
				sent = append(sent, &t.Data[at+messageHeader])
			}
		}
	}
	b := e.NewBatch()
	var room []*byte
	for range 40 {
		p := b.Next(1420)
		copy(p, packet4(1420, here, r.addr))
		room = append(room, &p[0])
		b.Commit(1420)
	}
	if err := e.Send(b); err != nil || !slices.Equal(sent, room) {
		t.Errorf("Send returned %v and sent %d of %d packets, or did not send them from where the source wrote them", err, len(sent), len(room))
	}

	train := r.train(nil)
	for range 40 {
		m := r.data(packet4(1424, r.addr, here))
		train.Data, train.Size = append(train.Data, m...), len(m)
	}
	var landed, delivered []*byte
	for at := 0; at < len(train.Data); at += train.Size {
		landed = append(landed, &train.Data[at+messageHeader])
	}
	done := make(chan struct{})
	e.tunnel.write = func(pkts [][]byte) int {
		for _, p := range pkts {
			delivered = append(delivered, &p[0])
		}
		close(done)
		return len(pkts)
	}
	e.line.receive(train)
	<-done
	if !slices.Equal(delivered, landed) {
		t.Errorf("%d of %d packets were delivered, or not from where the socket received them", len(delivered), len(landed))
	}
}
