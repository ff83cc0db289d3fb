package proxy

import (
	"crypto/tls"
	"errors"
	"net"
	"sync"
)

// A feed is the listener from which package net/http accepts the clients' connections.
type feed struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{} // closed by Close
}

func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

func (f *feed) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

func (f *feed) Addr() net.Addr { return &net.TCPAddr{} }

// A webConn wraps a client's connection for package net/http. If the client speaks TLS, the webConn lies below TLS. It counts the
// bytes in both directions, so that the session notices when the connection is idle.
type webConn struct {
	net.Conn
	session *session

	// Only the goroutine that runs the handler and calls changed uses these two fields.
	requests int  // how many requests the handler got
	hijacked bool // whether a handler has taken the connection over from package net/http
}

func (c *webConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.session.moved.Add(uint64(n))
	return n, err
}

func (c *webConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.session.moved.Add(uint64(n))
	return n, err
}

// CloseWrite lets package net/http end a connection without a reset.
func (c *webConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

type connKey struct{}

func webConnOf(c net.Conn) *webConn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return c.(*webConn)
}
