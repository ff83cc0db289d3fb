//go:build unix

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// lint checks metrics in the text format as "promtool check metrics" does, which calls the same package.
func lint(t *testing.T, metrics string) {
	t.Helper()
	problems, err := promlint.New(strings.NewReader(metrics)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("the metrics have the problems %v, %v", problems, err)
	}
}

// TestStatusOfSlowClients checks that a client that sends half a request, or accepts no answer, is disconnected, and that a
// stream of events outlives both limits.
func TestStatusOfSlowClients(t *testing.T) {
	const timeout = 300 * time.Millisecond
	written := make(chan error, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		_, err := w.Write(make([]byte, 64<<20)) // more than the buffers of the sockets can take
		written <- err
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		out := http.NewResponseController(w)
		for range 6 {
			out.SetWriteDeadline(time.Now().Add(time.Minute)) // package page sets this deadline too
			io.WriteString(w, ".")
			out.Flush()
			select {
			case <-time.After(timeout / 2):
			case <-r.Context().Done():
				return
			}
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := statusServer(mux, timeout)
	go srv.Serve(l)
	defer srv.Close()
	request := func(text string) net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, text)
		return c
	}
	slow := request("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
	for _, half := range []string{"GET /metr", "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"} {
		if _, err := io.Copy(io.Discard, request(half)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the server does not end the connection of a client that sent only %q: %v", half, err)
		}
	}
	if b, _ := io.ReadAll(request("GET /events HTTP/1.0\r\n\r\n")); !bytes.HasSuffix(b, []byte("......")) {
		t.Errorf("the stream ended early: %q", b)
	}
	if err := testkit.Next(t, written, "the server gives up a client that reads nothing"); err == nil {
		t.Error("the server has written the whole answer to a client that reads nothing")
	}
	slow.Close()
}

// TestStopWithOpenPage checks that an open page does not delay the end of wgproxy.
func TestStopWithOpenPage(t *testing.T) {
	o := newOffice(t)
	in := make(sockets)
	status := inheritTCP(t, in)
	r := launch(t, o.file(""), in, "-status", status)
	r.waitFor("serving a status page")
	c, err := net.Dial("tcp", status)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(drainTime))
	fmt.Fprintf(c, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	r.signals <- syscall.SIGTERM
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > drainTime/2 {
		t.Errorf("wgproxy ended after %v, although an open page must not delay it", took)
	}
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the stream did not end: %v", err)
	}
}

// TestStatusHosts checks that the page, /metrics and /readyz answer for addresses, for localhost, for the names of -status-host and
// for a request without a name, and refuse another name, as a page that rebinds its own name would send it.
func TestStatusHosts(t *testing.T) {
	o := newOffice(t)
	in := make(sockets)
	status := inheritTCP(t, in)
	r := launch(t, o.file(""), in, "-status", status, "-status-host", "proxy.example.com", "-status-host", "wgproxy")
	r.waitFor("serving a status page")
	ask := func(path, host string) int {
		c, err := net.Dial("tcp", status)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(testkit.Patience))
		fmt.Fprintf(c, "GET %s HTTP/1.0\r\n%s\r\n", path, host)
		a, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		return a.StatusCode
	}
	for _, path := range []string{"/", "/metrics", "/readyz"} {
		for host, want := range map[string]int{
			"Host: " + status + "\r\n": http.StatusOK, "Host: localhost:9090\r\n": http.StatusOK, "Host: [::1]\r\n": http.StatusOK,
			"Host: Proxy.Example.com:9090\r\n": http.StatusOK, "Host: wgproxy\r\n": http.StatusOK,
			"Host: rebound.example\r\n": http.StatusMisdirectedRequest, "Host: other:9090\r\n": http.StatusMisdirectedRequest,
		} {
			got := ask(path, host)
			if path == "/readyz" && got == http.StatusServiceUnavailable {
				got = http.StatusOK // no answer to a ping yet
			}
			if got != want {
				t.Errorf("%s with %q has status %d, want %d", path, host, got, want)
			}
		}
	}
	if got := ask("/metrics", ""); got != http.StatusOK {
		t.Errorf("/metrics without a host name has status %d, want 200", got)
	}
	r.end()
	for _, args := range [][]string{{"x.conf", "-status-host", "a"}, {"x.conf", "-status", "127.0.0.1:0", "-status-host", "a:1"}} {
		if _, err := parseArgs(args, io.Discard); err == nil {
			t.Errorf("parseArgs of %v returns no error", args)
		}
	}
}
