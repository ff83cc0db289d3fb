package stackroom

import (
	"runtime"
	"sync"
	"testing"
)

// TestTake checks that the stack of a new goroutine has 16 KiB after Take, and less without Take.
func TestTake(t *testing.T) {
	if testing.CoverMode() != "" {
		t.Skip("coverage counters change the size of stack frames")
	}
	const goroutines = 1000
	size := func(take bool) int64 {
		var before, after runtime.MemStats
		var ready, all sync.WaitGroup
		end := make(chan struct{})
		runtime.GC() // frees the stacks of goroutines that have ended
		runtime.ReadMemStats(&before)
		for range goroutines {
			ready.Add(1)
			all.Go(func() {
				if take {
					Take()
				}
				ready.Done()
				<-end
			})
		}
		ready.Wait()
		runtime.ReadMemStats(&after)
		close(end)
		all.Wait()
		return int64(after.StackInuse-before.StackInuse) / goroutines
	}
	if small, large := size(false), size(true); large < 12<<10 || large < small+4<<10 {
		t.Errorf("a new goroutine has a stack of %d bytes, and of %d bytes after Take; want at least 12 KiB, and 4 KiB more than without", small, large)
	}
}
