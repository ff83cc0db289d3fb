//go:build race

package wgo

import "testing"

// wantNoAllocations runs f: under the race detector a sync.Pool drops what it is given at random.
func wantNoAllocations(t *testing.T, _ string, f func()) {
	for range 10 {
		f()
	}
}
