// Package proxy has servers that carry their clients' connections through a dialer of your choice, such as a netstack.Net:
// SOCKS5, HTTP, TLS by server name, and forwards of TCP and UDP. The clients need no WireGuard, and the server needs no root.
//
//	s := &proxy.Server{
//		Protocol:     proxy.SOCKS5{},
//		DialContext:  tunnel.DialContext, // tunnel is a *netstack.Net
//		ListenPacket: tunnel.ListenPacket,
//	}
//	defer s.Close()
//	return s.Serve(listener)
//
// The Protocol of a Server says what its clients speak. A Server limits the number of connections in total and per client,
// the duration of a handshake, and how long a connection may be silent. It tells a client of a failure with an error code of
// the client's protocol, supports half-closed connections, and calls Done when a connection has ended.
//
// The dialer and the listener decide the direction: a listener of the host with a dialer of the tunnel brings local programs into
// the tunnel, and a listener of the tunnel with a dialer of the host publishes a service of the host in the tunnel.
//
// The Server passes the names of targets to the dialer, and the dialer resolves them. A netstack.Net resolves them in the tunnel.
// To refuse a target, a dialer returns an error that wraps fs.ErrPermission. A SOCKS client then gets code 2, and an HTTP client
// status 403.
package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

// A Protocol is what the clients of a Server speak: SOCKS5, HTTP, SNI or Forward.
type Protocol interface {
	// start prepares the protocol for s. It is called once, before the first connection.
	start(s *Server) (service, error)
}

// A service is a Protocol that has started.
type service struct {
	// conn serves a connection until it ends. It runs on a new goroutine and calls session.end.
	conn func(*session)
	// refuses is true if the protocol can tell a client that a limit of the server is reached. The server then also passes
	// connections beyond the limit to conn, with session.refused set, and conn answers them with an error code. Otherwise the
	// server closes these connections at once.
	refuses bool
	// packets serves the datagrams of a UDP socket until the socket is closed. Nil means that the protocol has no datagrams.
	packets func(net.PacketConn) error
	// drain closes the connections that are kept open for a client's next request. It may be nil.
	drain func()
}

// ErrLimit is the error of connections that a Server refused because its limits were reached.
var ErrLimit = errors.New("proxy: too many connections; raise Server.MaxConns or Server.MaxConnsPerClient")

// ErrIdle is the error of connections that a Server closed after Server.IdleTimeout.
var ErrIdle = errors.New("proxy: no data for the time of Server.IdleTimeout")

// A Report describes a connection that has ended: a relayed TCP connection, an HTTP request that is not CONNECT, a UDP
// association or flow, or a client that got no connection.
type Report struct {
	// Client is the client's address.
	Client net.Addr
	// Target is the address that the client asked for, "host:port". It is empty if the connection ended before the client
	// asked for an address, and for a SOCKS UDP association, which has many targets.
	Target string
	// Username is the client's name, once the client has sent the right password. It is empty if the server asks for no password.
	Username string
	// Sent counts the payload bytes from the client to the target, and Received those from the target to the client. Neither
	// counts the messages of the proxy's protocol. For an HTTP request that is not CONNECT, they count the bytes of the bodies.
	Sent, Received int64
	// Start is when the client connected, or when an HTTP request or a UDP flow began.
	Start time.Time
	// Duration is the time from Start until the connection ended.
	Duration time.Duration
	// Err is why the connection ended. Nil means that both sides closed the connection, or that an HTTP request was answered
	// by its target.
	Err error
}

const (
	defaultMaxConns  = 4096
	defaultHandshake = 30 * time.Second
	defaultDial      = 30 * time.Second
	defaultIdle      = 124 * time.Minute // RFC 5382, REQ-5: at least 2 hours and 4 minutes
	defaultIdleUDP   = 5 * time.Minute   // RFC 4787, REQ-5: "5 minutes or more is RECOMMENDED"
)

func (s *Server) maxConns() int {
	if s.MaxConns > 0 {
		return s.MaxConns
	}
	return defaultMaxConns
}

func (s *Server) maxConnsPerClient() int {
	if s.MaxConnsPerClient > 0 {
		return s.MaxConnsPerClient
	}
	return max(s.maxConns()/2, 1)
}

func (s *Server) handshake() time.Duration { return limit(s.HandshakeTimeout, defaultHandshake) }

func (s *Server) idle() time.Duration { return limit(s.IdleTimeout, defaultIdle) }

func (s *Server) idleUDP() time.Duration { return limit(s.IdleTimeout, defaultIdleUDP) }

// limit returns d, or ifZero if d is 0. If d is negative, limit returns 0, which means no limit.
func limit(d, ifZero time.Duration) time.Duration {
	if d == 0 {
		return ifZero
	}
	return max(d, 0)
}

// dial opens a connection to a target, within DialTimeout.
func (s *Server) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if d := limit(s.DialTimeout, defaultDial); d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	dial := s.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	return dial(ctx, network, address)
}

// deadline returns when a handshake that begins now must be complete.
func (s *Server) deadline() time.Time {
	if d := s.handshake(); d > 0 {
		return time.Now().Add(d)
	}
	return time.Time{}
}

// unexpectedEOF turns io.EOF in the middle of a message into io.ErrUnexpectedEOF.
func unexpectedEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
