//go:build unix

package main

import (
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"sync/atomic"
)

// A logOutput writes the log to stderr, until set gives it another writer.
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

// logLevel reads LOG_LEVEL. The level silent is above all others. An unknown value means the default, as in wireguard-go;
// known is then false.
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

// newLogger logs lines of text at LOG_LEVEL. It omits the time under systemd, whose journal adds its own.
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
		log.Warn("unknown LOG_LEVEL, using info; set it to verbose, debug, info, error or silent", "LOG_LEVEL", os.Getenv("LOG_LEVEL"))
	}
	return log
}

// logAway sends the log to syslog. On a host without syslog it discards the log.
func logAway() {
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_NOTICE, "wg0")
	if err != nil {
		logTo.set(io.Discard)
		return
	}
	logTo.set(w)
}
