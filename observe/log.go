package observe

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"github.com/seed-86b749af/wireguard"
)

// Log writes the device's events to log until ctx ends or the device is closed. If log is nil, Log writes to slog.Default(). It
// logs handshakes, expired sessions, moved endpoints and forgotten peers at level Info, and all other events at Warn. It returns
// nil after the device was closed, and the error of ctx otherwise.
//
// A slow log never delays the device. Instead, events are merged; [wireguard.Subscription] says how.
func Log(ctx context.Context, d *wireguard.Device, log *slog.Logger) error {
	sub := d.Subscribe()
	defer sub.Close()
	return logEvents(ctx, sub, log)
}

func logEvents(ctx context.Context, sub *wireguard.Subscription, log *slog.Logger) error {
	if log == nil {
		log = slog.Default()
	}
	for {
		e, err := sub.Next(ctx)
		if errors.Is(err, net.ErrClosed) {
			return nil
		} else if err != nil {
			return err
		}
		// Logger.LogAttrs would give the record the present time. Like LogAttrs, ignore an error of the handler.
		if level := Level(e.Kind); log.Enabled(ctx, level) {
			r := slog.NewRecord(e.Time, level, e.Kind.String(), 0)
			r.AddAttrs(Attrs(e)...)
			_ = log.Handler().Handle(ctx, r)
		}
	}
}

// Level returns the level at which Log writes events of a kind: slog.LevelWarn or slog.LevelInfo.
func Level(k wireguard.EventKind) slog.Level {
	switch k {
	case wireguard.EventHandshake, wireguard.EventSessionExpired, wireguard.EventEndpointMoved, wireguard.EventPeerForgotten:
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// Attrs returns the fields of an event that are not zero, as Log writes them. It leaves out the kind, which is the message of the
// log record, and the time, because the record has its own.
func Attrs(e wireguard.Event) (a []slog.Attr) {
	if !e.Peer.IsZero() {
		a = append(a, slog.String("peer", e.Peer.String()))
	}
	if e.Endpoint.IsValid() {
		a = append(a, slog.String("endpoint", e.Endpoint.String()))
	}
	if e.Attempt != 0 {
		a = append(a, slog.Int("attempt", e.Attempt))
	}
	if e.Err != nil {
		a = append(a, slog.String("err", e.Err.Error()))
	}
	if e.Merged != 0 {
		a = append(a, slog.Int("merged", e.Merged))
	}
	if e.Missed != 0 {
		a = append(a, slog.Int("missed", e.Missed))
	}
	return a
}
