package uapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// A Server answers requests about one device. Device must be set; the zero value of any other field means its default. After the
// first Serve, do not copy the Server and do not change its fields. Its methods are safe for concurrent use.
type Server struct {
	Device *wireguard.Device // the device that requests read and change

	// Bind is the Bind of Device. With Bind, the server checks the port that a set request names for a device that is down: it
	// opens the port, closes it at once, and refuses the request if that fails. Without this check, a port in use would cause no
	// error until the device goes up. Nil means that the server does not check.
	Bind wireguard.Bind

	// Logger gets a line for each request: at level Debug if the request succeeds, and at Warn with the reason if it is refused.
	// The lines contain no secret key. Nil means no log.
	Logger *slog.Logger

	// MaxConns is the largest number of connections. To accept one more, the server closes the connection that has been idle
	// longest. If every connection is in the middle of a request, the server closes the new one instead. Zero means 64.
	MaxConns int

	// MaxRequest is the largest total size, in bytes, of the set requests that are being read on all connections. A parsed
	// request takes several times as much memory. Zero means 64 MiB.
	MaxRequest int

	// Timeout is how long a connection may be idle, and how long a request and its answer may take together. Zero means 2
	// minutes.
	Timeout time.Duration

	inUse atomic.Int64 // the bytes of set requests that are being read
	// config prevents a set request from changing the device while a get request composes a part of its answer. No goroutine holds
	// config during a read from a connection or a write to one.
	config sync.RWMutex

	mu        sync.Mutex // guards the fields below; no other lock is taken while it is held
	closed    bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	wg        sync.WaitGroup // one goroutine per connection
}

// A conn is a connection to the control socket.
type conn struct {
	net.Conn
	idle time.Time // when the connection began to wait for a request; zero during a request; guarded by the server's mu
}

const (
	maxConns = 64
	timeout  = 2 * time.Minute
)

func orDefault[T int | time.Duration](v, d T) T {
	if v <= 0 {
		return d
	}
	return v
}

// Serve answers the connections that l accepts until l fails, and closes l. It returns nil after Close of the Server or of l. If
// the socket's file is removed or replaced, the error wraps os.ErrNotExist; a daemon should then exit, as users of wg-quick
// expect. Open connections are served until the Server is closed.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	if !s.add(l) {
		return nil
	}
	defer s.forget(l)
	for wait := time.Duration(0); ; {
		c, err := l.Accept()
		switch {
		case err == nil:
			wait = 0
			s.admit(c)
		case errors.Is(err, os.ErrNotExist):
			return err
		case s.isClosed() || errors.Is(err, net.ErrClosed):
			return nil
		case isPassing(err):
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			s.log(slog.LevelWarn, "the control socket cannot accept a connection now", "err", err)
			time.Sleep(wait)
		default:
			return fmt.Errorf("uapi: accept: %w", err)
		}
	}
}

// isPassing reports whether the next Accept may succeed after this error.
func isPassing(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) ||
		errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}

// Close closes the listeners and all connections, and waits for the requests in progress. Closing again does nothing.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *Server) add(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if s.listeners == nil {
		s.listeners = make(map[net.Listener]struct{})
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) forget(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

// admit starts to serve a new connection, or closes it if there are too many.
func (s *Server) admit(nc net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || !s.makeRoom() {
		nc.Close()
		return
	}
	c := &conn{Conn: nc, idle: time.Now()}
	if s.conns == nil {
		s.conns = make(map[*conn]struct{})
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	go s.serve(c)
}

// makeRoom reports whether one more connection is allowed. If MaxConns connections are open, makeRoom closes the one that has been
// idle longest. The caller holds mu.
func (s *Server) makeRoom() bool {
	if len(s.conns) < orDefault(s.MaxConns, maxConns) {
		return true
	}
	var longest *conn
	for c := range s.conns {
		if !c.idle.IsZero() && (longest == nil || c.idle.Before(longest.idle)) {
			longest = c
		}
	}
	if longest == nil {
		return false
	}
	longest.Close()
	delete(s.conns, longest)
	return true
}

// setIdle records whether c waits for a request, and restarts the timeout of c.
func (s *Server) setIdle(c *conn, idle bool) {
	now := time.Now()
	c.SetDeadline(now.Add(orDefault(s.Timeout, timeout)))
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.idle = (time.Time{}); idle {
		c.idle = now
	}
}

// serve answers the requests of one connection in order. A client may send further requests before it has the answer to the first.
func (s *Server) serve(c *conn) {
	defer s.wg.Done()
	defer func() {
		c.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
	}()
	r := bufio.NewReaderSize(c, readBuffer)
	for {
		s.setIdle(c, true)
		if _, err := r.Peek(1); err != nil {
			return
		}
		s.setIdle(c, false)
		if !s.answer(c, r) {
			return
		}
	}
}

// answer reads one request and answers it. It reports whether another request can follow.
func (s *Server) answer(c net.Conn, r *bufio.Reader) bool {
	lines := lineReader{r: r, inUse: &s.inUse, limit: int64(orDefault(s.MaxRequest, maxRequest))}
	operation, err := lines.next()
	out := answerWriter{conn: c, config: &s.config}
	body := bufio.NewWriter(&out)
	known := true
	switch {
	case err != nil:
		known = false
	case string(operation) == "get=1":
		body = bufio.NewWriterSize(&out, answerBuffer)
		err = s.get(&out, body, &lines)
	case string(operation) == "set=1":
		err = s.set(&lines)
	default:
		known, err = false, &Error{errnoProtocol, errors.New("want get=1 or set=1 on the first line of a request")}
	}
	lines.done() // before the answer, because a client may send its next request as soon as it has the answer
	errno := 0
	var refused *Error
	if errors.As(err, &refused) {
		errno = refused.Errno
	}
	s.logRequest(lines.n, err)
	if known && lines.skip() != nil {
		return false // the connection has ended, so nobody waits for an answer
	}
	if errno == 0 {
		body.WriteString("errno=0\n\n")
	} else {
		fmt.Fprintf(body, "errno=-%d\n\n", errno)
	}
	return body.Flush() == nil && known
}

var errGet = errors.New("want an empty line after get=1")

// get writes the answer to body, which is a buffer in front of out.
func (s *Server) get(out *answerWriter, body *bufio.Writer, lines *lineReader) error {
	line, err := lines.next()
	if err != nil {
		return err
	}
	if len(line) > 0 {
		return lines.errorf(errnoInvalid, "%w", errGet)
	}
	out.lock()
	defer out.unlock()
	writeDevice(body, s.Device)
	return nil
}

// answerBuffer is the number of bytes of an answer that are written at a time. No set request changes the device while a get
// request composes these bytes. So an answer of at most this size shows the device at one moment.
const answerBuffer = 64 << 10

// An answerWriter writes to a connection. Between lock and unlock, it holds the server's mutex config, except while it writes. So
// a client that reads slowly does not delay other clients.
type answerWriter struct {
	conn   net.Conn
	config *sync.RWMutex
	locked bool
}

func (w *answerWriter) lock() {
	w.config.RLock()
	w.locked = true
}

func (w *answerWriter) unlock() {
	w.config.RUnlock()
	w.locked = false
}

func (w *answerWriter) Write(b []byte) (int, error) {
	if w.locked {
		w.unlock()
		defer w.lock()
	}
	return w.conn.Write(b)
}

func (s *Server) set(lines *lineReader) error {
	q, err := readRequest(lines)
	if err != nil {
		return err
	}
	s.config.Lock()
	defer s.config.Unlock()
	if err := s.tryPort(q.change.ListenPort); err != nil {
		return &Error{errnoOf(err, true), err}
	}
	return q.apply(s.Device)
}

// tryPort checks whether the device can use a port later, if the device is down: it opens the port and closes it again.
func (s *Server) tryPort(port *uint16) error {
	if s.Bind == nil || port == nil || *port == 0 || s.Device.Status().Up {
		return nil
	}
	socket, err := s.Bind.Listen(*port)
	switch {
	case err == nil:
		return socket.Close()
	case s.Device.Status().Up: // the device came up after the first check and may use this port itself, so Configure decides
		return nil
	}
	return err
}

func (s *Server) logRequest(lines int, err error) {
	if errors.Is(err, net.ErrClosed) {
		return // Close was called during the request
	}
	if err != nil {
		s.log(slog.LevelWarn, "control request refused", "err", err)
		return
	}
	s.log(slog.LevelDebug, "control request", "lines", lines)
}

func (s *Server) log(l slog.Level, msg string, args ...any) {
	if s.Logger != nil {
		s.Logger.Log(context.Background(), l, "uapi: "+msg, args...)
	}
}
