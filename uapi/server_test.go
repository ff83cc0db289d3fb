package uapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// serve runs s on a port of the loopback interface instead of a control socket, which not every system has.
func serve(t testing.TB, s *Server) (dial func() *client) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveAt(t, s, l)
	return func() *client {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		return &client{t, c.(*net.TCPConn)}
	}
}

type client struct {
	t testing.TB
	*net.TCPConn
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
}

// wants fails the test unless the client receives exactly want next.
func (c *client) wants(want string) {
	c.t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	if string(got[:n]) != want {
		c.t.Fatalf("the answer is\n%s\nwant\n%s\n(error %v)", got[:n], want, err)
	}
}

// wantsEnd fails unless the server closes the connection.
func (c *client) wantsEnd(why string) {
	c.t.Helper()
	if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("the connection stays open (read %d bytes, error %v), want it closed: %s", n, err, why)
	}
}

// TestServerPipelined checks that requests that arrive together on one connection, or byte by byte, are answered in
// order, and that a refused request does not affect those after it.
func TestServerPipelined(t *testing.T) {
	d := newDown(t)
	dial := serve(t, &Server{Device: d})
	requests := "set=1\nfwmark=1\n\n" +
		"get=1\n\n" +
		"set=1\nfwmark=2\npublic_key=" + hexKey(1) + "\nallowed_ip=nonsense\nallowed_ip=10.0.0.0/8\n\n" +
		"set=1\nno equals sign\nset=1\nget=1\n" + strings.Repeat("x", 100000) + "\n\n" +
		"set=1\n" + strings.Repeat("y", maxLine) + "\n\n" +
		"set=1\n" + strings.Repeat("z", readBuffer) + "\nfwmark=4\n\n" + // the rest of the line is not an empty line
		"set=1\nx\n" + strings.Repeat("z", readBuffer) + "\nfwmark=4\n\n" +
		"get=1\nmore\n\n" +
		"set=1\r\nfwmark=3\r\n\r\n" + // some clients end lines with CR LF
		"set=1\nno equals sign\nfwmark=9\r\n\r\n" +
		"set=1\n\n" +
		"get=1\n\n"
	answers := "errno=0\n\n" +
		"fwmark=1\nerrno=0\n\n" +
		fmt.Sprintf("errno=-%d\n\n", errnoInvalid) +
		strings.Repeat(fmt.Sprintf("errno=-%d\n\n", errnoProtocol), 4) +
		fmt.Sprintf("errno=-%d\n\n", errnoInvalid) +
		"errno=0\n\n" +
		fmt.Sprintf("errno=-%d\n\n", errnoProtocol) +
		"errno=0\n\n" +
		"fwmark=3\nerrno=0\n\n"
	c := dial()
	c.send(requests)
	c.wants(answers)
	c.CloseWrite()
	c.wantsEnd("the client has closed its side")

	c = dial()
	c.SetNoDelay(true)
	go func() {
		for i := range len(requests) {
			if i < 400 || i > len(requests)-100 {
				c.Write([]byte{requests[i]})
			} else if i == 400 {
				io.WriteString(c, requests[400:len(requests)-99])
			}
		}
	}()
	c.wants(answers)
	if n := d.Status().Peers; n != 0 {
		t.Errorf("the device has %d peers from refused requests, want none", n)
	}
}

// TestServerUnknownOperation checks that the server answers an unknown operation with an error, and closes the connection.
func TestServerUnknownOperation(t *testing.T) {
	dial := serve(t, &Server{Device: newDown(t)})
	for _, request := range []string{"\n", "get=2\n", "set=0\n", "fwmark=1\n", "GET / HTTP/1.1\r\n", "get=1\r\r\n", strings.Repeat("x", maxLine) + "\n"} {
		c := dial()
		c.send(request)
		c.wants(fmt.Sprintf("errno=-%d\n\n", errnoProtocol))
		c.wantsEnd("the request began with " + request)
	}
}

// TestServerCut checks that a request is not carried out if its connection ends anywhere before the empty line.
func TestServerCut(t *testing.T) {
	d := newDown(t)
	dial := serve(t, &Server{Device: d})
	request := "set=1\nfwmark=12\npublic_key=" + hexKey(1) + "\nallowed_ip=10.0.0.0/24\n"
	for n := range len(request) + 1 {
		c := dial()
		c.send(request[:n])
		c.CloseWrite()
		if answer, err := io.ReadAll(c); err != nil || bytes.Contains(answer, []byte("errno=0")) {
			t.Fatalf("the request was cut after %d bytes: answer %q, error %v; want no errno=0", n, answer, err)
		}
	}
	if s := d.Status(); s.FirewallMark != 0 || s.Peers != 0 {
		t.Errorf("the device has the mark %d and %d peers from requests that were cut, want none", s.FirewallMark, s.Peers)
	}
}

// TestServerMaxConns checks that the server closes the connection that has been idle longest if there are too many. If none is
// idle, the server closes the new connection. So a client that leaves its connections open cannot lock out wg(8).
func TestServerMaxConns(t *testing.T) {
	s := &Server{Device: newDown(t), MaxConns: 3}
	dial := serve(t, s)
	// ask returns once the connection is idle again, so the order in which the connections became idle is known.
	ask := func(c *client) *client {
		t.Helper()
		begin := time.Now()
		c.send("get=1\n\n")
		c.wants("errno=0\n\n")
		testkit.Eventually(t, "the connection is idle again", func() bool { return s.idleSince(begin) == 1 })
		return c
	}
	first, second, third := ask(dial()), ask(dial()), ask(dial())
	ask(first)
	var open []*client
	for i, c := range []*client{second, third, first} {
		open = append(open, ask(dial()))
		c.wantsEnd(fmt.Sprintf("connection %d was idle longest", i))
	}

	for _, c := range open {
		c.send("set=1\n") // the test sends the rest of the request later
	}
	testkit.Eventually(t, "no connection is idle", func() bool { return s.idleSince(time.Time{}) == 0 })
	dial().wantsEnd("every connection is in the middle of a request")
	for _, c := range open {
		c.send("\n")
		c.wants("errno=0\n\n")
	}
}

// idleSince returns the number of connections that began to wait for a request after begin.
func (s *Server) idleSince(begin time.Time) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.idle.After(begin) {
			n++
		}
	}
	return n
}

// TestServerTimeout checks that the server closes a connection that is silent, stops in the middle of a request, or
// does not read its answer.
func TestServerTimeout(t *testing.T) {
	d := newDown(t)
	for i := range 2000 { // the answer has 600 KB
		set(t, d, fmt.Sprintf("public_key=%064x\n", i+1))
	}
	s := &Server{Device: d, Timeout: 50 * time.Millisecond}
	dial := serve(t, s)
	dial().wantsEnd("the client sends nothing")
	half := dial()
	io.WriteString(half, "set=1\nfwmark=1\n") // may fail, because the server may have closed the connection already
	half.wantsEnd("the client sends only half a request")
	if d.Status().FirewallMark != 0 {
		t.Error("the server carried out half a request")
	}
	deaf := dial()
	io.WriteString(deaf, strings.Repeat("get=1\n\n", 100)) // asks for 60 MB, which is more than the socket buffers hold
	testkit.Eventually(t, "the server closes the connection of the client that does not read", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.conns) == 0
	})
}

// TestServerMaxRequest checks that MaxRequest limits the requests of all connections together, and that the bytes of a finished
// request no longer count.
func TestServerMaxRequest(t *testing.T) {
	s := &Server{Device: newDown(t), MaxRequest: 100}
	dial := serve(t, s)
	slow, other := dial(), dial()
	slow.send("set=1\n" + strings.Repeat("fwmark=7\n", 5)) // 51 bytes with the first line
	testkit.Eventually(t, "the slow request is being read", func() bool { return s.inUse.Load() == 51 })
	other.send("set=1\n" + strings.Repeat("fwmark=8\n", 5) + "\n")
	other.wants(fmt.Sprintf("errno=-%d\n\n", errnoTooBig))
	slow.send("\n")
	slow.wants("errno=0\n\n")
	testkit.Eventually(t, "the bytes of the finished request no longer count", func() bool { return s.inUse.Load() == 0 })
	other.send("set=1\n" + strings.Repeat("fwmark=8\n", 5) + "\n")
	other.wants("errno=0\n\n")
}

// TestServerClose checks that Close ends a Serve that waits, and all connections, whatever their state. A second Close is not an
// error, nor is a Close before Serve.
func TestServerClose(t *testing.T) {
	s := &Server{Device: newDown(t)}
	dial := serve(t, s)
	idle, half := dial(), dial()
	idle.send("get=1\n\n")
	idle.wants("errno=0\n\n")
	half.send("set=1\n")
	testkit.Eventually(t, "both connections are served", func() bool { return s.idleSince(time.Time{}) == 1 })
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { s.Close() })
	}
	wg.Wait()
	idle.wantsEnd("the server is closed")
	half.wantsEnd("the server is closed")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); err != nil {
		t.Errorf("Serve after Close: error %v, want nil", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve after Close left its listener open: %v", err)
	}
}

// TestServerBind checks a Server that has a Bind and a device that is down. The Server refuses a request that names a port in
// use, and does not keep a free port open.
func TestServerBind(t *testing.T) {
	bind := &udp.Bind{Address: netip.MustParseAddr("127.0.0.1")}
	taken, err := bind.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	port := taken.Port()
	s := &Server{Device: newDown(t), Bind: bind}
	c := serve(t, s)()
	set := fmt.Sprintf("set=1\nfwmark=7\nlisten_port=%d\n\n", port)
	c.send(set)
	c.wants(fmt.Sprintf("errno=-%d\n\n", errnoAddressInUse))
	if got := s.Device.Status(); got.ListenPort != 0 || got.FirewallMark != 0 {
		t.Errorf("a refused request set the port %d and the mark %d, want neither", got.ListenPort, got.FirewallMark)
	}
	taken.Close()
	c.send(set)
	c.wants("errno=0\n\n")
	again, err := bind.Listen(port)
	if err != nil {
		t.Fatalf("the server, whose device is down, still holds the port: %v", err)
	}
	defer again.Close()
	c.send("set=1\nlisten_port=0\nreplace_peers=true\n\n")
	c.wants("errno=0\n\n")
}

// TestServeEnds checks that Serve continues after a temporary error of Accept, and returns a permanent error.
func TestServeEnds(t *testing.T) {
	stays := errors.New("stays")
	s := &Server{Device: newDown(t)}
	l := &fakeListener{errs: []error{syscall.EMFILE, &net.OpError{Op: "accept", Err: syscall.ECONNABORTED}, stays}}
	if err := s.Serve(l); !errors.Is(err, stays) || len(l.errs) != 0 || !l.closed {
		t.Errorf("Serve returned %v with %d errors of Accept left, listener closed: %v; want the permanent error, 0 and true", err, len(l.errs), l.closed)
	}
	if err := s.Serve(&fakeListener{errs: []error{net.ErrClosed}}); err != nil {
		t.Errorf("Serve returned %v, want nil after its listener is closed", err)
	}
	s.Close()
}

type fakeListener struct {
	net.Listener
	errs   []error
	closed bool
}

func (l *fakeListener) Accept() (net.Conn, error) {
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, err
}

func (l *fakeListener) Close() error { l.closed = true; return nil }

// TestServerLog checks that a refused request is logged with its reason, that a request that is carried out is logged
// only at Debug, and that neither line has a key.
func TestServerLog(t *testing.T) {
	var b lockedBuffer
	s := &Server{Device: newDown(t), Logger: slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	dial := serve(t, s)
	c := dial()
	c.send("set=1\nprivate_key=" + secret + "\npublic_key=" + hexKey(1) + "\npreshared_key=" + secret + "\n\nget=1\n\n")
	testkit.Eventually(t, "both requests are logged", func() bool { return strings.Count(b.String(), "control request") == 2 })
	if strings.Contains(b.String(), "WARN") {
		t.Errorf("the server logged a warning for requests that it carried out:\n%s", b.String())
	}
	c.send("set=1\npreshared_key" + secret + "\n\nset=1\nendpoint=" + secret + "\n\n" + secret + "\n")
	testkit.Eventually(t, "three refused requests are logged", func() bool { return strings.Count(b.String(), "WARN") == 3 })
	if !strings.Contains(b.String(), "line 2: want a key, = and a value") {
		t.Errorf("the log does not give the reason of the refusal:\n%s", b.String())
	}
	if strings.Contains(b.String(), "5ec7") {
		t.Errorf("the log contains a key:\n%s", b.String())
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestServerWhole checks that a get never shows only a part of a set that runs at the same time.
func TestServerWhole(t *testing.T) {
	dial := serve(t, &Server{Device: newDown(t)})
	const n = 50
	request := func(endpoint string) string {
		var b strings.Builder
		b.WriteString("set=1\n")
		for i := range n {
			fmt.Fprintf(&b, "public_key=%064x\nendpoint=%s\n", i+1, endpoint)
		}
		return b.String() + "\n"
	}
	writer, reader := dial(), dial()
	writer.send(request("192.0.2.1:1"))
	writer.wants("errno=0\n\n")
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 100 {
			io.WriteString(writer, request(fmt.Sprintf("192.0.2.%d:1", 1+i%2)))
		}
	})
	wg.Go(func() { io.Copy(io.Discard, io.LimitReader(writer, 100*int64(len("errno=0\n\n")))) })
	for range 100 {
		reader.send("get=1\n\n")
		var got []byte
		for b := make([]byte, 1<<16); !bytes.HasSuffix(got, []byte("errno=0\n\n")); {
			k, err := reader.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, b[:k]...)
		}
		if one := bytes.Count(got, []byte("endpoint=192.0.2.1:1")); one != 0 && one != n {
			t.Fatalf("a get showed a set half done: %d of %d peers were changed", n-one, n)
		}
	}
	wg.Wait()
}
