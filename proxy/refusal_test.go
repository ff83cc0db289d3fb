package proxy

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// TestRefusalCodes checks that a client beyond the limits gets the error code of its protocol, whether it sends the right password
// or none, and that its report has the error ErrLimit. The report of a client that speaks another protocol must have ErrLimit too.
func TestRefusalCodes(t *testing.T) {
	secure, _ := certificate(t)
	unavailable := func(t *testing.T, c net.Conn, ask string) {
		write(t, c, ask)
		a, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if a.StatusCode != http.StatusServiceUnavailable || a.Header.Get("Retry-After") == "" || !a.Close {
			t.Errorf("%s, fields %v, closed %v; want 503 with Retry-After and the end of the connection", a.Status, a.Header, a.Close)
		}
	}
	for name, c := range map[string]struct {
		protocol Protocol
		client   func(*testing.T, net.Conn)
	}{
		"SOCKS": {SOCKS5{}, func(t *testing.T, c net.Conn) {
			write(t, c, hello+connectName("a.example"))
			wantReply(t, c, byte(replyFailure))
		}},
		"SOCKS with a password": {SOCKS5{Username: "u", Password: "p"}, func(t *testing.T, c net.Conn) {
			write(t, c, "\x05\x01\x02")
			want(t, "the method", c, "\x05\x02")
			write(t, c, "\x01\x01u\x01p"+connectName("a.example"))
			want(t, "the answer to the right password", c, "\x01\x00")
			want(t, "the reply", c, "\x05\x01\x00\x01"+zeros(6))
		}},
		"not SOCKS": {SOCKS5{}, func(t *testing.T, c net.Conn) { write(t, c, "GET / HTTP/1.1\r\n\r\n") }},
		"HTTP": {HTTP{}, func(t *testing.T, c net.Conn) {
			unavailable(t, c, "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n")
		}},
		"HTTP CONNECT": {HTTP{Username: "u"}, func(t *testing.T, c net.Conn) {
			unavailable(t, c, "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n")
		}},
		"HTTPS": {HTTP{TLS: secure}, func(t *testing.T, c net.Conn) {
			unavailable(t, tls.Client(c, &tls.Config{InsecureSkipVerify: true}), "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n")
		}},
		"not HTTP": {HTTP{}, func(t *testing.T, c net.Conn) { write(t, c, "\x05\x01\x00\r\n\r\n") }},
		"SNI": {SNI{}, func(t *testing.T, c net.Conn) {
			write(t, c, string(hellos(t, "a.example")))
			want(t, "the alert", c, "\x15\x03\x03\x00\x02\x02\x50")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Server{Protocol: c.protocol, MaxConns: 1, DialContext: failing(errors.New("a refused client must not be connected"))}
			addr, done := serve(t, s)
			first := dial(t, addr)
			// The server accepts connections in order, so it has accepted the first connection when the second one arrives.
			second := dial(t, addr)
			c.client(t, second)
			wantEnd(t, "after the code", second)
			if r := done.next(t); !errors.Is(r.Err, ErrLimit) {
				t.Errorf("the report has the error %v, want %v", r.Err, ErrLimit)
			}
			_ = first.Close()
		})
	}
}

// pipes is a listener of connections in memory.
type pipes struct{ feed }

func newPipes() *pipes {
	return &pipes{feed{conns: make(chan net.Conn), done: make(chan struct{})}}
}

// dial opens a connection and returns the client's end of it.
func (l *pipes) dial() net.Conn {
	client, server := net.Pipe()
	l.conns <- server
	return client
}

// closedAfter waits until the server closes a connection, and returns how long that took.
func closedAfter(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	start := time.Now()
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Fatalf("the server sent %d bytes, want a closed connection", n)
	}
	return time.Since(start)
}

// TestRefusalBounds checks that the server closes refused connections after 5 s, even if the clients are silent or send one byte
// at a time. Meanwhile, the server must close a further connection at once, and keep the admitted connections.
func TestRefusalBounds(t *testing.T) {
	for name, protocol := range map[string]Protocol{"SOCKS": SOCKS5{}, "HTTP": HTTP{}, "SNI": SNI{}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newPipes()
				s := &Server{Protocol: protocol, MaxConns: 1, HandshakeTimeout: -1}
				go func() { _ = s.Serve(l) }()
				served := l.dial()
				var silent []net.Conn
				for range maxRefused {
					silent = append(silent, l.dial())
				}
				go func() {
					for {
						if _, err := silent[0].Write([]byte{5}); err != nil {
							return
						}
						time.Sleep(time.Second)
					}
				}()
				if d := closedAfter(t, l.dial()); d != 0 {
					t.Errorf("with 64 refused clients waiting, the server closes a further connection after %v, want at once", d)
				}
				if d := closedAfter(t, silent[1]); d != refusalTime {
					t.Errorf("the server closes the connection of a refused client that is silent after %v, want %v", d, refusalTime)
				}
				synctest.Wait()
				s.mu.Lock()
				if s.refused != 0 || s.conns != 1 || len(s.sessions) != 1 {
					t.Errorf("the server has %d refused connections, %d admitted ones and %d sessions; want only the admitted one", s.refused, s.conns, len(s.sessions))
				}
				s.mu.Unlock()
				for _, c := range append(silent, served) {
					_ = c.Close()
				}
				_ = s.Close()
				synctest.Wait()
				time.Sleep(2 * time.Second) // the goroutine above ends
			})
		})
	}
}
