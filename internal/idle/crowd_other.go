//go:build !unix

package idle

// preemptions returns zero, since only Unix systems count them.
func preemptions() int64 { return 0 }
