//go:build !unix

package main

import "time"

// cpuTime returns zero. Only Unix systems report the processor time in a portable way.
func cpuTime() time.Duration { return 0 }

// contextSwitches returns zero. Only Unix systems count them in a portable way.
func contextSwitches() int64 { return 0 }
