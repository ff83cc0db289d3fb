package observe_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard/observe"
)

// TestLog checks that Log writes the events, with the peer's public key as text, until ctx ends or the device is closed.
func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		var out bytes.Buffer
		logged := make(chan error, 1)
		go func() {
			logged <- observe.Log(t.Context(), r.a, slog.New(slog.NewTextHandler(&out, nil)))
		}()
		synctest.Wait()
		r.say(10)
		r.network.Cut(r.endA, r.endB)
		time.Sleep(2 * time.Minute)
		r.say(10)
		time.Sleep(30 * time.Second)
		r.a.Close()
		if err := <-logged; err != nil {
			t.Errorf("Log returned %v after Close, want nil", err)
		}
		for _, want := range []string{
			`level=INFO msg="handshake completed" peer="` + r.keyB.String() + `" endpoint=` + r.endB.Endpoint(51820).String(),
			`level=WARN msg="attempt failed" peer="` + r.keyB.String() + `" endpoint=` + r.endB.Endpoint(51820).String() + ` attempt=1 err="wireguard: no answer`,
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the log has no %s:\n%s", want, &out)
			}
		}
	})
}

// A slowHandler takes a minute for each record.
type slowHandler struct {
	slog.Handler
	times []time.Time // of the records
}

func (h *slowHandler) Handle(_ context.Context, r slog.Record) error {
	time.Sleep(time.Minute)
	h.times = append(h.times, r.Time)
	return nil
}

// TestLogTimes checks that a record has the time of its event, also if the handler is slower than the events.
func TestLogTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		begin := time.Now()
		h := &slowHandler{Handler: slog.NewTextHandler(io.Discard, nil)}
		logged := make(chan error, 1)
		go func() { logged <- observe.Log(t.Context(), r.a, slog.New(h)) }()
		synctest.Wait()
		r.say(10)
		if err := r.a.Renew(t.Context(), r.keyB); err != nil { // a second handshake
			t.Fatal(err)
		}
		took := time.Since(begin)
		time.Sleep(10 * time.Minute)
		r.a.Close()
		<-logged
		if len(h.times) < 2 {
			t.Fatalf("the log has %d records, want one per handshake", len(h.times))
		}
		for _, at := range h.times[:2] {
			if after := at.Sub(begin); after < 0 || after > took {
				t.Errorf("a record has a time %v after the test began, want between 0 and %v", after, took)
			}
		}
	})
}

func TestLogEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		logged := make(chan error, 1)
		go func() { logged <- observe.Log(ctx, r.a, nil) }()
		synctest.Wait()
		cancel()
		if err := <-logged; !errors.Is(err, context.Canceled) {
			t.Errorf("Log returned %v, want %v", err, context.Canceled)
		}
	})
}
