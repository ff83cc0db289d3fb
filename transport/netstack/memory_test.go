package netstack

import (
	"io"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// crowd makes n connections from a to b.
func crowd(t testing.TB, a, b *Net, n int) (dialed, accepted []*TCPConn) {
	t.Helper()
	l, err := b.ListenTCP(netip.AddrPortFrom(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range n {
		c, err := a.DialTCP(t.Context(), netip.AddrPort{}, netip.AddrPortFrom(b4, 80))
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		dialed, accepted = append(dialed, c), append(accepted, s)
	}
	return dialed, accepted
}

// heapInUse returns the bytes in use after a garbage collection.
func heapInUse() int64 {
	var m runtime.MemStats
	for range 3 { // freeing the contents of a sync.Pool takes two collections
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestStalledReaders fills 2,000 connections (500 with the race detector and in WebAssembly) whose readers do not read. It checks
// that the heap of both Nets together grows by no more than one Config.Memory, plus 30 MiB per Net for the endpoints.
func TestStalledReaders(t *testing.T) {
	const limit = defaultMemory + 60<<20
	conns := 2000
	if testkit.Race || testkit.OneThread {
		conns = 500
	}
	a, b := pair(t)
	before := heapInUse()
	dialed, accepted := crowd(t, a, b, conns)
	var mu sync.Mutex
	var total int64
	var writers sync.WaitGroup
	data := make([]byte, 1<<20)
	for _, c := range dialed {
		writers.Go(func() {
			for {
				_ = c.SetWriteDeadline(time.Now().Add(time.Second))
				n, err := c.Write(data)
				mu.Lock()
				total += int64(n)
				mu.Unlock()
				if err != nil && n == 0 {
					return
				}
			}
		})
	}
	writers.Wait()
	held := heapInUse() - before
	t.Logf("%d MiB of heap hold %d MiB of payload; Stats say %d and %d MiB", held>>20, total>>20, a.Stats().Memory>>20, b.Stats().Memory>>20)
	if held > limit && !testkit.Race {
		t.Errorf("the heap grew by %d MiB, want at most %d", held>>20, limit>>20)
	}
	for _, n := range []*Net{a, b} {
		if m := n.Stats().Memory; m > defaultMemory || m < uint64(conns*(floorRecv+floorSend)) {
			t.Errorf("Stats.Memory is %d bytes, want at most %d, and at least the floors of all connections", m, defaultMemory)
		}
	}
	for i := range dialed {
		_ = dialed[i].SetLinger(0)
		_, _ = dialed[i].Close(), accepted[i].Close()
	}
	for _, n := range []*Net{a, b} {
		waitFor(t, func() bool { return n.Stats().Memory == 0 })
	}
}

// waitFor waits until ok returns true, and fails the test after ten seconds.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the awaited condition is still false after ten seconds")
		}
	}
}

// TestShortSegments lets a peer send segments of one byte after a missing byte. gVisor holds these out-of-order segments, which
// take much more memory than their payload. The test checks that this memory stays bounded.
func TestShortSegments(t *testing.T) {
	const conns, each = 50, 500
	a, b, ab, _ := wired(t, 0)
	var healed atomic.Bool
	var lost sync.Map              // maps the source port to the sequence number of the first byte
	ab.tap = func(p []byte) bool { // drops the first byte of each connection, even if it is sent again
		l3 := int(p[0]&15) * 4
		l4, ok := packet.TCPEnd(p, l3)
		if !ok || len(p) == l4 || healed.Load() {
			return false
		}
		seq := string(p[l3+packet.TCPSeq : l3+packet.TCPSeq+4])
		first, _ := lost.LoadOrStore([2]byte(p[l3:l3+2]), seq)
		return first == seq
	}
	dialed, accepted := crowd(t, a, b, conns)
	before := heapInUse()
	for _, c := range dialed {
		for range each {
			write(t, c, "x")
		}
	}
	held := heapInUse() - before
	t.Logf("%d bytes per connection are held at both ends", held/conns)
	// The sender holds each byte in a separate segment. The receiver holds at most as much as its buffer.
	if max := int64(conns * (4*floorRecv + each*1024)); held > max && !testkit.Race {
		t.Errorf("both Nets hold %d bytes for the short segments, want at most %d", held, max)
	}
	for _, s := range accepted {
		if !s.memory.holes.Load() {
			t.Fatal("memory.holes is false for a connection that holds out-of-order segments")
		}
	}
	healed.Store(true)
	for i, s := range accepted {
		if _, err := io.ReadFull(s, make([]byte, each)); err != nil {
			t.Fatal(err)
		}
		if s.memory.holes.Load() {
			t.Fatal("memory.holes is true for a connection that has received all bytes")
		}
		_, _ = s.Close(), dialed[i].Close()
	}
}

// TestWholeBudget checks that one connection can get nearly the whole budget, and that another connection can get it when the
// first one is idle.
func TestWholeBudget(t *testing.T) {
	const memory, most = 8 << 20, 7 << 20
	n, err := New(Config{Addresses: []netip.Addr{b4}, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	a, _, ab, _ := wired(t, 0)
	ab.to = n
	n.link.attach(&wire{to: a})
	dialed, accepted := crowd(t, a, n, 2)
	size := func(i int) int64 { return accepted[i].memory.recv.size.Load() }
	waitFor(t, func() bool {
		accepted[0].memory.growRecv(memory)
		return size(0) > most
	})
	if m := n.Stats().Memory; m > memory || m < most {
		t.Errorf("Stats.Memory is %d bytes, want at most %d, and nearly that many", m, memory)
	}
	if size(1) > memory-most {
		t.Errorf("the other connection has a receive buffer of %d bytes, although the first one has nearly the whole budget", size(1))
	}
	waitFor(t, func() bool {
		accepted[1].memory.touch()
		accepted[1].memory.growRecv(memory)
		return size(1) > most
	})
	if size(0) > floorRecv {
		t.Errorf("an idle connection kept a receive buffer of %d bytes, want at most floorRecv", size(0))
	}
	exchangeBytes(t, dialed[0], accepted[0])
	exchangeBytes(t, dialed[1], accepted[1])
}

// exchangeBytes sends 1 MiB from c to s.
func exchangeBytes(t *testing.T, c, s *TCPConn) {
	t.Helper()
	var done sync.WaitGroup
	defer done.Wait()
	done.Go(func() { _, _ = c.Write(make([]byte, 1<<20)) })
	if _, err := io.ReadFull(s, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
}

// TestStalledKeepsItsMemory checks an idle connection whose buffer holds data that the program has not read. The budget still
// counts the connection's memory, so that another connection cannot get it.
func TestStalledKeepsItsMemory(t *testing.T) {
	const memory = 2 << 20
	n, err := New(Config{Addresses: []netip.Addr{b4}, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	a, _, ab, _ := wired(t, 0)
	ab.to = n
	n.link.attach(&wire{to: a})
	dialed, accepted := crowd(t, a, n, 2)
	accepted[0].memory.growRecv(memory)
	had := accepted[0].memory.recv.size.Load()
	_ = dialed[0].SetWriteDeadline(time.Now().Add(time.Second))
	sent, _ := dialed[0].Write(make([]byte, 4<<20))
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		accepted[1].memory.touch()
		accepted[1].memory.growRecv(memory)
	}
	if other := accepted[1].memory.recv.size.Load(); other > memory-had {
		t.Errorf("the other connection has a receive buffer of %d bytes, although the stalled one has %d of the %d bytes of the budget", other, had, memory)
	}
	if _, err := io.ReadFull(accepted[0], make([]byte, sent)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		accepted[1].memory.touch()
		accepted[1].memory.growRecv(memory)
		return accepted[1].memory.recv.size.Load() > memory/2
	})
}
