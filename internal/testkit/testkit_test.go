package testkit

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A fake is a test that records how it failed.
type fake struct {
	testing.TB
	failed string
}

func (f *fake) Helper()                           {}
func (f *fake) Errorf(format string, args ...any) { f.failed = fmt.Sprintf(format, args...) }
func (f *fake) Fatalf(format string, args ...any) { f.Errorf(format, args...); runtime.Goexit() }

// failure returns how a test that calls f fails, or "".
func failure(f func(t testing.TB)) string {
	t, done := new(fake), make(chan struct{})
	go func() {
		defer close(done)
		f(t)
	}()
	<-done
	return t.failed
}

// TestFailures checks that each function of the package fails a test in the cases that its comment names, and in no others.
func TestFailures(t *testing.T) {
	closed, full := make(chan int), make(chan int, 1)
	close(closed)
	full <- 1
	var sink []*int
	for _, c := range []struct {
		name string
		do   func(t testing.TB)
		want string // the failure; "" if there is none
	}{
		{"Eventually, at last", func(t testing.TB) {
			start := time.Now()
			Eventually(t, "why", func() bool { return time.Since(start) > Patience/2 })
		}, ""},
		{"Eventually, never", func(t testing.TB) { Eventually(t, "why", func() bool { return false }) }, "not within 30s: why"},
		{"Within", func(t testing.TB) { Within(t, time.Second, "why", func() bool { return false }) }, "not within 1s: why"},
		{"Next", func(t testing.TB) { Next(t, full, "why") }, ""},
		{"Next, nothing", func(t testing.TB) { Next(t, make(chan int), "why") }, "not within 30s: why"},
		{"Next, closed", func(t testing.TB) { Next(t, closed, "why") }, ""},
		{"Returns", func(t testing.TB) { Returns(t, Patience, "f", func() { time.Sleep(Patience / 2) }) }, ""},
		{"Returns, never", func(t testing.TB) {
			WantPanic(t, "f returned", func() { Returns(t, Patience, "f", func() { time.Sleep(2 * Patience) }) })
		}, ""},
		{"WantPanic", func(t testing.TB) { WantPanic(t, "why", func() { panic(1) }) }, ""},
		{"WantPanic, none", func(t testing.TB) { WantPanic(t, "why", func() {}) }, "no panic: why"},
	} {
		synctest.Test(t, func(t *testing.T) {
			if got := failure(c.do); got != c.want {
				t.Errorf("%s: the failure is %q, want %q", c.name, got, c.want)
			}
			time.Sleep(2 * Patience) // until the goroutines that f started have ended
		})
	}
	n, calls := 0, 0
	if got := failure(func(t testing.TB) { calls = NoAllocations(t, 100, func() { n++ }) }); got != "" || calls != n {
		t.Errorf("NoAllocations of a function that does not allocate failed with %q, or returned %d calls; it made %d calls", got, calls, n)
	}
	allocates := failure(func(t testing.TB) { NoAllocations(t, 100, func() { sink = append(sink[:0], new(int)) }) })
	if !strings.HasSuffix(allocates, "in 100 calls, want none") && !Race {
		t.Errorf("NoAllocations of a function that allocates: the failure is %q", allocates)
	}
}
