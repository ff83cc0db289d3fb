// Package idlemem returns a program's memory to the system when the program has been busy and is idle again.
//
//	go idlemem.Watch(ctx, func() uint64 { return idlemem.Moved(device) })
//
// Go collects garbage when a program allocates, or after 2 minutes. So a program that becomes idle after a load keeps the load's
// garbage for up to 2 minutes, and returns the memory to the system even later. Use this package in programs and not in
// libraries, because a collection affects the whole process.
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
	busyBytes   = 1 << 20  // the program is busy if it moves at least so many bytes per interval
	quietBytes  = 64 << 10 // an interval with fewer bytes is quiet; keepalives and answers to pings take fewer
	quietLooks  = 2        // this many quiet intervals in a row after a busy one mean that the program is idle
	collections = 2        // a sync.Pool releases its objects in the second collection
)

// Watch calls moved every 5 s until ctx ends. The function moved returns how many bytes the program has moved so far. When the
// program has moved 1 MiB or more in 5 s, and then almost nothing for 10 s, Watch collects garbage and returns free memory to the
// system.
func Watch(ctx context.Context, moved func() uint64) { watch(ctx, moved, release) }

// Moved returns how many bytes a device has sent to its peers and received from them. The number decreases when a peer is
// removed.
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

// A state is what the calls of look have found so far.
type state struct {
	last  uint64 // the number of moved bytes at the last call of look
	busy  bool   // whether the program was busy since the last release
	quiet int    // the number of quiet intervals in a row
}

// look gets the number of bytes moved so far, and reports whether the program is idle after it was busy. If the number has
// decreased, the program counts as busy.
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
	debug.FreeOSMemory() // also collects garbage
}
