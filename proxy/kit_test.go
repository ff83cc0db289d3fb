package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// reports collects the reports of a server.
type reports chan Report

func (r reports) next(t testing.TB) Report {
	t.Helper()
	return testkit.Next(t, r, "a report")
}

// serve runs a server on a socket of the host until the test ends.
func serve(t testing.TB, s *Server) (addr string, done reports) {
	t.Helper()
	done = make(reports, 1000)
	if s.Done == nil {
		s.Done = func(r Report) { done <- r }
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	background(t, s, func() error { return s.Serve(l) })
	return l.Addr().String(), done
}

// background runs serve until the test ends, and closes the server then.
func background(t testing.TB, s *Server, serve func() error) {
	ended := make(chan error, 1)
	go func() { ended <- serve() }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := testkit.Next(t, ended, "Serve returns after Close"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v, want net.ErrClosed", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for deadline := time.Now().Add(testkit.Patience); len(s.sessions) > 0; {
			if time.Now().After(deadline) {
				t.Errorf("%d sessions are left after Close", len(s.sessions))
				return
			}
			s.mu.Unlock()
			time.Sleep(time.Millisecond)
			s.mu.Lock()
		}
		if len(s.clients) > 0 || s.conns != 0 || s.refused != 0 {
			t.Errorf("after Close, the server still counts the clients %v, %d admitted and %d refused connections; want none", s.clients, s.conns, s.refused)
		}
	})
}

// target starts a TCP server of the host that runs f for each connection. It returns the server's address.
func target(t testing.TB, f func(c *net.TCPConn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				f(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

// echo sends back what it receives, and then closes.
func echo(c *net.TCPConn) { _, _ = io.Copy(c, c) }

// dial connects to a server, and sets a deadline for all operations on the connection.
func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(testkit.Patience))
	return c.(*net.TCPConn)
}

// write writes b, or fails the test.
func write(t testing.TB, c io.Writer, b string) {
	t.Helper()
	if _, err := io.WriteString(c, b); err != nil {
		t.Fatal(err)
	}
}

// want reads len(b) bytes from c, and checks that they are b.
func want(t testing.TB, why string, c io.Reader, b string) {
	t.Helper()
	got := make([]byte, len(b))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != b {
		t.Fatalf("%s: read %q, %v, want %q", why, got[:n], err, b)
	}
}

// wantEnd reads until the connection ends, and returns what it has read. It fails the test if a read times out.
func wantEnd(t testing.TB, why string, c io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(c)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatalf("%s: the read timed out, want the end of the connection", why)
	}
	return string(b)
}

// tool returns the path of a program, or skips the test.
func tool(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s: install %s", name, pkg)
	}
	return path
}

// failing returns a dialer that fails with err.
func failing(err error) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) { return nil, err }
}

// to returns a dialer that connects to addr, whatever address it is asked for, and stores the address that it was asked for in
// *asked.
func to(addr string, asked *sync.Map) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if asked != nil {
			asked.Store(network+" "+address, true)
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}
