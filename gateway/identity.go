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

// Listener wraps l so that [Peer] knows the peers of the accepted connections. l must listen on an address of a netstack.Net, and
// r must be the device of that Net. The peer of a connection is the one to which the remote address belongs when the connection is
// accepted. Once that address belongs to another peer, Read and Write reset the connection and fail with net.ErrClosed.
func Listener(l net.Listener, r Router) net.Listener { return &listener{l, r} }

type listener struct {
	net.Listener
	router Router
}

// Accept returns the next connection of a peer. It resets connections from addresses that belong to no peer.
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

// A flowConn is a forwarded connection that Verdict.Handle serves. The netstack.Net resets the connection when the source
// address moves to another peer.
type flowConn struct {
	*netstack.TCPConn
	key wireguard.PublicKey
}

func (c *flowConn) peer() (wireguard.PublicKey, bool) { return c.key, true }

// An ownConn is a connection that a [Listener] accepted. Its local address is one of the netstack.Net's own addresses.
type ownConn struct {
	net.Conn
	router Router
	addr   netip.Addr
	key    wireguard.PublicKey
}

// peer returns the key of the peer, and false once the remote address no longer belongs to this peer.
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

// Read checks the peer after the read, because the address may move to another peer while the read waits.
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

// CloseWrite closes the connection for writing.
func (c *ownConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Peer returns the public key of the peer that c belongs to. c is a connection from [Listener] or [Verdict].Handle, or a
// connection that wraps one of these and has a method NetConn, such as a *tls.Conn. Peer returns false for other connections. For
// a connection from Listener, it also returns false once the remote address belongs to another peer.
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
	peerKey struct{} // the key of a context value of type wireguard.PublicKey
	connKey struct{} // the key of a context value of type net.Conn
)

// ConnContext returns a context with the connection c in it, for [PeerFrom]. Set [http.Server].ConnContext to this function.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// PeerFrom returns the public key of the peer that ctx belongs to. ctx is the context of an HTTP request whose server uses
// [ConnContext], or the context that the gateway passes to Config.Dial or Config.ListenPacket.
func PeerFrom(ctx context.Context) (wireguard.PublicKey, bool) {
	if key, ok := ctx.Value(peerKey{}).(wireguard.PublicKey); ok {
		return key, true
	}
	if c, ok := ctx.Value(connKey{}).(net.Conn); ok {
		return Peer(c)
	}
	return wireguard.PublicKey{}, false
}

// Authenticate returns a handler that calls next if the function allow accepts the request's peer, and otherwise answers with
// status 403. If allow is nil, every peer is accepted. The server must use [ConnContext] and a [Listener]; without them, the
// handler refuses all requests. In next, [PeerFrom] returns the request's peer.
func Authenticate(next http.Handler, allow func(wireguard.PublicKey) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, ok := PeerFrom(r.Context()); ok && (allow == nil || allow(peer)) {
			next.ServeHTTP(w, r)
			return
		}
		http.Error(w, "this peer may not use this service", http.StatusForbidden)
	})
}
