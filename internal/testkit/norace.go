//go:build !race

package testkit

// Race reports whether the race detector is on. It makes programs slow, and it allocates.
const Race = false
