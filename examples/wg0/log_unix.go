//go:build unix

package main

import (
	"fmt"
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

// logLevel is LOG_LEVEL. Silence is above all levels.
func logLevel() (slog.Level, error) {
	const silent = slog.Level(100)
	switch v := os.Getenv("LOG_LEVEL"); v {
	case "verbose", "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "error":
		return slog.LevelError, nil
	case "silent":
		return silent, nil
	default:
		return 0, fmt.Errorf("LOG_LEVEL is %q: want verbose, debug, info, error or silent", v)
	}
}

// newLogger logs lines for a reader. The journal writes the time itself.
func newLogger(level slog.Level) *slog.Logger {
	o := slog.HandlerOptions{Level: level}
	if os.Getenv("JOURNAL_STREAM") != "" {
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.New(slog.NewTextHandler(&logTo, &o))
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
