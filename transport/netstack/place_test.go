package netstack

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

// TestListenBeside opens two listeners on the same port. As on Linux, the second one must fail if and only if the same
// connection could belong to both.
func TestListenBeside(t *testing.T) {
	second := netip.MustParseAddr("10.8.0.3")
	for _, x := range []struct {
		first, then string // the network and the address of each listener
		refused     bool
	}{
		{"tcp :82", "tcp :82", true},
		{"tcp :82", "tcp 10.8.0.1:82", true},
		{"tcp 10.8.0.1:82", "tcp :82", true},
		{"tcp 10.8.0.1:82", "tcp 10.8.0.1:82", true},
		{"tcp 10.8.0.1:82", "tcp 10.8.0.3:82", false},
		{"tcp 10.8.0.1:82", "tcp [fd08::1]:82", false},
		{"tcp4 :82", "tcp6 :82", false},
		{"tcp4 :82", "tcp :82", true},
		{"tcp6 :82", "tcp :82", true},
		{"tcp :82", "tcp [fd08::1]:82", true},
		{"tcp4 :82", "tcp [fd08::1]:82", false},
		{"tcp6 :82", "tcp 10.8.0.1:82", false},
		{"tcp4 :82", "tcp 10.8.0.1:82", true},
		{"tcp :82", "tcp :83", false},
	} {
		t.Run(x.first+" "+x.then, func(t *testing.T) {
			n, err := New(Config{Addresses: []netip.Addr{a4, second, a6}})
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			listen := func(s string) (net.Listener, error) {
				network, address, _ := strings.Cut(s, " ")
				return n.Listen(network, address)
			}
			l, err := listen(x.first)
			if err != nil {
				t.Fatal(err)
			}
			m, err := listen(x.then)
			if x.refused {
				wantOpError(t, "the second listener", err, syscall.EADDRINUSE)
			} else if err != nil {
				t.Error(err)
			} else {
				_ = m.Close()
			}
			_ = l.Close()
			if m, err = listen(x.then); err != nil {
				t.Errorf("after the first listener was closed, the second one failed: %v", err)
			} else {
				_ = m.Close()
			}
			if len(n.places.taken) != 0 {
				t.Errorf("after both listeners were closed, places.taken has %v, want nothing", n.places.taken)
			}
		})
	}
}

// TestListenBesideDialed checks that, as on Linux, Listen fails on a port from which a connection was dialed.
func TestListenBesideDialed(t *testing.T) {
	a, b := pair(t)
	echo(t, b, ":80")
	c, err := a.DialTCP(t.Context(), netip.AddrPortFrom(a4, 4321), netip.AddrPortFrom(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = a.Listen("tcp", ":4321")
	wantOpError(t, "listen", err, syscall.EADDRINUSE)
	if len(a.places.taken) != 0 {
		t.Errorf("after Listen failed, places.taken has %v, want nothing", a.places.taken)
	}
}

// TestHTTPRestart shuts a server down and at once starts another one on the same port, while one connection to the old server is
// still open and another is in TIME-WAIT.
func TestHTTPRestart(t *testing.T) {
	a, b, _, _ := twoNets(t)
	hijacked := make(chan net.Conn, 1)
	start := func(answer string) *http.Server {
		l, err := b.Listen("tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/keep" {
				c, _, _ := w.(http.Hijacker).Hijack()
				hijacked <- c
				return
			}
			w.Header().Set("Connection", "close") // the server closes the connection first, so its end is in TIME-WAIT
			fmt.Fprint(w, answer)
		})}
		go s.Serve(l)
		return s
	}
	client := &http.Client{Transport: &http.Transport{DialContext: a.DialContext}}
	get := func(want string) {
		t.Helper()
		r, err := client.Get("http://10.8.0.2/")
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if string(got) != want || err != nil {
			t.Errorf("the server answered %q, %v, want %q", got, err, want)
		}
	}
	for i := range 3 {
		answer := fmt.Sprint("server ", i)
		s := start(answer)
		get(answer)
		kept, err := a.Dial("tcp", "10.8.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		defer kept.Close()
		write(t, kept, "GET /keep HTTP/1.1\r\nHost: b\r\n\r\n")
		old := <-hijacked
		defer old.Close()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		write(t, kept, "after")
		after := make([]byte, 5)
		if _, err := io.ReadFull(old, after); string(after) != "after" {
			t.Errorf("the connection that outlives its server read %q, %v; want the bytes that were sent after Shutdown", after, err)
		}
	}
}
