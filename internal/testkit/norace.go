//go:build !race

package testkit

// Race reports whether the race detector is on. The race detector makes programs slow and allocates.
const Race = false
