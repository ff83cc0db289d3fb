//go:build unix

package main

import (
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"sync/atomic"
)

// A logOutput is where the log goes: stderr at first.
type logOutput struct {
	to atomic.Pointer[io.Writer]
}

func (o *logOutput) Write(b []byte) (int, error) {
	if w := o.to.Load(); w != nil {
		return (*w).Write(b)
	}
	return os.Stderr.Write(b)
}

func (o *logOutput) set(w io.Writer) { o.to.Store(&w) }

var logTo logOutput

// logLevel is LOG_LEVEL. Silence is above all levels. A value that nobody knows is as good as none, as for wireguard-go: known
// says whether it is not that.
func logLevel() (level slog.Level, known bool) {
	const silent = slog.Level(100)
	switch os.Getenv("LOG_LEVEL") {
	case "verbose", "debug":
		return slog.LevelDebug, true
	case "", "info":
		return slog.LevelInfo, true
	case "error":
		return slog.LevelError, true
	case "silent":
		return silent, true
	}
	return slog.LevelInfo, false
}

// newLogger logs lines for a reader, at LOG_LEVEL. The journal writes the time itself.
func newLogger() *slog.Logger {
	level, known := logLevel()
	o := slog.HandlerOptions{Level: level}
	if os.Getenv("JOURNAL_STREAM") != "" {
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.Attr{}
			}
			return a
		}
	}
	log := slog.New(slog.NewTextHandler(&logTo, &o))
	if !known {
		log.Warn("LOG_LEVEL is none of verbose, debug, info, error and silent; taken for info", "LOG_LEVEL", os.Getenv("LOG_LEVEL"))
	}
	return log
}

// logAway sends the log to syslog, or nowhere on a host without.
func logAway() {
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_NOTICE, "wg0")
	if err != nil {
		logTo.set(io.Discard)
		return
	}
	logTo.set(w)
}
