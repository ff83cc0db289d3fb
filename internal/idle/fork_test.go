package idle

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// much is a total of bytes that is enough for each message to be a part, for any number of messages.
const much = maxParts * partCost

// Each message is done exactly once and before Run returns, no matter which goroutine does it. That also holds for helpers
// that start too late for their own run and take parts of the next one.
func TestForkDoesEachMessageOnce(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	done := make([]int, 3*maxParts) // not atomic: the race detector sees a message that is not ordered before Run's return
	f := Fork{Do: func(from, end int) {
		for i := from; i < end; i++ {
			done[i]++
		}
	}}
	for run := range 20000 {
		n := 2 + run%(len(done)-1)
		f.Run(n, much)
		for i, times := range done {
			if want := min(max(n-i, 0), 1); times != want {
				t.Fatalf("run %d of %d messages: message %d was done %d times", run, n, i, times)
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
	f := Fork{Do: func(int, int) {
		if owner.Add(1) == 1 { // the goroutine that comes first waits for the other
			<-released
			return
		}
		helped.Add(1)
		time.AfterFunc(10*time.Millisecond, func() { close(released) })
	}}
	f.Run(2, much)
	if helped.Load() != 1 {
		t.Fatal("one part was to be done meanwhile")
	}
}

// With a single core, Run starts no helper.
func TestForkWithoutHelp(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	n, before := 0, runtime.NumGoroutine()
	f := Fork{Do: func(from, end int) { n += end - from }}
	for range 2 * lookAgain {
		f.Run(3, much)
		if now := runtime.NumGoroutine(); now > before {
			t.Fatalf("%d helpers were started", now-before)
		}
	}
	if n != 3*2*lookAgain {
		t.Errorf("%d messages were done, want %d", n, 3*2*lookAgain)
	}
}

// Helpers do not pile up, whether the scheduler lets them run or not, and all of them end.
func TestForkBoundsHelpers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(3))
	before := runtime.NumGoroutine()
	f := Fork{Do: func(int, int) {}}
	for i := range 3000 {
		if i%lookAgain == 1 { // the fork remembers three cores, and no helper runs
			runtime.GOMAXPROCS(1)
		}
		f.Run(8, much)
		if now := runtime.NumGoroutine(); now > before+2 {
			t.Fatalf("%d helpers", now-before)
		}
		if i%lookAgain == lookAgain-1 {
			runtime.GOMAXPROCS(3)
		}
	}
	testkit.Eventually(t, "the helpers do not end", func() bool { return runtime.NumGoroutine() <= before })
}

// A small batch gets few parts, or none.
func TestParts(t *testing.T) {
	for _, c := range []struct{ n, bytes, want int }{
		{0, 0, 0}, {1, 65535, 1}, {2, 3000, 0}, {4, 4 * 1452, 0}, {10, 14520, 4}, {44, 44 * 1452, 18}, {88, 88 * 1452, maxParts}, {128, 128 * 96, 12},
	} {
		if got := partsOf(c.n, c.bytes); got != c.want {
			t.Errorf("%d messages of %d bytes altogether: %d parts, want %d", c.n, c.bytes, got, c.want)
		}
	}
}

// TestForkAllocatesNothing: neither Run nor the start of a helper allocates once the fork has helped.
func TestForkAllocatesNothing(t *testing.T) {
	if testkit.Race {
		t.Skip("the race detector allocates")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	const runs = 1000
	f := Fork{Do: func(int, int) {}}
	least := uint64(runs)
	for range 5 { // the runtime allocates for itself now and then
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			f.Run(8, much)
		}
		runtime.ReadMemStats(&after)
		least = min(least, after.Mallocs-before.Mallocs)
	}
	if least > runs/100 {
		t.Errorf("%d allocations in %d runs", least, runs)
	}
}
