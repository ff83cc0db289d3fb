package wireguard

import (
	"math"
	"runtime"
	"runtime/debug"
)

// allocations is how often memory is allocated in n calls of f, by all goroutines. There is one processor and no garbage
// collection meanwhile, so that no pool loses what it holds. What the runtime may allocate for itself in one try, it does not
// in another: the least of five is taken. calls is how often f was called in all.
func allocations(n int, f func()) (least uint64, calls int) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	least = math.MaxUint64
	for try := 0; try < 5 && least > 0; try++ {
		for range 20 {
			f() // fills the pools, grows the scratch memory
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range n {
			f()
		}
		runtime.ReadMemStats(&after)
		least = min(least, after.Mallocs-before.Mallocs)
		calls += 20 + n
	}
	return least, calls
}
