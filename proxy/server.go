package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// A Server serves connections of one Protocol. Set the fields before the first call of Serve or ServePacket, and do not change
// them afterwards. The zero value with a Protocol is ready to use. A Server is safe for concurrent use and must not be copied.
type Server struct {
	// Protocol is what the clients speak: SOCKS5, HTTP, SNI or Forward. Serve and ServePacket fail if it is nil.
	Protocol Protocol

	// DialContext opens connections to targets. The network is "tcp", or "udp" for the datagrams of a Forward and to resolve the
	// names in SOCKS datagrams. Nil means the host's network, as with net.Dialer.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)

	// ListenPacket opens the sockets from which SOCKS UDP associations reach their targets. Its arguments are "udp" and ":0". Nil
	// means that UDP ASSOCIATE is refused.
	ListenPacket func(network, address string) (net.PacketConn, error)

	// Done gets the report of each connection that has ended. The server calls Done on the goroutine of the connection, or on the
	// goroutine of Serve if it closes the connection right after accepting it. Nil means that nobody gets the reports.
	Done func(Report)

	// MaxConns is the maximum number of connections at the same time, and also of flows on each UDP socket. The server
	// refuses a connection beyond the limit with an error code of the protocol: SOCKS code 1, HTTP status 503, or a TLS alert
	// from SNI. To send the code, the server serves the connection for up to 5 seconds. The server closes the connection
	// without a code if it is already refusing 64 other connections, or if Protocol is a Forward. A new UDP flow beyond the
	// limit replaces the flow whose client has been silent for longest. Zero means 4,096.
	MaxConns int

	// MaxConnsPerClient is the same limit for each client. All connections from one IPv4 address, or from one IPv6 prefix of
	// 64 bits, count as those of one client. A new UDP flow beyond this limit replaces a flow of the same client. Zero means
	// half of MaxConns.
	MaxConnsPerClient int

	// HandshakeTimeout is how long a client may take until its request is complete, from the moment it connects. Zero means 30
	// seconds; negative means no limit.
	HandshakeTimeout time.Duration

	// DialTimeout is how long a dial may take. Zero means 30 seconds; negative means that the dialer decides.
	DialTimeout time.Duration

	// IdleTimeout is how long a connection may carry nothing in either direction. The server closes an idle connection then, or
	// at most a quarter of IdleTimeout later. Zero means 124 minutes for TCP, and 5 minutes for flows of UDP; negative means no
	// limit.
	IdleTimeout time.Duration

	once    sync.Once // starts the protocol
	service service
	failed  error // why the protocol did not start

	mu        sync.Mutex // guards the rest
	context   context.Context
	cancel    context.CancelFunc
	draining  bool // Close or Shutdown was called, so no further connections are accepted
	listeners map[interface{ Close() error }]bool
	sessions  map[*session]bool
	conns     int                  // how many connections are admitted; UDP flows and refused connections do not count
	refused   int                  // how many connections beyond a limit still get their error code
	clients   map[netip.Prefix]int // admitted connections by client
	empty     chan struct{}        // closed once drain was called and the last session has ended; nil before drain
}

// Serve accepts connections until l fails or the server is closed. It closes l. After Close or Shutdown its error wraps
// net.ErrClosed.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	if err := s.begin(l); err != nil {
		return err
	}
	defer s.leave(l)
	for pause := minPause; ; {
		c, err := l.Accept()
		switch {
		case err == nil:
			pause = minPause
			s.accept(c)
			continue
		case s.stopped():
			return fmt.Errorf("proxy: serve on %v: %w", l.Addr(), net.ErrClosed)
		case !passing(err):
			return fmt.Errorf("proxy: accept on %v: %w", l.Addr(), err)
		}
		if !s.sleep(pause) {
			continue // the server was closed, so Accept fails at once
		}
		pause = min(2*pause, maxPause)
	}
}

// ServePacket serves the datagrams of c until c fails or the server is closed. It closes c. Only a Forward serves datagrams; with
// another Protocol, ServePacket fails. After Close or Shutdown its error wraps net.ErrClosed.
func (s *Server) ServePacket(c net.PacketConn) error {
	defer c.Close()
	if err := s.begin(c); err != nil {
		return err
	}
	defer s.leave(c)
	if s.service.packets == nil {
		return fmt.Errorf("proxy: serve datagrams on %v: %T serves no datagrams; use a Forward", c.LocalAddr(), s.Protocol)
	}
	err := s.service.packets(c)
	if s.stopped() {
		err = net.ErrClosed
	}
	return fmt.Errorf("proxy: serve datagrams on %v: %w", c.LocalAddr(), err)
}

// After a call of Accept that failed for lack of descriptors or memory, Serve pauses for minPause. Each further pause in a row is
// twice as long, up to maxPause.
const minPause, maxPause = 5 * time.Millisecond, time.Second

// passing reports whether Accept may succeed later although it has failed with err.
func passing(err error) bool {
	return slices.ContainsFunc([]error{syscall.ECONNABORTED, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR},
		func(e error) bool { return errors.Is(err, e) })
}

// sleep waits for d. It returns false if the server is closed meanwhile.
func (s *Server) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.context.Done():
		return false
	}
}

// begin starts the protocol. It also registers l, a listener or a UDP socket, so that Close closes it.
func (s *Server) begin(l interface{ Close() error }) error {
	if err := s.ready(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return fmt.Errorf("proxy: the server was closed before Serve: %w", net.ErrClosed)
	}
	s.listeners[l] = true
	return nil
}

// ready starts the protocol on the first call. Each call returns the error of the first call.
func (s *Server) ready() error {
	if s.Protocol == nil {
		return errors.New("proxy: Server.Protocol is nil; set SOCKS5, HTTP, SNI or Forward")
	}
	s.once.Do(func() {
		s.mu.Lock()
		s.init()
		s.mu.Unlock()
		s.service, s.failed = s.Protocol.start(s)
	})
	return s.failed
}

// init makes the context and the maps that a zero Server lacks. The caller holds mu.
func (s *Server) init() {
	if s.context != nil {
		return
	}
	s.context, s.cancel = context.WithCancel(context.Background())
	s.listeners = make(map[interface{ Close() error }]bool)
	s.sessions = make(map[*session]bool)
	s.clients = make(map[netip.Prefix]int)
}

func (s *Server) leave(l interface{ Close() error }) {
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
}

func (s *Server) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// Close closes all listeners and all connections, and cancels dials. It does not wait for connections to end. Closing again does
// nothing. Its error is always nil.
func (s *Server) Close() error {
	s.drain()
	s.cancel()
	s.mu.Lock()
	all := make([]*session, 0, len(s.sessions))
	for n := range s.sessions {
		all = append(all, n)
	}
	s.mu.Unlock()
	for _, n := range all {
		n.fail(errClosed)
	}
	return nil
}

var errClosed = fmt.Errorf("proxy: the server was closed: %w", net.ErrClosed)

// Shutdown closes all listeners and waits until all connections have ended. It closes HTTP connections that wait for a
// request. If ctx ends first, Shutdown calls Close and returns an error that wraps context.Cause(ctx).
func (s *Server) Shutdown(ctx context.Context) error {
	empty := s.drain()
	defer s.Close()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("proxy: shut down with open connections: %w", context.Cause(ctx))
	}
}

// drain closes the listeners, and the HTTP connections that wait for a request. The channel that it returns is closed once the
// last session has ended.
func (s *Server) drain() <-chan struct{} {
	s.mu.Lock()
	s.init()
	s.draining = true
	for l := range s.listeners {
		_ = l.Close()
	}
	if s.empty == nil {
		s.empty = make(chan struct{})
		if len(s.sessions) == 0 {
			close(s.empty)
		}
	}
	empty := s.empty
	s.mu.Unlock()
	s.once.Do(func() { s.failed = errClosed })
	if s.service.drain != nil {
		s.service.drain()
	}
	return empty
}
