package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// readHead reads the head of an answer, with the empty line at its end.
func readHead(t *testing.T, r *bufio.Reader) (head string) {
	t.Helper()
	for !strings.HasSuffix(head, "\r\n\r\n") {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("the answer ended with %v after %q", err, head)
		}
		head += line
	}
	return head
}

// TestHTTPUpgradeHalfClose checks that a client may half-close an upgraded connection and then still gets the rest of the data.
func TestHTTPUpgradeHalfClose(t *testing.T) {
	at := target(t, func(c *net.TCPConn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		b, _ := io.ReadAll(c)
		_, _ = io.WriteString(c, "all "+string(b))
	})
	addr, _ := serve(t, &Server{Protocol: HTTP{}})
	c := dial(t, addr)
	write(t, c, "GET http://"+at+"/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	r := bufio.NewReader(c)
	readHead(t, r)
	write(t, c, "hello")
	_ = c.CloseWrite()
	if got := wantEnd(t, "answer after a half-close", r); got != "all hello" {
		t.Errorf("the target answered %q after a half-close, want %q", got, "all hello")
	}
}

// TestHTTPConnectHalfClose checks CONNECT for a client that half-closes before it has the answer.
func TestHTTPConnectHalfClose(t *testing.T) {
	at := target(t, func(c *net.TCPConn) { b, _ := io.ReadAll(c); _, _ = io.WriteString(c, "all "+string(b)) })
	addr, _ := serve(t, &Server{Protocol: HTTP{}})
	for range 20 { // without the fix, only most of these connections fail
		c := dial(t, addr)
		write(t, c, "CONNECT "+at+" HTTP/1.1\r\nHost: x\r\n\r\nearly")
		_ = c.CloseWrite()
		if got := wantEnd(t, "CONNECT", c); !strings.HasSuffix(got, "\r\n\r\nall early") {
			t.Fatalf("the client got %q, want the answer to CONNECT and %q", got, "all early")
		}
	}
}

// TestHTTPConnectRefused checks that a CONNECT whose target is wrong or refuses the connection closes the client's connection,
// because the client may already have sent bytes for the target, which are not a request.
func TestHTTPConnectRefused(t *testing.T) {
	at := target(t, func(c *net.TCPConn) { _, _ = io.WriteString(c, "reached") })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	_ = closed.Close()
	addr, _ := serve(t, &Server{Protocol: HTTP{}})
	for to, want := range map[string]int{nobody: 502, "/x": 400, "user@" + at: 400, at + "/x": 400} {
		c := dial(t, addr)
		write(t, c, "CONNECT "+to+" HTTP/1.1\r\nHost: "+at+"\r\n\r\nGET http://"+at+"/ HTTP/1.1\r\nHost: x\r\n\r\n")
		got := wantEnd(t, "CONNECT "+to, c)
		if !strings.HasPrefix(got, fmt.Sprintf("HTTP/1.1 %d ", want)) || strings.Count(got, "HTTP/1.1 ") != 1 {
			t.Errorf("CONNECT %s: the client got %q, want one answer with status %d", to, got, want)
		}
	}
}

// TestHTTPContentType checks that the proxy adds no Content-Type, which package net/http would guess from the body.
func TestHTTPContentType(t *testing.T) {
	at := target(t, func(c *net.TCPConn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n<html>") // ends too early
	})
	addr, _ := serve(t, &Server{Protocol: HTTP{}})
	for range 20 {
		c := dial(t, addr)
		write(t, c, "GET http://"+at+"/ HTTP/1.0\r\n\r\n")
		if got := wantEnd(t, "GET", c); !strings.Contains(got, "<html>") || strings.Contains(got, "Content-Type") {
			t.Fatalf("the client got %q, want the body and no Content-Type", got)
		}
	}
}

// TestHTTPOptions checks how the proxy forwards OPTIONS for a whole server (RFC 9112, section 3.2.4), and Max-Forwards (RFC 9110,
// section 7.6.2).
func TestHTTPOptions(t *testing.T) {
	at := target(t, func(c *net.TCPConn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nURI "+r.RequestURI+" forwards "+r.Header.Get("Max-Forwards"))
	})
	addr, _ := serve(t, &Server{Protocol: HTTP{}})
	for _, x := range []struct{ method, path, forwards, want string }{
		{"OPTIONS", "", "5", "URI * forwards 4"}, {"OPTIONS", "/", "5", "URI / forwards 4"}, {"TRACE", "/", "1", "URI / forwards 0"},
		{"GET", "/", "5", "URI / forwards 5"}, {"OPTIONS", "/", "0", "400 Bad Request"}, {"OPTIONS", "/", "x", "400 Bad Request"},
	} {
		c := dial(t, addr)
		write(t, c, x.method+" http://"+at+x.path+" HTTP/1.1\r\nHost: x\r\nMax-Forwards: "+x.forwards+"\r\nConnection: close\r\n\r\n")
		if got := wantEnd(t, x.method, c); !strings.Contains(got, x.want) {
			t.Errorf("%s of %q with Max-Forwards %s: the client got %q, want %q", x.method, x.path, x.forwards, got, x.want)
		}
	}
}
