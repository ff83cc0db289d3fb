// Package idlemem returns a program's memory to the system when the program has been busy and is idle again.
//
//	go idlemem.Watch(ctx, func() uint64 { return idlemem.Moved(device) })
//
// Go collects garbage when a program allocates. A program that falls idle after a load therefore keeps the load's garbage for 2
// minutes, and it takes longer until the system has the memory back. This package is for programs, not for libraries: a
// collection concerns the whole process.
package idlemem

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/seed-86b749af/wireguard"
)

const (
	interval    = 5 * time.Second
	busyBytes   = 1 << 20  // per interval: the program is busy
	quietBytes  = 64 << 10 // per interval: less than this is quiet, such as keepalives and answers to pings
	quietLooks  = 2        // this many quiet intervals in a row after a busy one mean that the program is idle
	collections = 2        // a sync.Pool gives up what it holds in the second collection
)

// Watch calls moved every 5 s until ctx ends. moved returns how many bytes the program has moved so far. Once the program has moved
// 1 MiB or more in an interval and then next to nothing for 10 s, Watch collects garbage and returns free memory to the system.
func Watch(ctx context.Context, moved func() uint64) { watch(ctx, moved, release) }

// Moved returns how many bytes a device has sent to its peers and received from them. It shrinks when a peer is removed.
func Moved(d *wireguard.Device) (bytes uint64) {
	for p := range d.Peers() {
		bytes += p.Sent.Bytes + p.Received.Bytes
	}
	return bytes
}

func watch(ctx context.Context, moved func() uint64, release func()) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for s := (state{last: moved()}); ; {
		select {
		case <-t.C:
			if s.look(moved()) {
				release()
			}
		case <-ctx.Done():
			return
		}
	}
}

// A state is what the calls of look have seen so far.
type state struct {
	last  uint64 // moved at the last look
	busy  bool   // since the last release
	quiet int    // quiet looks in a row
}

// look takes the current count, and reports whether the program is idle after it was busy. A count that shrinks counts as busy.
func (s *state) look(moved uint64) bool {
	n := moved - s.last
	s.last = moved
	switch {
	case n >= busyBytes:
		s.busy, s.quiet = true, 0
	case n >= quietBytes:
		s.quiet = 0
	default:
		s.quiet++
	}
	if !s.busy || s.quiet < quietLooks {
		return false
	}
	s.busy = false
	return true
}

func release() {
	for range collections - 1 {
		runtime.GC()
	}
	debug.FreeOSMemory() // collects too
}
