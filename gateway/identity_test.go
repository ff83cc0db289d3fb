package gateway_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/gateway"
)

// TestAuthenticate checks that an HTTP server on the gateway's own Net gets the public key of each client's peer, and that
// Authenticate refuses the peer that is not allowed.
func TestAuthenticate(t *testing.T) {
	w := newWorld(t, gateway.Config{})
	l := gateway.Listener(must(w.stack.Listen("tcp", ":80"))(t), w.device)
	server := &http.Server{ConnContext: gateway.ConnContext, Handler: gateway.Authenticate(
		http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			peer, _ := gateway.PeerFrom(r.Context())
			_, _ = io.WriteString(rw, peer.String())
		}),
		func(peer wireguard.PublicKey) bool { return peer == w.keys[0] },
	)}
	go server.Serve(l)
	defer server.Close()
	var clients [2]http.Client
	get := func(i int) (int, string, error) {
		r, err := clients[i].Get("http://" + inside.String() + "/")
		if err != nil {
			return 0, "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return r.StatusCode, string(b), err
	}
	for i := range clients {
		clients[i].Transport = &http.Transport{DialContext: w.clients[i].DialContext}
		defer clients[i].CloseIdleConnections()
	}
	if code, body, err := get(0); code != 200 || body != w.keys[0].String() || err != nil {
		t.Errorf("the allowed peer got the status %d, body %q, error %v; want 200 and its public key", code, body, err)
	}
	if code, _, err := get(1); code != 403 || err != nil {
		t.Errorf("the other peer got the status %d, error %v; want 403", code, err)
	}
}

// TestHandle checks that Handle serves a forwarded connection, and that Peer returns the connection's peer, also through a
// *tls.Conn.
func TestHandle(t *testing.T) {
	type result struct {
		peer wireguard.PublicKey
		ok   bool
	}
	peers := make(chan result, 1)
	w := newWorld(t, gateway.Config{Policy: func(gateway.Request) gateway.Verdict {
		return gateway.Verdict{Allow: true, Handle: func(c net.Conn) {
			peer, ok := gateway.Peer(tls.Server(c, nil))
			peers <- result{peer, ok}
			_, _ = io.Copy(c, c)
		}}
	}})
	c := must(w.dial(t, 1, netip.AddrPortFrom(far, 80)))(t)
	if got := <-peers; !got.ok || got.peer != w.keys[1] {
		t.Errorf("the connection's peer is %v, want %v", got, w.keys[1])
	}
	b := []byte("x")
	_, _ = c.Write(b)
	if _, err := c.Read(b); err != nil {
		t.Error(err)
	}
	if peer, ok := gateway.Peer(c); ok {
		t.Errorf("Peer returned %v for a connection that does not come from the gateway", peer)
	}
}

// TestListenerMoved checks that a server cannot write to a connection after the client's address has moved to another peer.
func TestListenerMoved(t *testing.T) {
	w := newWorld(t, gateway.Config{})
	l := gateway.Listener(must(w.stack.Listen("tcp", ":81"))(t), w.device)
	defer l.Close()
	must(w.dial(t, 0, netip.AddrPortFrom(inside, 81)))(t)
	c := must(l.Accept())(t)
	defer c.Close()
	if peer, ok := gateway.Peer(c); !ok || peer != w.keys[0] {
		t.Errorf("Peer returned %v, %t; want %v, true", peer, ok, w.keys[0])
	}
	err := w.device.Configure(wireguard.Change{Peers: []wireguard.PeerChange{{
		PublicKey: w.keys[1], AllowedIPs: []netip.Prefix{netip.PrefixFrom(addrs[0], 32)},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if peer, ok := gateway.Peer(c); ok {
		t.Errorf("Peer still returns %v after the address moved to another peer", peer)
	}
	if _, err := c.Write([]byte("secret")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after the address moved to another peer returned %v, want net.ErrClosed", err)
	}
}
