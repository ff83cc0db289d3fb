//go:build !race

package wgo

import "testing"

// wantNoAllocations fails the test where f allocates once it has warmed up.
func wantNoAllocations(t *testing.T, what string, f func()) {
	t.Helper()
	for range 3 {
		f()
	}
	if n := testing.AllocsPerRun(100, f); n >= 1 { // a collection empties the pools: less than one a run is none
		t.Errorf("%s allocates %v times a batch, want 0", what, n)
	}
}
