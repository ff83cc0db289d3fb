package page_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/observe/page"
)

// A client is the ResponseWriter for a browser. If the client is stuck, Write blocks until reads is closed.
type client struct {
	httptest.ResponseRecorder
	reads  chan struct{} // closed when the client reads again
	writes atomic.Int32
}

func newClient(stuck bool) *client {
	b := &client{ResponseRecorder: *httptest.NewRecorder(), reads: make(chan struct{})}
	if !stuck {
		close(b.reads)
	}
	return b
}

func (b *client) Write(p []byte) (int, error) {
	b.writes.Add(1)
	<-b.reads
	return len(p), nil
}

// A patient is a client whose Write fails at the deadline that the server has set.
type patient struct {
	*client
	deadline time.Time
}

func (p *patient) SetWriteDeadline(t time.Time) error { p.deadline = t; return nil }
func (p *patient) Write(b []byte) (int, error) {
	p.writes.Add(1)
	select {
	case <-p.reads:
		return len(b), nil
	case <-time.After(time.Until(p.deadline)):
		return 0, os.ErrDeadlineExceeded
	}
}

// view serves the stream of events to w in a goroutine, until the test ends.
func view(t *testing.T, h http.Handler, w http.ResponseWriter) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "http://localhost/events", nil))
	}()
	t.Cleanup(func() { cancel(); <-ended })
	synctest.Wait()
}

// full reports whether the handler refuses a further viewer.
func full(h http.Handler) bool {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "http://localhost/events", nil))
	return w.Code == http.StatusServiceUnavailable
}

// TestStuckViewer checks that a client that does not read is disconnected after 20 s. Meanwhile, another client must get the
// result of each look in time.
func TestStuckViewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		handler := page.New(page.Config{Devices: []page.Device{{Device: h.device}}, Viewers: 2})
		stuck, reader := &patient{client: newClient(true)}, newClient(false)
		view(t, handler, stuck)
		view(t, handler, reader)
		time.Sleep(19*time.Second + time.Second/2)
		if n := reader.writes.Load(); n != 20 || !full(handler) {
			t.Errorf("after 19 looks, the client that reads got %d messages, want 20; a third page is refused: %t, want true", n, full(handler))
		}
		time.Sleep(time.Second)
		if full(handler) || stuck.writes.Load() != 1 {
			t.Errorf("a client that read nothing for 20 s is still a viewer, or got %d writes, want 1", stuck.writes.Load())
		}
	})
}

// TestUnreadBytes checks that the bytes that wait for a client that does not read are bounded, even if no deadline ends the
// write to that client. These bytes must be freed when the client is dropped.
func TestUnreadBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.add("", nil)
		const size = 1 << 20
		look := 0 // the hub's lock guards it
		handler := page.New(page.Config{Devices: []page.Device{{Device: h.device}}, Viewers: 2, Name: func(wireguard.PublicKey) string {
			look++
			return strings.Repeat(string(rune('a'+look%2)), size)
		}})
		stuck, reader := newClient(true), newClient(false)
		view(t, handler, stuck)
		view(t, handler, reader)
		time.Sleep(4*time.Second + time.Second/2)
		if !full(handler) {
			t.Error("the handler disconnected a client with 4 MiB of unread messages")
		}
		time.Sleep(3 * time.Second)
		if full(handler) {
			t.Error("the handler did not disconnect a client with 7 MiB of unread messages")
		}
		if n := reader.writes.Load(); n != 8 {
			t.Errorf("after 7 looks, the client that reads got %d messages, want 8", n)
		}
		close(stuck.reads)
		synctest.Wait()
		if n := stuck.writes.Load(); n != 1 {
			t.Errorf("a client that was disconnected got %d messages, want 1, because its unread messages must be dropped", n)
		}
	})
}
