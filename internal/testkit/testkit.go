// Package testkit is code that tests of several packages share. It does not import the root package, so that the root package's own
// tests can use it; package testkit/devices makes pairs of devices.
package testkit

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Patience is how long a test waits for something that takes milliseconds on an idle machine.
const Patience = 30 * time.Second

// Eventually waits until ok returns true, and fails the test with the message why after Patience. It calls ok often at first, and
// every 10 ms later.
func Eventually(t testing.TB, why string, ok func() bool) {
	t.Helper()
	Within(t, Patience, why, ok)
}

// Within is Eventually with another limit.
func Within(t testing.TB, limit time.Duration, why string, ok func() bool) {
	t.Helper()
	start := time.Now()
	for pause := 50 * time.Microsecond; !ok(); pause = min(2*pause, 10*time.Millisecond) {
		if time.Since(start) > limit {
			t.Fatalf("not within %v: %s", limit, why)
		}
		time.Sleep(pause)
	}
}

// Next waits for the next value of c, or until c is closed, and fails the test with the message why after Patience.
func Next[T any](t testing.TB, c <-chan T, why string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(Patience):
		t.Fatalf("not within %v: %s", Patience, why)
	}
	return v
}

// Returns calls f. If f does not return within limit, Returns panics, so that the stacks of all goroutines are printed.
func Returns(t testing.TB, limit time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(limit):
		debug.SetTraceback("all")
		panic(fmt.Sprintf("%s does not return within %v", what, limit))
	}
}

// WantPanic fails the test unless f panics.
func WantPanic(t testing.TB, why string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("no panic: %s", why)
		}
	}()
	f()
}

// Main runs the tests of a package, and fails if goroutines are left. In a browser or node, one goroutine of the runtime waits for
// events for ever, so it is ignored.
func Main(m goleak.TestingM) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("runtime.handleEvent"))
}

// OneThread is true if all goroutines share one thread, as in WebAssembly. Code runs several times slower there, so tests with
// many rounds use fewer rounds.
const OneThread = runtime.GOARCH == "wasm"

// ReadsSources skips, in WebAssembly, a test that reads the module's source text. The text is the same on every system, and
// parsing it takes seconds in WebAssembly.
func ReadsSources(t testing.TB) {
	t.Helper()
	if OneThread {
		t.Skip("the sources are the same on every system, and a program in WebAssembly takes seconds to parse them")
	}
}

// NeedsThreads skips the test on a system where all goroutines run on one thread. Nothing preempts a goroutine there. why says
// for what the test needs a second thread.
func NeedsThreads(t testing.TB, why string) {
	t.Helper()
	if OneThread {
		t.Skip("a program in WebAssembly has one thread, which nothing preempts: " + why)
	}
}

// NeedsSockets skips the test on a system whose package net only imitates sockets.
func NeedsSockets(t testing.TB) {
	t.Helper()
	if runtime.GOARCH == "wasm" {
		t.Skip("a program in WebAssembly has no sockets")
	}
}

// CountsAllocations skips the test in WebAssembly, where the portable code of x/crypto allocates.
func CountsAllocations(t testing.TB) {
	t.Helper()
	if runtime.GOARCH == "wasm" {
		t.Skip("in WebAssembly, the portable code of x/crypto allocates, and the runtime does too")
	}
}

// NoLeaks fails the test if the test leaves goroutines that did not exist when NoLeaks was called. NoLeaks checks this when the
// test has ended and the cleanups that were registered after NoLeaks have run.
func NoLeaks(t testing.TB) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if err := goleak.Find(ignore); err != nil {
			t.Error(err)
		}
	})
}

// NoAllocations fails the test if n calls of f allocate memory, on any goroutine, more often than once in a hundred calls. It
// returns how often it called f. One processor runs all goroutines, without garbage collection, so that no pool loses its objects.
// The runtime itself allocates sometimes, so the least of five attempts counts. The race detector allocates, too. With the race
// detector, NoAllocations calls f but checks nothing.
func NoAllocations(t testing.TB, n int, f func()) (calls int) {
	t.Helper()
	CountsAllocations(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	least := uint64(math.MaxUint64)
	for try := 0; try < 5 && least > 0; try++ {
		for range 20 {
			f() // fills the pools and grows the scratch memory
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
	if least > uint64(n/100) && !Race {
		t.Errorf("%d allocations in %d calls, want none", least, n)
	}
	return calls
}

// HostAddr returns an IPv4 address of the host that a router may forward packets to. HostAddr skips the test on a host that has no
// such address.
func HostAddr(t testing.TB) netip.Addr {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && p.Addr().IsGlobalUnicast() {
			return p.Addr()
		}
	}
	t.Skip("the host has no IPv4 address beside loopback and link-local ones")
	return netip.Addr{}
}
