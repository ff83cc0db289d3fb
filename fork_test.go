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
		f.vain.Store(0) // go on asking
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

// An owner that is asked to wait does so until the last part is done, however long that takes.
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

// Where nobody helps, because there is one core alone, the owner stops asking.
func TestForkWithoutHelp(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	n := 0
	f := newFork(func(int) { n++ })
	f.run(3)
	if n != 3 || f.most != 0 {
		t.Fatalf("%d of 3 parts, %d helpers", n, f.most)
	}
	f.most = 1 // as it is with two cores, of which the other is busy
	for range 10 * lookAgain {
		f.run(3)
		if f.times%lookAgain == 0 {
			f.run(3) // it looked again, and found one core
			f.most = 1
		}
		if f.vain.Load() == inVain {
			break
		}
	}
	if f.vain.Load() != inVain {
		t.Fatalf("the owner asks on, in vain %d times", f.vain.Load())
	}
	before := f.out.Load()
	f.run(3)
	if now := f.out.Load(); now > before {
		t.Fatalf("%d helpers were started all the same", now-before)
	}
}

// Helpers that the scheduler lets wait do not pile up, and all end.
func TestForkBoundsHelpers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	f := newFork(func(int) {})
	f.run(3)
	before := runtime.NumGoroutine()
	for range 1000 {
		f.most = 2
		f.vain.Store(0)
		f.times = 1 // do not look again
		f.run(8)
		if n := f.out.Load(); n > 2 {
			t.Fatalf("%d helpers", n)
		}
	}
	if now := runtime.NumGoroutine(); now > before+2 {
		t.Errorf("%d goroutines were left", now-before)
	}
	eventually(t, "the helpers do not end", func() bool { return f.out.Load() == 0 })
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
