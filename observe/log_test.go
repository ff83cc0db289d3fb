package observe_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard/observe"
)

// A log has the events, with the peer's public key as text, until ctx ends or the device is closed.
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
			t.Errorf("the log ended with %v, want nil after Close", err)
		}
		for _, want := range []string{
			`level=INFO msg="handshake completed" peer="` + r.keyB.String() + `" endpoint=` + r.endB.Endpoint(51820).String(),
			`level=WARN msg="attempt failed" peer="` + r.keyB.String() + `" endpoint=` + r.endB.Endpoint(51820).String() + ` attempt=1 err="wireguard: no answer`,
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %s in\n%s", want, &out)
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
			t.Errorf("the log ended with %v, want %v", err, context.Canceled)
		}
	})
}
