package apps

import (
	"context"
	"errors"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// TestWebSocket sends messages of many sizes to a server that echoes them, sends a ping, and closes the connection with a status.
// On a second connection, it cancels a read.
func TestWebSocket(t *testing.T) {
	client, server := nets(t, pipe.Conditions{Delay: time.Millisecond})
	closed := make(chan websocket.StatusCode, 2)
	serveHTTP(t, server, ":80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(8 << 20)
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil {
				closed <- websocket.CloseStatus(err)
				return
			}
			if err := c.Write(r.Context(), kind, b); err != nil {
				t.Error(err)
				return
			}
		}
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	dial := func() *websocket.Conn {
		t.Helper()
		c, _, err := websocket.Dial(ctx, "ws://"+serverIP+"/", &websocket.DialOptions{
			HTTPClient: &http.Client{Transport: &http.Transport{DialContext: client.DialContext}},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.CloseNow() })
		c.SetReadLimit(8 << 20)
		return c
	}
	c := dial()
	for i, size := range []int{0, 1, 125, 126, 1400, 65535, 65536, 4 << 20} {
		kind, want := websocket.MessageBinary, noise(int64(i), size)
		if err := c.Write(ctx, kind, want); err != nil {
			t.Fatal(err)
		}
		k, got, err := c.Read(ctx)
		if err != nil || k != kind {
			t.Fatalf("the echo of a message of %d bytes has type %v, %v, want a binary message", size, k, err)
		}
		same(t, "message", got, want)
	}
	pings := c.CloseRead(ctx) // CloseRead reads the pong
	if err := c.Ping(ctx); err != nil {
		t.Errorf("ping: %v", err)
	}
	if err := c.Close(websocket.StatusNormalClosure, "done"); err != nil {
		t.Errorf("close: %v", err)
	}
	<-pings.Done()
	if got := <-closed; got != websocket.StatusNormalClosure {
		t.Errorf("the server read status %v, want %v", got, websocket.StatusNormalClosure)
	}

	// If the context of a read ends, the read closes the connection. The server's next read must then fail.
	c = dial()
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, _, err := c.Read(short); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read whose context ended returned %v, want a deadline error", err)
	}
	select {
	case got := <-closed:
		if got != -1 {
			t.Errorf("the server read status %v from a connection without a closing handshake", got)
		}
	case <-ctx.Done():
		t.Error("the server did not notice that the client's connection ended")
	}
}
