package idle

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestMain(m *testing.M) {
	others.preempted = func() int64 { return 0 } // other tests run beside these, and want the cores too
	os.Exit(m.Run())
}

// TestCrowd: two looks in a row that find many interruptions mean that other programs want the cores, for a second. Then the next
// look begins.
func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
		var n int64
		c := crowd{preempted: func() int64 { return n }, count: -1}
		const many = 2 * crowdRate / 20 // in a look, on two cores
		for i, step := range []struct {
			after time.Duration
			more  int64
			want  bool
		}{
			{0, 1e6, false}, // the first look begins
			{crowdLook - 1, many, false},
			{1, 0, false}, // one look
			{crowdLook, many - 1, false},
			{crowdLook, many, false},
			{crowdLook, many, true}, // two in a row
			{crowdHold - 1, 0, true},
			{1, 0, false}, // a look begins
			{crowdLook, many, false},
			{2 * crowdLook, 2*many - 1, false}, // a longer look needs more
			{crowdLook, many, false},
			{10 * crowdLook, 100 * many, false}, // nobody asked for so long that the look begins anew
			{crowdLook, many, false},
			{crowdLook, many, true},
			{time.Hour, 1e6, false},
		} {
			time.Sleep(step.after)
			n += step.more
			if got := c.wants(); got != step.want {
				t.Errorf("step %d, %d interruptions in %v: others want the cores: %v", i, step.more, step.after, got)
			}
		}
		c.since = c.since.Add(time.Hour) // as if the clock had gone back
		if c.wants(); time.Since(c.since) != 0 {
			t.Error("the look does not begin anew after the clock went back")
		}
	})
}

// TestCrowdedHelpers: no helper is wanted while other programs want the cores, unless the limit is set.
func TestCrowdedHelpers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	defer others.full.Store(false)
	others.mu.Lock() // so that no look ends
	defer others.mu.Unlock()
	for _, full := range []bool{false, true, false} {
		others.full.Store(full)
		var h Helpers
		if h.Wanted() == full || h.Start() == full {
			t.Errorf("a helper is wanted: %v", !full)
		}
		if h := (Helpers{Limit: 1}); !h.Wanted() {
			t.Error("no helper is wanted although the limit is set")
		}
	}
}

// TestPreemptions: threads that share cores, and never wait, lose them to each other now and then.
func TestPreemptions(t *testing.T) {
	if before := preemptions(); before < 0 || preemptions() < before {
		t.Error("the count goes backwards")
	}
	if runtime.GOOS != "linux" {
		t.Skip("the count differs between systems")
	}
	threads := min(2*runtime.NumCPU(), 16)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(threads))
	var stop atomic.Bool
	var all sync.WaitGroup
	before := preemptions()
	for range threads {
		all.Go(func() {
			for !stop.Load() {
				for range 1000 {
				}
				runtime.Gosched()
			}
		})
	}
	for end := time.Now().Add(10 * time.Second); preemptions() == before && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	stop.Store(true)
	all.Wait()
	if preemptions() == before {
		t.Skip("this system does not count, or has cores enough")
	}
}
