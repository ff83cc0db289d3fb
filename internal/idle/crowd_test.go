package idle

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestMain(m *testing.M) {
	others.preempted = func() int64 { return 0 } // other tests run at the same time, and need the cores, too
	os.Exit(m.Run())
}

// TestCrowd checks that two measurements in a row with many preemptions mean, for a second, that other programs need the cores.
// Then the next measurement begins.
func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
		var n int64
		c := crowd{preempted: func() int64 { return n }}
		const many = 2 * crowdRate / 20 // preemptions in one measurement on two cores
		for i, step := range []struct {
			after time.Duration
			more  int64
			want  bool
		}{
			{0, 1e6, false}, // the first measurement begins
			{crowdLook - 1, many, false},
			{1, 0, false}, // one measurement ends
			{crowdLook, many - 1, false},
			{crowdLook, many, false},
			{crowdLook, many, true}, // two measurements in a row found many
			{crowdHold - 1, 0, true},
			{1, 0, false}, // a measurement begins
			{crowdLook, many, false},
			{2 * crowdLook, 2*many - 1, false}, // a longer measurement needs more preemptions
			{crowdLook, many, false},
			{10 * crowdLook, 100 * many, false}, // after so long without a call, the measurement begins anew
			{crowdLook, many, false},
			{crowdLook, many, true},
			{time.Hour, 1e6, false},
		} {
			time.Sleep(step.after)
			n += step.more
			if got := c.wants(); got != step.want {
				t.Errorf("step %d, %d preemptions in %v: wants returned %v, want the opposite", i, step.more, step.after, got)
			}
		}
		c.since = c.since.Add(time.Hour) // as if the clock had gone back
		if c.wants(); time.Since(c.since) != 0 {
			t.Error("the measurement does not restart after the clock went back")
		}
	})
}

// TestCrowdedHelpers checks that no helper is wanted while other programs need the cores, unless Limit is set.
func TestCrowdedHelpers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	defer others.full.Store(false)
	others.mu.Lock() // so that no measurement ends
	defer others.mu.Unlock()
	for _, full := range []bool{false, true, false} {
		others.full.Store(full)
		var h Helpers
		if h.Wanted() == full || h.Start() == full {
			t.Errorf("Wanted and Start did not both return %v", !full)
		}
		if h := (Helpers{Limit: 1}); !h.Wanted() {
			t.Error("no helper is wanted, although Limit is set")
		}
	}
}

// TestPreemptions checks that preemptions returns at least the sum that Linux shows in /proc for the threads that have not ended.
func TestPreemptions(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux shows preemptions in /proc")
	}
	threads := min(2*runtime.NumCPU(), 16)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(threads))
	var stop atomic.Bool
	var all sync.WaitGroup
	for range threads { // these goroutines share cores, so their threads preempt each other
		all.Go(func() {
			for !stop.Load() {
				for range 1000 {
				}
				runtime.Gosched()
			}
		})
	}
	shown := int64(0)
	for end := time.Now().Add(10 * time.Second); shown == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		shown = interruptions(t)
	}
	stop.Store(true)
	all.Wait()
	if n := preemptions(); n < shown {
		t.Errorf("preemptions returned %d, want at least the %d that /proc shows", n, shown)
	}
	if shown == 0 {
		t.Skip("this system counted no preemptions within 10 s")
	}
}

// interruptions returns how often the present threads were preempted.
func interruptions(t *testing.T) (sum int64) {
	files, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		b, _ := os.ReadFile(name) // the thread may have ended
		_, rest, _ := strings.Cut(string(b), "\nnonvoluntary_ctxt_switches:")
		n, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
		sum += n
	}
	return sum
}
