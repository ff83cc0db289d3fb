package netstack

import (
	"os"
	"time"

	"gvisor.dev/gvisor/pkg/log"
)

// Standard error belongs to the program, so a peer must not be able to make the Net write to standard error. gVisor's log writes
// to standard error unless the program has set another target. A peer that sends SYNs that gVisor cannot answer would make gVisor
// write a line, at most once per second.
//
// init replaces the emitter of the existing logger instead of calling SetTarget. SetTarget would make a new logger, but gVisor's
// rate-limited loggers keep using the logger that existed when the process began. If a program calls SetTarget itself, it gets
// every line. While a program initializes its packages, no other goroutine uses the log.
func init() {
	l := log.Log()
	if g, ok := l.Emitter.(log.GoogleEmitter); ok && g.Writer != nil && g.Next == os.Stderr {
		l.Emitter = quiet{g}
	}
}

// quiet is a log emitter that drops the lines about packets of a Net and passes all others to next. It recognizes the lines about
// a Net by the argument NICID. Lines about another stack in the process, for example of a second library that uses gVisor, do not
// have that argument.
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
