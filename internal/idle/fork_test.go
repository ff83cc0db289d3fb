package idle

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// much is a batch size in bytes for which partsOf returns as many parts as n and maxParts permit.
const much = maxParts * partCost

// TestForkDoesEachMessageOnce checks that each message is processed exactly once, and before Run returns, whichever goroutine
// processes it. This includes helpers that start too late for one run and process parts of the next run.
func TestForkDoesEachMessageOnce(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	done := make([]int, 3*maxParts) // not atomic, so that the race detector finds a message that may be processed after Run returns
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
				t.Fatalf("run %d of %d messages: message %d was processed %d times", run, n, i, times)
			}
		}
		clear(done)
	}
}

// TestForkWaitsForHelpers checks that Run waits until the last part is done, however long a helper takes.
func TestForkWaitsForHelpers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	var owner, helped atomic.Int32
	released := make(chan struct{})
	f := Fork{Do: func(int, int) {
		if owner.Add(1) == 1 { // the first goroutine that calls Do waits for the second
			<-released
			return
		}
		helped.Add(1)
		time.AfterFunc(10*time.Millisecond, func() { close(released) })
	}}
	f.Run(2, much)
	if helped.Load() != 1 {
		t.Fatal("Run returned before a helper had processed exactly one part")
	}
}

// TestForkWithoutHelp checks that Run starts no helper if there is only one core.
func TestForkWithoutHelp(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	n, before := 0, runtime.NumGoroutine()
	f := Fork{Do: func(from, end int) { n += end - from }}
	for range 2 * lookAgain {
		f.Run(3, much)
		if now := runtime.NumGoroutine(); now > before {
			t.Fatalf("Run started %d helpers, want none on one core", now-before)
		}
	}
	if n != 3*2*lookAgain {
		t.Errorf("%d messages were processed, want %d", n, 3*2*lookAgain)
	}
}

// TestForkBoundsHelpers checks that there are never too many helpers, whether the scheduler lets them run or not, and that all
// helpers end.
func TestForkBoundsHelpers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(3))
	before := runtime.NumGoroutine()
	f := Fork{Do: func(int, int) {}}
	for i := range 3000 {
		if i%lookAgain == 1 { // the Fork still assumes three cores, but no helper can run
			runtime.GOMAXPROCS(1)
		}
		f.Run(8, much)
		if now := runtime.NumGoroutine(); now > before+2 {
			t.Fatalf("%d helpers run at once, want at most 2", now-before)
		}
		if i%lookAgain == lookAgain-1 {
			runtime.GOMAXPROCS(3)
		}
	}
	testkit.Eventually(t, "all helpers have ended", func() bool { return runtime.NumGoroutine() <= before })
}

// TestParts checks that a small batch gets few parts, or none.
func TestParts(t *testing.T) {
	for _, c := range []struct{ n, bytes, want int }{
		{0, 0, 0}, {1, 65535, 1}, {2, 3000, 0}, {4, 4 * 1452, 0}, {10, 14520, 4}, {44, 44 * 1452, 18}, {88, 88 * 1452, maxParts}, {128, 128 * 96, 12},
	} {
		if got := partsOf(c.n, c.bytes); got != c.want {
			t.Errorf("%d messages of %d bytes in all get %d parts, want %d", c.n, c.bytes, got, c.want)
		}
	}
}

// TestForkAllocatesNothing checks that neither Run nor the start of a helper allocates once the Fork has started a helper.
func TestForkAllocatesNothing(t *testing.T) {
	if testkit.Race {
		t.Skip("the race detector allocates")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	const runs = 1000
	f := Fork{Do: func(int, int) {}}
	least := uint64(runs)
	for range 5 { // the runtime itself allocates now and then, so the least of five counts
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			f.Run(8, much)
		}
		runtime.ReadMemStats(&after)
		least = min(least, after.Mallocs-before.Mallocs)
	}
	if least > runs/100 {
		t.Errorf("%d allocations in %d runs, want at most one per 100 runs", least, runs)
	}
}
