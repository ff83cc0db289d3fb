package apps

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// An httpServer is an http.Server that listens on a Net.
type httpServer struct {
	http.Server
	ended chan error
}

func serveHTTP(t *testing.T, n *netstack.Net, at string, h http.Handler) *httpServer {
	t.Helper()
	l, err := n.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	s := &httpServer{Server: http.Server{Handler: h}, ended: make(chan error, 1)}
	go func() { s.ended <- s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// stop calls Shutdown, and checks that Serve then returns ErrServerClosed.
func (s *httpServer) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-s.ended; err != http.ErrServerClosed {
		t.Errorf("Serve ended with %v, want http.ErrServerClosed", err)
	}
}

// TestHTTPRestart shuts a server down while it handles a request, and then starts a server on the same port. The request must
// succeed in spite of the shutdown. A dial during the shutdown must be refused. The new server must answer at once.
func TestHTTPRestart(t *testing.T) {
	client, server := nets(t, pipe.Conditions{Delay: time.Millisecond})
	tr := &http.Transport{DialContext: client.DialContext}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	body := noise(1, 1<<20)
	for round := range 5 {
		running, finish := make(chan struct{}), make(chan struct{})
		s := serveHTTP(t, server, ":80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				close(running)
				<-finish
			}
			_, _ = io.Copy(w, r.Body)
		}))
		post := func(path string) ([]byte, error) {
			res, err := c.Post("http://"+serverIP+path, "application/octet-stream", bytes.NewReader(body))
			if err != nil {
				return nil, err
			}
			defer res.Body.Close()
			return io.ReadAll(res.Body)
		}
		got, err := post("/")
		if err != nil {
			t.Fatalf("round %d: a request right after the start failed: %v", round, err)
		}
		same(t, "answer", got, body)

		type answer struct {
			got []byte
			err error
		}
		slow, stopped := make(chan answer, 1), make(chan struct{})
		go func() {
			got, err := post("/slow")
			slow <- answer{got, err}
		}()
		<-running
		go func() { s.stop(t); close(stopped) }()
		for err == nil { // dial until Shutdown has closed the listener
			var conn io.Closer
			if conn, err = client.Dial("tcp", serverIP+":80"); err == nil {
				_ = conn.Close()
			}
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("round %d: a dial while the server shuts down: %v, want ECONNREFUSED", round, err)
		}
		select {
		case <-stopped:
			t.Errorf("round %d: Shutdown did not wait for a request", round)
		default:
		}
		close(finish)
		a := <-slow
		if a.err != nil {
			t.Errorf("round %d: the request that ran during Shutdown failed: %v", round, a.err)
		}
		same(t, "answer during Shutdown", a.got, body)
		<-stopped
	}
}
