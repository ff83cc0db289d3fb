package wireguard

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// Each part is done exactly once and before run returns, whoever does it: with helpers that come too late for their own
// run, too, and take parts of the next.
func TestForkDoesEachPartOnce(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	done := make([]int, maxParts) // not atomic: the race detector sees a part that is not ordered before run's return
	f := newFork(func(i int) { done[i]++ })
	for n := range 20000 {
		parts := 2 + n%(maxParts-1)
		f.run(parts)
		for i, times := range done {
			if want := min(max(parts-i, 0), 1); times != want {
				t.Fatalf("run %d of %d parts: part %d was done %d times", n, parts, i, times)
			}
		}
		clear(done)
	}
}

// The owner waits until the last part is done, however long a helper takes.
func TestForkWaitsForHelpers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	var owner, helped atomic.Int32
	released := make(chan struct{})
	f := newFork(func(int) {
		if owner.Add(1) == 1 { // whoever comes first waits for the other
			<-released
			return
		}
		helped.Add(1)
		time.AfterFunc(10*time.Millisecond, func() { close(released) })
	})
	f.run(2)
	if helped.Load() != 1 {
		t.Fatal("one part was to be done meanwhile")
	}
}

// Where there is one core alone, nobody is asked for help.
func TestForkWithoutHelp(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	n, before := 0, runtime.NumGoroutine()
	f := newFork(func(int) { n++ })
	for range 2 * lookAgain {
		f.run(3)
		if now := runtime.NumGoroutine(); now > before {
			t.Fatalf("%d helpers were started", now-before)
		}
	}
	if n != 3*2*lookAgain {
		t.Errorf("%d parts were done, want %d", n, 3*2*lookAgain)
	}
}

// Helpers do not pile up, whether the scheduler lets them run or not, and all of them end.
func TestForkBoundsHelpers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(3))
	before := runtime.NumGoroutine()
	f := newFork(func(int) {})
	for i := range 3000 {
		if i%lookAgain == 1 { // the fork remembers three cores, and no helper runs
			runtime.GOMAXPROCS(1)
		}
		f.run(8)
		if now := runtime.NumGoroutine(); now > before+2 {
			t.Fatalf("%d helpers", now-before)
		}
		if i%lookAgain == lookAgain-1 {
			runtime.GOMAXPROCS(3)
		}
	}
	eventually(t, "the helpers do not end", func() bool { return runtime.NumGoroutine() <= before })
}

// TestHelpers: Config.Helpers limits the helpers of each source, of each sender's batch, and of each receiver.
func TestHelpers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	for _, c := range []struct{ helpers, most int }{{0, 3}, {1, 1}, {2, 2}, {5, 3}, {-1, 0}} {
		e := newEndOf(t, Config{PrivateKey: testKey(1), Helpers: c.helpers})
		k := newKeypair(new([32]byte), new([32]byte), 1, 2, true, 0)
		if err := e.Up(); err != nil {
			t.Fatal(err)
		}
		l, in := newLoad(0), inbound{help: e.helpers}
		l.r = e.running.Load()
		train := &Train{Data: make([]byte, 64*1452)}
		in.runs = append(in.runs, inboundRun{session: session{k: k}})
		for i := range int32(64) {
			l.place(1420, 1420)
			in.opened = append(in.opened, opened{train: train, at: i * 1452, size: 1452})
			in.bytes += 1452
		}
		l.seal()
		in.open()
		f := e.newFeed(e.tunnel)
		for name, i := range map[string]*idle{"source": &f.idle, "sender": &l.fork.idle, "receiver": &in.fork.idle} {
			i.times = 0
			if wanted := i.wanted(); wanted != (c.most > 0) || max(i.most, 0) != c.most {
				t.Errorf("Helpers %d: a %s asks for help: %v, of %d at most; want %d", c.helpers, name, wanted, i.most, c.most)
			}
		}
	}
}

// A small batch is not worth the call.
func TestParts(t *testing.T) {
	for _, c := range []struct{ n, bytes, want int }{
		{0, 0, 0}, {1, 65535, 1}, {2, 3000, 0}, {4, 4 * 1452, 0}, {10, 14520, 4}, {44, 44 * 1452, 18}, {88, 88 * 1452, maxParts}, {128, 128 * 96, 12},
	} {
		if got := parts(c.n, c.bytes); got != c.want {
			t.Errorf("%d messages of %d bytes altogether: %d parts, want %d", c.n, c.bytes, got, c.want)
		}
	}
}
