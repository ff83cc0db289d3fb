//go:build !unix

package idle

// preemptions returns zero, because only Unix systems count preemptions.
func preemptions() int64 { return 0 }
