package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// HTTP is a proxy as RFC 9110 describes it. It serves CONNECT to any port, and requests whose target is an absolute "http" URL.
// The zero value serves every client.
//
// The proxy removes hop-by-hop header fields. It adds Via with a pseudonym to each request and response that it forwards, as
// section 7.6.3 demands, and adds no other field to a request. So a target learns that there is a proxy, but learns neither the
// proxy's address nor the client's. The proxy does not change the bytes that CONNECT relays.
//
// The status of the response tells a client why its request failed:
//
//   - 400: the request is not meant for a proxy.
//   - 403: the dialer refuses the target.
//   - 407: the username or the password is wrong or missing.
//   - 431: the header fields are too long.
//   - 502: the dial of the target, or the exchange with it, fails.
//   - 503: a limit of the Server is reached. Retry-After asks the client to wait for 10 seconds.
//   - 504: the target does not answer in time.
type HTTP struct {
	// Username and Password are the credentials that a client must send ("Basic", RFC 7617). If both are empty, clients need
	// neither.
	Username, Password string

	// Pseudonym names the proxy in Via. It consists of letters, digits and any of !#$%&'*+-.^_`|~. Empty means "proxy".
	Pseudonym string

	// TLS makes the server speak HTTPS with its clients. The tls.Config needs a certificate. Nil means that clients speak HTTP.
	TLS *tls.Config
}

const (
	maxHead       = 64 << 10        // the most bytes of header in a request or a response
	keepAlive     = 2 * time.Minute // the longest wait for a client's next request
	idleTargets   = 64              // how many idle connections to targets are kept
	idlePerTarget = 4               // how many of these may have the same target
	idleTarget    = 30 * time.Second
	retryAfter    = "10" // seconds that a client beyond a limit is asked to wait
)

// A web is the running state of the protocol HTTP. Package net/http parses what clients and targets send.
type web struct {
	HTTP
	server    *Server
	http      http.Server
	transport http.Transport
	forward   httputil.ReverseProxy
	feed      *feed
	draining  sync.Once
}

var errCertificate = errors.New("proxy: HTTP.TLS has no certificate; set Certificates or GetCertificate, or leave TLS nil")

func (p HTTP) start(s *Server) (service, error) {
	if t := p.TLS; t != nil {
		if len(t.Certificates) == 0 && t.GetCertificate == nil && t.GetConfigForClient == nil {
			return service{}, errCertificate
		}
		p.TLS = t.Clone()
		p.TLS.NextProtos = []string{"http/1.1"}
	}
	if strings.ContainsFunc(p.Pseudonym, notToken) {
		return service{}, fmt.Errorf("proxy: HTTP.Pseudonym is %q; use letters, digits and -", p.Pseudonym)
	}
	w := &web{HTTP: p, server: s, feed: &feed{conns: make(chan net.Conn), done: make(chan struct{})}}
	if w.Pseudonym == "" {
		w.Pseudonym = defaultPseudonym
	}
	silent := log.New(io.Discard, "", 0)
	w.transport = http.Transport{
		DialContext:            w.dial,
		DisableCompression:     true,
		MaxIdleConns:           idleTargets,
		MaxIdleConnsPerHost:    idlePerTarget,
		IdleConnTimeout:        idleTarget,
		ResponseHeaderTimeout:  s.idle(),
		MaxResponseHeaderBytes: maxHead,
	}
	w.forward = httputil.ReverseProxy{
		Rewrite:        w.rewrite,
		Transport:      w,
		FlushInterval:  -1, // forward each piece of a response at once
		ErrorLog:       silent,
		BufferPool:     buffers{},
		ModifyResponse: w.answer,
		ErrorHandler:   failExchange,
	}
	idle := keepAlive
	if d := s.idle(); d > 0 {
		idle = min(idle, d)
	}
	w.http = http.Server{
		Handler:           w,
		ReadHeaderTimeout: s.handshake(),
		IdleTimeout:       idle,
		MaxHeaderBytes:    maxHead,
		ErrorLog:          silent,
		Protocols:         new(http.Protocols),
		BaseContext:       func(net.Listener) context.Context { return s.context },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, webConnOf(c))
		},
		ConnState: w.changed,
	}
	w.http.Protocols.SetHTTP1(true)
	go func() { _ = w.http.Serve(w.feed) }() // Serve returns when drain closes feed
	context.AfterFunc(s.context, w.transport.CloseIdleConnections)
	return service{conn: w.take, refuses: true, drain: w.drain}, nil
}

// dial opens a connection to a target for the http.Transport. The transport does not cancel ctx when the server is closed, so
// dial derives a context that is canceled then.
func (w *web) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.server.context, cancel)()
	c, err := w.server.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &targetConn{Conn: c}, nil
}

// A targetConn is the http.Transport's connection to a target. If the target sends something while no request is open, Read
// returns io.EOF, because package net/http would write those bytes to the program's log.
type targetConn struct {
	net.Conn
	asked atomic.Int64 // how many requests on this connection have no complete response yet
}

func (c *targetConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.asked.Load() == 0 {
		return 0, io.EOF
	}
	return n, err
}

// CloseWrite half-closes the connection after an upgrade.
func (c *targetConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// RoundTrip sends a request of the ReverseProxy to its target. It adds a trace to the request after the ReverseProxy has
// added one, so the functions of RoundTrip's trace run before those of the ReverseProxy's.
func (w *web) RoundTrip(r *http.Request) (*http.Response, error) {
	return w.transport.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), w.trace(exchangeOf(r)))))
}

// trace returns functions that count the open requests on each targetConn. A flag would not suffice, because the next request may
// get the connection before PutIdleConn is called for the previous request. The functions also add Via to interim responses
// (1xx), which the ReverseProxy forwards.
func (w *web) trace(x *exchange) *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		Got1xxResponse: func(_ int, head textproto.MIMEHeader) error {
			w.via(http.Header(head), 1, 1) // version 1.1, because HTTP/1.0 has no interim responses
			return nil
		},
		GotConn: func(i httptrace.GotConnInfo) {
			c := i.Conn.(*targetConn)
			c.asked.Add(1)
			x.conn.Store(c)
		},
		PutIdleConn: func(err error) {
			if c := x.conn.Load(); err == nil && c != nil {
				c.asked.Add(-1)
			}
		},
	}
}

// take passes a client's connection to package net/http. The session of the connection ends in changed or, if a handler hijacks
// the connection, in endUpgrade or connect.
func (w *web) take(n *session) {
	wc := &webConn{Conn: n.conn(), session: n}
	var c net.Conn = wc
	if w.TLS != nil {
		c = tls.Server(wc, w.TLS)
	}
	select {
	case w.feed.conns <- c:
	case <-w.feed.done:
		n.end(errClosed)
	}
}

// drain closes the connections that wait for a client's next request.
func (w *web) drain() {
	w.draining.Do(func() {
		w.feed.Close()
		go func() { _ = w.http.Shutdown(w.server.context) }()
	})
}

var errNoRequest = errors.New("proxy: the client sent no HTTP request that could be read")

// changed is called by package net/http when the state of a connection changes. When a connection is closed, changed ends its
// session.
func (w *web) changed(c net.Conn, state http.ConnState) {
	wc := webConnOf(c)
	switch state {
	case http.StateHijacked:
		wc.hijacked = true
	case http.StateClosed:
		wc.session.silent = wc.requests > 0
		wc.session.end(errNoRequest)
	}
}

// An exchange is a request and its response.
type exchange struct {
	report         Report
	sent, received atomic.Int64
	conn           atomic.Pointer[targetConn] // the connection that carries the request
	err            error
	head           http.Header // of the response to the client
}

type exchangeKey struct{}

// ServeHTTP serves one request. It relays a CONNECT on another goroutine, so that package net/http can free the memory of the
// request.
func (w *web) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	wc := r.Context().Value(connKey{}).(*webConn)
	wc.requests++
	x := &exchange{report: Report{Client: wc.RemoteAddr(), Start: time.Now()}}
	switch {
	case wc.session.refused:
		rw.Header().Set("Retry-After", retryAfter)
		rw.Header().Set("Connection", "close")
		x.refuse(rw, http.StatusServiceUnavailable, ErrLimit)
		w.tell(x)
	case !w.authentic(r):
		rw.Header().Set("Proxy-Authenticate", `Basic realm="proxy"`)
		x.refuse(rw, http.StatusProxyAuthRequired, errAuthentication)
		w.tell(x)
	case r.Method == http.MethodConnect:
		x.report.Username = w.Username
		if !w.connect(rw, r, wc, x) {
			w.tell(x)
		}
	default:
		x.report.Username = w.Username
		defer w.tell(x) // deferred, because the ReverseProxy panics to abort a response
		defer endUpgrade(wc)
		w.exchange(rw, r, x)
	}
}

// tell passes the report of an exchange to Server.Done.
func (w *web) tell(x *exchange) {
	if w.server.Done == nil {
		return
	}
	x.report.Sent, x.report.Received, x.report.Err = x.sent.Load(), x.received.Load(), x.err
	x.report.Duration = time.Since(x.report.Start)
	w.server.Done(x.report)
}

// endUpgrade ends the session of a connection that the ReverseProxy has upgraded.
func endUpgrade(wc *webConn) {
	if wc.hijacked {
		wc.session.silent = true
		wc.session.end(nil)
	}
}

var (
	errAuthentication = errors.New("proxy: wrong or no username and password")
	errInterrupted    = errors.New("proxy: the target or the client closed the connection in the middle of an answer")
	errLastHop        = errors.New("proxy: Max-Forwards is not a positive number, and this proxy does not answer OPTIONS and TRACE itself")
	errNotForProxy    = errors.New(`proxy: a request for a proxy must be CONNECT host:port or have an absolute URL that begins with "http://"`)
)

// authentic reports whether a request has the right credentials.
func (w *web) authentic(r *http.Request) bool {
	if w.Username == "" && w.Password == "" {
		return true
	}
	username, password, ok := (&http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth()
	return ok && same(username, w.Username, password, w.Password)
}

// refuse answers a request with an error status, and records err in the exchange.
func (x *exchange) refuse(rw http.ResponseWriter, status int, err error) {
	x.err = err
	http.Error(rw, err.Error(), status)
}

// statusOf returns the status for a failed dial or exchange.
func statusOf(err error) int {
	switch failureOf(err) {
	case forbidden:
		return http.StatusForbidden
	case timedOut:
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// connect serves CONNECT. It returns true if the session relays the connection from now on; the report of the session then
// replaces that of the exchange.
func (w *web) connect(rw http.ResponseWriter, r *http.Request, wc *webConn, x *exchange) bool {
	target := r.Host
	x.report.Target = target
	if host, port, err := net.SplitHostPort(target); err != nil || host == "" || port == "" || r.RequestURI != target {
		rw.Header().Set("Connection", "close")
		x.refuse(rw, http.StatusBadRequest, errNotForProxy)
		return false
	}
	to, err := w.server.dial(w.server.context, "tcp", target) // r.Context() ends if the client half-closes its connection
	if err != nil {
		rw.Header().Set("Connection", "close") // what the client has already sent through the tunnel is not a request
		x.refuse(rw, statusOf(err), fmt.Errorf("proxy: dial %s: %w", target, err))
		return false
	}
	c, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		_ = to.Close()
		x.refuse(rw, http.StatusInternalServerError, err)
		return false
	}
	n := wc.session
	n.report.Target, n.report.Username = target, w.Username
	n.own(to)
	early, _ := buffered.Reader.Peek(buffered.Reader.Buffered())
	early = append([]byte(nil), early...)
	if plain, ok := c.(*webConn); ok {
		c = plain.Conn
	}
	go func() { n.end(n.tunnel(c, to, early)) }()
	return true
}

// tunnel tells the client that its CONNECT has succeeded, and relays between the client (c) and the target (to). early holds
// the bytes that the client has already sent for the target.
func (n *session) tunnel(c, to net.Conn, early []byte) error {
	_ = c.SetDeadline(time.Time{})
	if _, err := io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return err
	}
	if err := n.first(to, early); err != nil {
		return err
	}
	return n.relay(c, to)
}

// exchange serves a request with an absolute URL.
func (w *web) exchange(rw http.ResponseWriter, r *http.Request, x *exchange) {
	if r.URL.Scheme != "http" || r.URL.Host == "" {
		x.refuse(rw, http.StatusBadRequest, errNotForProxy)
		return
	}
	x.report.Target = r.URL.Host
	if r.URL.Port() == "" {
		x.report.Target = net.JoinHostPort(r.URL.Hostname(), "80")
	}
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &countedBody{r.Body, &x.sent}
	}
	if f := r.Header.Get("Max-Forwards"); f != "" && (r.Method == http.MethodOptions || r.Method == http.MethodTrace) {
		n, err := strconv.ParseUint(f, 10, 31)
		if err != nil || n == 0 {
			x.refuse(rw, http.StatusBadRequest, errLastHop)
			return
		}
		r.Header.Set("Max-Forwards", strconv.FormatUint(n-1, 10))
	}
	x.err, x.head = errInterrupted, rw.Header()
	w.forward.ServeHTTP(rw, r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x)))
	if x.err == errInterrupted { // ServeHTTP did not panic, and did not call failExchange
		x.err = nil
	}
}

// rewrite adds Via to a request, and undoes those changes of the ReverseProxy that suit a reverse proxy in front of its own
// servers, but not a forward proxy.
func (w *web) rewrite(p *httputil.ProxyRequest) {
	w.via(p.Out.Header, p.In.ProtoMajor, p.In.ProtoMinor)
	p.Out.Host = p.In.Host
	if p.In.Method == http.MethodOptions && p.In.URL.Path == "" && p.In.URL.RawQuery == "" && !p.In.URL.ForceQuery {
		p.Out.URL.Path = "*" // RFC 9112, section 3.2.4
	}
	p.Out.URL.RawQuery = p.In.URL.RawQuery
	for _, field := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := p.In.Header[field]; ok {
			p.Out.Header[field] = v
		}
	}
}

func exchangeOf(r *http.Request) *exchange { return r.Context().Value(exchangeKey{}).(*exchange) }

// answer adds Via to a response, and replaces its body by one that counts bytes. After an upgrade, the body carries the bytes of
// both directions.
func (w *web) answer(a *http.Response) error {
	w.via(a.Header, a.ProtoMajor, a.ProtoMinor)
	x := exchangeOf(a.Request)
	if _, ok := a.Header["Content-Type"]; !ok {
		x.head["Content-Type"] = nil // so package net/http does not guess one from the body
	}
	if both, ok := a.Body.(io.ReadWriteCloser); ok && a.StatusCode == http.StatusSwitchingProtocols {
		a.Body = &countedUpgrade{both, x}
	} else {
		a.Body = &countedBody{a.Body, &x.received}
	}
	return nil
}

func failExchange(rw http.ResponseWriter, r *http.Request, err error) {
	exchangeOf(r).refuse(rw, statusOf(err), fmt.Errorf("proxy: request to %s: %w", r.URL.Host, err))
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

type countedUpgrade struct {
	io.ReadWriteCloser
	x *exchange
}

func (u *countedUpgrade) Read(p []byte) (int, error) {
	n, err := u.ReadWriteCloser.Read(p)
	u.x.received.Add(int64(n))
	return n, err
}

func (u *countedUpgrade) Write(p []byte) (int, error) {
	n, err := u.ReadWriteCloser.Write(p)
	u.x.sent.Add(int64(n))
	return n, err
}

// CloseWrite half-closes an upgraded connection.
func (u *countedUpgrade) CloseWrite() error {
	if cw, ok := u.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// buffers gives the ReverseProxy the large buffers that relays use.
type buffers struct{}

func (buffers) Get() []byte  { return *largeBuffers.Get().(*[]byte) }
func (buffers) Put(b []byte) { largeBuffers.Put(&b) }
