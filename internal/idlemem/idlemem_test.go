package idlemem

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestWatch checks that Watch returns memory once after each load, and never while bytes move or before the first load.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var moved atomic.Uint64
		releases := 0
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			watch(ctx, moved.Load, func() { releases++ })
		}()
		time.Sleep(time.Second) // now the test is between two calls of look
		step := func(why string, bytes, want int) {
			t.Helper()
			moved.Add(uint64(bytes))
			time.Sleep(interval)
			synctest.Wait()
			if releases != want {
				t.Errorf("%s: memory was returned %d times, want %d", why, releases, want)
			}
		}
		step("nothing has moved", 0, 0)
		step("nothing has moved", 0, 0)
		step("a load", 10<<20, 0)
		step("a load", 10<<20, 0)
		step("5 s after the load", 1000, 0)
		step("some traffic", 100_000, 0)
		step("5 s after some traffic", 0, 0)
		step("10 s after some traffic", 1000, 1)
		step("idle", 1000, 1)
		step("some traffic is not a load", 100_000, 1)
		step("idle", 0, 1)
		step("idle", 0, 1)
		step("another load", 1<<20, 1)
		step("5 s after the other load", 0, 1)
		step("10 s after the other load", 0, 2)
		moved.Store(0)
		step("the counter was reset", 0, 2)
		step("5 s after the reset", 0, 2)
		step("10 s after the reset", 0, 3)
		cancel()
		<-ended
	})
}

// TestRelease checks that release frees garbage, and the objects in a sync.Pool.
func TestRelease(t *testing.T) {
	const size = 64 << 20
	var pool sync.Pool
	b := make([]byte, size)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	pool.Put(&b)
	b = nil
	release()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if kept := m.HeapSys - m.HeapReleased; m.HeapAlloc >= size || kept >= size {
		t.Errorf("%d bytes are in use and %d bytes are not returned, want less than the %d in the pool", m.HeapAlloc, kept, size)
	}
	runtime.KeepAlive(&pool)
}
