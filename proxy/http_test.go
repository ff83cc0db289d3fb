package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// webTarget starts a web server whose responses contain the request.
func webTarget(t testing.TB, secure bool) *httptest.Server {
	t.Helper()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "from the target")
		fmt.Fprintf(w, "%s %s host=%s auth=%q hop=%q fields=%v body=%s", r.Method, r.RequestURI, r.Host, r.Header["Proxy-Authorization"], r.Header["X-Hop"],
			slices.Sorted(maps.Keys(r.Header)), body)
	})
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = nil
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

// certificate returns the certificate of httptest, for 127.0.0.1 and example.com, and a client that trusts it.
func certificate(t testing.TB) (*tls.Config, *http.Client) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	return &tls.Config{Certificates: s.TLS.Certificates}, s.Client()
}

// TestHTTPRequests checks that requests with an absolute URL reach their host on one connection. They must arrive without
// hop-by-hop header fields, and except for Via without fields that the client did not send.
func TestHTTPRequests(t *testing.T) {
	web := webTarget(t, false)
	addr, done := serve(t, &Server{Protocol: HTTP{Username: "u", Password: "p"}, DialContext: to(web.Listener.Addr().String(), nil)})
	c := dial(t, addr)
	r := bufio.NewReader(c)
	for i := range 3 {
		write(t, c, "POST http://example.com/path?q=%zz;a HTTP/1.1\r\nHost: other\r\nProxy-Authorization: Basic dTpw\r\nProxy-Connection: keep-alive\r\n"+
			"Connection: X-Hop\r\nX-Hop: x\r\nX-Own: x\r\nContent-Length: 4\r\n\r\nbody")
		a, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(a.Body)
		want := `POST /path?q=%zz;a host=example.com auth=[] hop=[] fields=[Content-Length Via X-Own] body=body`
		if a.StatusCode != 200 || string(body) != want || a.Header.Get("X-Hop") != "" {
			t.Errorf("request %d: status %d, X-Hop %q and body %q, want status 200, no X-Hop and body %q", i, a.StatusCode, a.Header.Get("X-Hop"), body, want)
		}
		if r := done.next(t); r.Err != nil || r.Target != "example.com:80" || r.Sent != 4 || r.Received != int64(len(want)) || r.Username != "u" {
			t.Errorf("report: %+v, want no error, the target example.com:80, the lengths of both bodies and the username u", r)
		}
	}
}

// TestVia checks that the proxy adds Via to a request and to its responses, also to interim responses. Via has the HTTP version
// of the received message and the proxy's pseudonym, and comes after the Via of earlier proxies. The proxy's own responses must
// have no Via.
func TestVia(t *testing.T) {
	addr := target(t, func(c *net.TCPConn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		via := strings.Join(r.Header["Via"], ", ")
		fmt.Fprintf(c, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.0 200 OK\r\nVia: 1.1 far\r\nContent-Length: %d\r\n\r\n%s", len(via), via)
	})
	for pseudonym, name := range map[string]string{"": "proxy", "gate-7": "gate-7"} {
		at, _ := serve(t, &Server{Protocol: HTTP{Pseudonym: pseudonym}, DialContext: to(addr, nil)})
		c := dial(t, at)
		write(t, c, "GET http://x/ HTTP/1.1\r\nHost: x\r\nVia: 1.0 near\r\n\r\n")
		want(t, "the interim answer", c, "HTTP/1.1 103 Early Hints\r\nLink: x\r\nVia: 1.1 "+name+"\r\n\r\n")
		r := bufio.NewReader(c)
		a, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(a.Body)
		if got := strings.Join(a.Header["Via"], ", "); got != "1.1 far, 1.0 "+name || string(body) != "1.0 near, 1.1 "+name {
			t.Errorf("the response has Via %q, and the request had Via %q; want the proxy's entry after that of the earlier proxy in both", got, body)
		}
		write(t, c, "CONNECT x HTTP/1.1\r\nHost: x\r\n\r\n")
		if a, err := http.ReadResponse(r, nil); err != nil || a.Header["Via"] != nil {
			t.Errorf("the proxy's own response is %v, %v, want one without Via", a, err)
		}
	}
	if err := (&Server{Protocol: HTTP{Pseudonym: "my proxy"}}).Serve(&feed{done: make(chan struct{})}); err == nil || !strings.Contains(err.Error(), "Pseudonym") {
		t.Errorf("Serve with a space in Pseudonym: %v, want an error that names Pseudonym", err)
	}
}

// A safeBuffer is a bytes.Buffer for several goroutines.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestHTTPStatus checks that the proxy answers each failure with the right status, and that no failure writes to the program's
// log.
func TestHTTPStatus(t *testing.T) {
	var logged safeBuffer
	log.SetOutput(&logged)
	defer func() {
		log.SetOutput(os.Stderr)
		if s := logged.String(); s != "" {
			t.Errorf("the program's log has %q, want nothing", s)
		}
	}()
	refused := failing(errors.New("broken"))
	for name, c := range map[string]struct {
		p      HTTP
		dial   func(context.Context, string, string) (net.Conn, error)
		send   string
		status int
	}{
		"not for a proxy":     {HTTP{}, refused, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		"https by the proxy":  {HTTP{}, refused, "GET https://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		"CONNECT, no port":    {HTTP{}, refused, "CONNECT x HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		"garbage":             {HTTP{}, refused, "\x16\x03\x01\r\n\r\n", 400},
		"a head too long":     {HTTP{}, refused, "GET http://x/ HTTP/1.1\r\nA: " + strings.Repeat("a", 2*maxHead) + "\r\n\r\n", 431},
		"no password":         {HTTP{Password: "p"}, refused, "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 407},
		"wrong password":      {HTTP{Username: "u", Password: "p"}, refused, "GET http://x/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic dTp4\r\n\r\n", 407},
		"refused by policy":   {HTTP{}, failing(fs.ErrPermission), "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 403},
		"refused, a request":  {HTTP{}, failing(fs.ErrPermission), "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 403},
		"no answer":           {HTTP{}, failing(context.DeadlineExceeded), "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 504},
		"no answer, request":  {HTTP{}, failing(context.DeadlineExceeded), "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 504},
		"broken":              {HTTP{}, refused, "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 502},
		"broken, a request":   {HTTP{}, refused, "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 502},
		"an answer not HTTP":  {HTTP{}, to(target(t, func(c *net.TCPConn) { _, _ = c.Write([]byte("SSH-2.0\r\n")) }), nil), "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 502},
		"an answer that ends": {HTTP{}, to(target(t, func(*net.TCPConn) {}), nil), "POST http://x/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 502},
	} {
		t.Run(name, func(t *testing.T) {
			addr, done := serve(t, &Server{Protocol: c.p, DialContext: c.dial})
			conn := dial(t, addr)
			write(t, conn, c.send)
			a, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || a.StatusCode != c.status || c.status == 407 && a.Header.Get("Proxy-Authenticate") == "" {
				t.Errorf("the response is %v, %v, want status %d", a, err, c.status)
			}
			conn.Close()
			if r := done.next(t); r.Err == nil {
				t.Errorf("the report of a failed request has no error: %+v", r)
			}
		})
	}
}

// TestHTTPConnect checks that CONNECT relays data, including data that the client sends early, that it supports half-close, and
// that it is reported.
func TestHTTPConnect(t *testing.T) {
	upper := target(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		_, _ = c.Write(bytes.ToUpper(b))
	})
	addr, done := serve(t, &Server{Protocol: HTTP{}, DialContext: to(upper, nil)})
	c := dial(t, addr)
	write(t, c, "CONNECT example.com:22 HTTP/1.1\r\nHost: example.com:22\r\n\r\nearly ")
	want(t, "the answer", c, "HTTP/1.1 200 Connection established\r\n\r\n")
	write(t, c, "late")
	_ = c.CloseWrite()
	if got := wantEnd(t, "after the target's answer", c); got != "EARLY LATE" {
		t.Errorf("the client read %q, want EARLY LATE", got)
	}
	if r := done.next(t); r.Err != nil || r.Sent != 10 || r.Received != 10 || r.Target != "example.com:22" {
		t.Errorf("report: %+v, want no error, 10 bytes in each direction and the target example.com:22", r)
	}
}

// TestHTTPUpgrade checks that the proxy relays and reports a connection that switches to another protocol.
func TestHTTPUpgrade(t *testing.T) {
	up := target(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			_, _ = io.Copy(c, r)
		}
	})
	addr, done := serve(t, &Server{Protocol: HTTP{}, DialContext: to(up, nil)})
	c := dial(t, addr)
	write(t, c, "GET http://x/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	r := bufio.NewReader(c)
	if a, err := http.ReadResponse(r, nil); err != nil || a.StatusCode != 101 {
		t.Fatalf("the response is %v, %v, want status 101", a, err)
	}
	write(t, c, "ping")
	want(t, "the echo", r, "ping")
	c.Close()
	if r := done.next(t); r.Sent != 4 || r.Received != 4 {
		t.Errorf("report: %+v, want 4 bytes in each direction", r)
	}
}

// TestHTTPS checks that clients reach the proxy over TLS, and through it servers with and without TLS.
func TestHTTPS(t *testing.T) {
	config, client := certificate(t)
	addr, done := serve(t, &Server{Protocol: HTTP{TLS: config}})
	web, secure := webTarget(t, false), webTarget(t, true)
	transport := client.Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.InsecureSkipVerify = true // the certificate of secure has another key
	transport.Proxy = http.ProxyURL(&url.URL{Scheme: "https", Host: addr})
	defer transport.CloseIdleConnections()
	for _, target := range []string{web.URL, secure.URL} {
		a, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Get(target + "/x")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(a.Body)
		a.Body.Close()
		if !strings.HasPrefix(string(body), "GET /x host=127.0.0.1") {
			t.Errorf("%s: the body is %q, want one that begins with GET /x host=127.0.0.1", target, body)
		}
	}
	if r := done.next(t); r.Err != nil || r.Target != web.Listener.Addr().String() {
		t.Errorf("report: %+v, want no error and the address of the web server without TLS", r)
	}
	if err := (&Server{Protocol: HTTP{TLS: &tls.Config{}}}).Serve(&feed{done: make(chan struct{})}); !errors.Is(err, errCertificate) {
		t.Errorf("Serve without a certificate: %v, want errCertificate", err)
	}
}

// TestShutdown checks that Shutdown waits for open connections and requests, and closes HTTP connections that wait for a request.
func TestShutdown(t *testing.T) {
	for name, c := range map[string]struct {
		p          Protocol
		ask, reply string
		busy       bool
	}{
		"idle":    {HTTP{}, "GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\n", false},
		"CONNECT": {HTTP{}, "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 Connection established\r\n\r\n", true},
		"SOCKS":   {SOCKS5{}, hello + connectName("x"), helloAnswer + "\x05\x00", true},
	} {
		t.Run(name, func(t *testing.T) {
			address := target(t, echo)
			if !c.busy {
				address = webTarget(t, false).Listener.Addr().String()
			}
			s := &Server{Protocol: c.p, DialContext: to(address, nil)}
			addr, done := serve(t, s)
			conn := dial(t, addr)
			write(t, conn, c.ask)
			want(t, "the answer", conn, c.reply)
			if !c.busy {
				done.next(t) // the report of the request
			}
			ended := make(chan error, 1)
			go func() { ended <- s.Shutdown(t.Context()) }()
			if c.busy {
				select {
				case err := <-ended:
					t.Fatalf("Shutdown returned %v while a connection was open", err)
				case <-time.After(20 * time.Millisecond):
				}
				write(t, conn, "still")
				_ = conn.CloseWrite()
			}
			if rest := wantEnd(t, "when Shutdown has ended", conn); c.busy && !strings.HasSuffix(rest, "still") {
				t.Errorf("the client read %q after its last bytes, want an echo that ends with still", rest)
			}
			if err := <-ended; err != nil {
				t.Errorf("Shutdown: %v, want no error", err)
			}
		})
	}
	s := &Server{Protocol: SOCKS5{}, DialContext: to(target(t, echo), nil)}
	addr, _ := serve(t, s)
	c := dial(t, addr)
	write(t, c, hello+connectName("x"))
	wantReply(t, c, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown with a deadline: %v, want context.DeadlineExceeded", err)
	}
	wantEnd(t, "after the deadline of Shutdown", c)
}

// TestCurl fetches pages with curl through SOCKS, HTTP and HTTPS proxies, from servers with and without TLS. Only the dialer
// knows the names of the servers.
func TestCurl(t *testing.T) {
	curl := tool(t, "curl", "curl")
	web, secure := webTarget(t, false), webTarget(t, true)
	config, _ := certificate(t)
	dialer := func(ctx context.Context, network, address string) (net.Conn, error) {
		_, port, _ := net.SplitHostPort(address)
		at := map[string]string{"80": web.Listener.Addr().String(), "443": secure.Listener.Addr().String()}[port]
		if at == "" {
			return nil, fs.ErrPermission
		}
		return new(net.Dialer).DialContext(ctx, network, at)
	}
	server := func(p Protocol) string {
		addr, _ := serve(t, &Server{Protocol: p, DialContext: dialer})
		return addr
	}
	socks, plain, tlsProxy := server(SOCKS5{Username: "u", Password: "p"}), server(HTTP{Username: "u", Password: "p"}), server(HTTP{TLS: config})
	for _, proxy := range []string{"socks5://u:p@" + socks, "socks5h://u:p@" + socks, "http://u:p@" + plain, "https://" + tlsProxy} {
		for _, scheme := range []string{"http", "https"} {
			host := "only.in.the.tunnel"
			if strings.HasPrefix(proxy, "socks5:") {
				host = "192.0.2.1"
			}
			out, err := exec.Command(curl, "-sSk", "--proxy-insecure", "--max-time", "20", "-d", "body", "-x", proxy, scheme+"://"+host+"/x").CombinedOutput()
			if want := "POST /x host=" + host; err != nil || !strings.HasPrefix(string(out), want) || !strings.HasSuffix(string(out), "body=body") {
				t.Errorf("%s over %s: curl prints %s, %v, want an answer that begins with %s and ends with body=body", scheme, proxy, out, err, want)
			}
		}
	}
	// curl's error messages show how the proxy refused: exit code 97 for a SOCKS failure, and the HTTP status.
	out, _ := exec.Command(curl, "-sS", "--max-time", "20", "-x", "socks5h://u:p@"+socks, "http://x:81/").CombinedOutput()
	if !strings.Contains(string(out), "(97)") {
		t.Errorf("curl prints %s for a target that the SOCKS proxy refuses, want exit code 97", out)
	}
	out, _ = exec.Command(curl, "-sS", "--max-time", "20", "-x", "http://u:x@"+plain, "https://x/").CombinedOutput()
	if !strings.Contains(string(out), "407") {
		t.Errorf("curl prints %s after a wrong password, want status 407", out)
	}
}

// FuzzHTTP checks that the responses are complete whatever a client sends, and that the server dials nothing for a client without
// the password.
func FuzzHTTP(f *testing.F) {
	f.Add([]byte("CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n"))
	f.Add([]byte("GET http://x/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic dTpx\r\n\r\n"))
	f.Add([]byte("POST http://x/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))
	s := &Server{Protocol: HTTP{Username: "u", Password: "secret, long and unlikely"}, HandshakeTimeout: 5 * time.Second}
	dialed := make(chan string, 1)
	s.DialContext = func(_ context.Context, _, address string) (net.Conn, error) {
		dialed <- address
		return nil, fs.ErrPermission
	}
	addr, _ := serve(f, s)
	s.Done = nil
	f.Fuzz(func(t *testing.T, b []byte) {
		c := dial(t, addr)
		_, _ = c.Write(b)
		_ = c.CloseWrite()
		for r := bufio.NewReader(c); ; {
			a, err := http.ReadResponse(r, nil)
			if err != nil {
				break
			}
			_, err = io.Copy(io.Discard, a.Body)
			if a.StatusCode < 300 && a.StatusCode != 100 || err != nil && a.ContentLength > 0 {
				var reset *net.OpError
				if !errors.As(err, &reset) {
					t.Errorf("status %d, %v, want an error status and a complete body", a.StatusCode, err)
				}
			}
		}
		select {
		case address := <-dialed:
			t.Errorf("dialed %q without a password", address)
		default:
		}
	})
}
