//go:build !unix

package main

import "time"

// cpuTime returns zero. Only Unix systems report the processor time in a portable way.
func cpuTime() time.Duration { return 0 }
