package netstack

import (
	"os"
	"time"

	"gvisor.dev/gvisor/pkg/log"
)

// Standard error belongs to the program, so a peer must not be able to write to it. gVisor's log writes there unless the
// program has chosen another target. With a SYN that gVisor cannot answer, a peer makes gVisor write a line, once per
// second at most.
//
// The target is replaced in place. SetTarget would make a new logger, and gVisor's rate-limited loggers keep the one that
// they found when the process began. If a program calls SetTarget itself, it gets every line. No other goroutine uses the
// log yet when a program initializes its packages.
func init() {
	l := log.Log()
	if g, ok := l.Emitter.(log.GoogleEmitter); ok && g.Writer != nil && g.Next == os.Stderr {
		l.Emitter = quiet{g}
	}
}

// quiet is gVisor's log without the lines about packets of a Net. NICID tells them from those about another stack in the
// process, for example of a second library that uses gVisor.
type quiet struct{ next log.Emitter }

// Emit implements log.Emitter.
func (q quiet) Emit(depth int, level log.Level, at time.Time, format string, args ...any) {
	for _, a := range args {
		if a == NICID {
			return
		}
	}
	q.next.Emit(depth+1, level, at, format, args...)
}
