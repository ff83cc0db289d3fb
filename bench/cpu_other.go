//go:build !unix

package main

import "time"

// cpuTime is zero here: only Unix systems tell it in a portable way.
func cpuTime() time.Duration { return 0 }
