//go:build !unix

package main

import "time"

// cpuTime returns zero, because only Unix systems report the processor time in a portable way.
func cpuTime() time.Duration { return 0 }

// contextSwitches returns zero, because only Unix systems report the number of context switches in a portable way.
func contextSwitches() int64 { return 0 }
