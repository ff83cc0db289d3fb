package gateway

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/sockets"
	"github.com/seed-86b749af/wireguard/transport/netstack"
)

// A Router tells which peer an address belongs to. A [wireguard.Device] is one.
type Router interface {
	// Route returns the public key of the peer whose AllowedIPs hold the address.
	Route(netip.Addr) (wireguard.PublicKey, bool)
}

// Listener returns a listener whose connections know their peers. l listens on an address of a Net, and r is the Net's
// device. A connection's peer is the one that its address belongs to when it is accepted. Once the address belongs to another
// peer, Read and Write reset the connection and fail with net.ErrClosed.
func Listener(l net.Listener, r Router) net.Listener { return &listener{l, r} }

type listener struct {
	net.Listener
	router Router
}

// Accept closes connections from addresses that belong to no peer.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		addr := addrOf(c.RemoteAddr())
		if peer, ok := l.router.Route(addr); ok {
			return &ownConn{Conn: c, router: l.router, addr: addr, key: peer}, nil
		}
		sockets.Abort(c)
	}
}

func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// A flowConn is a forwarded connection that Verdict.Handle serves. The Net resets it when its address moves to another
// peer.
type flowConn struct {
	*netstack.TCPConn
	key wireguard.PublicKey
}

func (c *flowConn) peer() (wireguard.PublicKey, bool) { return c.key, true }

// An ownConn is a connection to an address of the Net.
type ownConn struct {
	net.Conn
	router Router
	addr   netip.Addr
	key    wireguard.PublicKey
}

// peer reports false once the address belongs to another peer.
func (c *ownConn) peer() (wireguard.PublicKey, bool) {
	now, ok := c.router.Route(c.addr)
	return c.key, ok && now == c.key
}

func (c *ownConn) check(op string) error {
	if _, ok := c.peer(); ok {
		return nil
	}
	sockets.Abort(c.Conn)
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: net.ErrClosed}
}

// Read looks at the peer after the read too, since the address may move while it waits.
func (c *ownConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if moved := c.check("read"); moved != nil {
		return 0, moved
	}
	return n, err
}

func (c *ownConn) Write(b []byte) (int, error) {
	if err := c.check("write"); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// CloseWrite ends the outbound direction.
func (c *ownConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Peer returns the public key of the peer that c belongs to. c is a connection from [Listener] or [Verdict].Handle, or
// one that wraps it and has a method NetConn, such as a *tls.Conn. Peer reports false for other connections, and once
// c's address has moved to another peer.
func Peer(c net.Conn) (wireguard.PublicKey, bool) {
	for c != nil {
		if p, ok := c.(interface {
			peer() (wireguard.PublicKey, bool)
		}); ok {
			return p.peer()
		}
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = w.NetConn()
	}
	return wireguard.PublicKey{}, false
}

type (
	peerKey struct{} // of a context's value: a wireguard.PublicKey
	connKey struct{} // of a context's value: a net.Conn
)

// ConnContext remembers c in ctx for [PeerFrom]. It is the function for [http.Server].ConnContext.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// PeerFrom returns the public key of the peer that ctx belongs to: the context of an HTTP request whose server has
// [ConnContext], or the context that Config.Dial and Config.ListenPacket get.
func PeerFrom(ctx context.Context) (wireguard.PublicKey, bool) {
	if key, ok := ctx.Value(peerKey{}).(wireguard.PublicKey); ok {
		return key, true
	}
	if c, ok := ctx.Value(connKey{}).(net.Conn); ok {
		return Peer(c)
	}
	return wireguard.PublicKey{}, false
}

// Authenticate returns a handler that lets the requests of peers through that allow accepts, and answers others with
// 403. A nil allow accepts each peer. The server needs [ConnContext] and a [Listener]; without them, all requests are
// refused. next gets the peer from [PeerFrom].
func Authenticate(next http.Handler, allow func(wireguard.PublicKey) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, ok := PeerFrom(r.Context()); ok && (allow == nil || allow(peer)) {
			next.ServeHTTP(w, r)
			return
		}
		http.Error(w, "this peer may not use this service", http.StatusForbidden)
	})
}
