package gateway_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/gateway"
	"github.com/seed-86b749af/wireguard/transport/netstack"
)

// TestTCP checks that a peer's connection goes through a socket of the host, carries 1 MiB in each direction, and passes on a
// half-close.
func TestTCP(t *testing.T) {
	w := newWorld(t, gateway.Config{Policy: toLoopback})
	port := echo(t)
	c := must(w.dial(t, 0, netip.AddrPortFrom(far, port)))(t)
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	go func() {
		_, _ = c.Write(data)
		_ = c.(*netstack.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read %d bytes (error %v), want the %d bytes that were sent", len(got), err, len(data))
	}
	s := w.Stats()[w.keys[0]]
	if s.Opened != 1 || s.FromPeer != uint64(len(data)) || s.ToPeer != uint64(len(data)) {
		t.Errorf("the peer's Stats are %+v, want 1 flow and %d bytes in each direction", s, len(data))
	}
	eventually(t, "the peer has no flows", func() bool { return w.Stats()[w.keys[0]].Flows == 0 })
	if len(w.Stats()) != 1 || !w.Forget(w.keys[0]) || len(w.Stats()) != 0 {
		t.Errorf("Forget did not remove the account of the first peer: %v", w.Stats())
	}
}

// TestRefused checks that the gateway answers a refused flow with a reset or an ICMP error.
func TestRefused(t *testing.T) {
	w := newWorld(t, gateway.Config{Policy: func(r gateway.Request) gateway.Verdict {
		switch r.Destination.Port() {
		case 1:
			return gateway.Verdict{}
		case 2:
			return gateway.Verdict{Refusal: netstack.Prohibited}
		}
		return toLoopback(r)
	}})
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	closed := uint16(l.Addr().(*net.TCPAddr).Port)
	_ = l.Close()
	for _, c := range []struct {
		port uint16
		want error
		what string
	}{
		{1, syscall.ECONNREFUSED, "a policy that returns the zero Verdict"},
		{2, syscall.EHOSTUNREACH, "a policy that prohibits"},
		{closed, syscall.ECONNREFUSED, "a closed port"},
	} {
		begun := time.Now()
		if _, err := w.dial(t, 0, netip.AddrPortFrom(far, c.port)); !errors.Is(err, c.want) {
			t.Errorf("%s: the dial returned %v after %v, want %v", c.what, err, time.Since(begun), c.want)
		}
	}
	u := must(w.clients[0].DialUDP(netip.AddrPort{}, netip.AddrPortFrom(far, 1)))(t)
	defer u.Close()
	_ = u.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = u.Write([]byte("x"))
	if _, err := u.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("UDP to a refused port: Read returned %v, want %v", err, syscall.ECONNREFUSED)
	}
	if s := w.Stats()[w.keys[0]]; s.Refused != 3 || s.Failed != 1 {
		t.Errorf("the peer's Stats are %+v, want 3 refused and 1 failed", s)
	}
}

// TestPublic checks that the default policy refuses the addresses of the tunnel, and that the context of Dial contains the peer.
func TestPublic(t *testing.T) {
	dialed := make(chan wireguard.PublicKey, 1)
	w := newWorld(t, gateway.Config{
		Tunnel: []netip.Prefix{tunnel},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			peer, _ := gateway.PeerFrom(ctx)
			dialed <- peer
			return nil, syscall.ECONNREFUSED
		},
	})
	if _, err := w.dial(t, 0, netip.AddrPortFrom(addrs[1], 80)); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("a dial to another peer's address returned %v, want %v", err, syscall.EHOSTUNREACH)
	}
	if _, err := w.dial(t, 1, netip.AddrPortFrom(far, 80)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a dial to a public address returned %v, want ECONNREFUSED, as Config.Dial returned", err)
	}
	if peer := <-dialed; peer != w.keys[1] {
		t.Errorf("the context of Config.Dial contains the peer %v, want %v", peer, w.keys[1])
	}
}

// TestReset checks that when the peer's or the outbound connection is reset, the gateway resets the other one. It also checks
// that the outbound connection is reset when the peer's address moves to another peer.
func TestReset(t *testing.T) {
	conns := make(chan net.Conn, 1)
	port := serve(t, func(c net.Conn) {
		conns <- c
		<-t.Context().Done()
	})
	w := newWorld(t, gateway.Config{Policy: toLoopback})
	for _, who := range []string{"host", "peer", "move"} {
		peer := must(w.dial(t, 0, netip.AddrPortFrom(far, port)))(t)
		remote := <-conns
		_ = remote.SetDeadline(time.Now().Add(30 * time.Second))
		other := peer
		switch who {
		case "host":
			_ = remote.(*net.TCPConn).SetLinger(0)
			_ = remote.Close()
		case "peer":
			_ = peer.(*netstack.TCPConn).SetLinger(0)
			_ = peer.Close()
			other = remote
		case "move": // the source's prefix moves to another peer
			err := w.device.Configure(wireguard.Change{Peers: []wireguard.PeerChange{{
				PublicKey: w.keys[1], AllowedIPs: []netip.Prefix{netip.PrefixFrom(addrs[0], 32)},
			}}})
			if err != nil {
				t.Fatal(err)
			}
			other = remote
		}
		if _, err := other.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: Read at the other end returned %v, want %v", who, err, syscall.ECONNRESET)
		}
		_ = remote.Close()
	}
}

// TestTCPIdle checks that a connection that carries nothing is reset after TCPIdle. TestTCPIdleTimes checks connections that
// carry something.
func TestTCPIdle(t *testing.T) {
	w := newWorld(t, gateway.Config{Policy: toLoopback, TCPIdle: 200 * time.Millisecond})
	c := must(w.dial(t, 0, netip.AddrPortFrom(far, echo(t))))(t)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := c.Read(b); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(b); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Read on an idle connection returned %v, want %v", err, syscall.ECONNRESET)
	}
}

// TestClose checks that Close ends all flows. TestMain checks that no goroutine is left.
func TestClose(t *testing.T) {
	w := newWorld(t, gateway.Config{Policy: toLoopback})
	port, u := echo(t), host(t, "127.0.0.1:0")
	var conns []net.Conn
	for i := range 10 {
		conns = append(conns, must(w.dial(t, i%2, netip.AddrPortFrom(far, port)))(t))
		send(t, w.socket(t, i%2), "x", netip.AddrPortFrom(far, portOf(u)))
		receive(t, u)
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range w.Stats() {
		if s.Flows != 0 {
			t.Errorf("peer %v has %d flows after Close", i, s.Flows)
		}
	}
	for _, c := range conns {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Read on a connection returned %v after Close, want %v", err, syscall.ECONNRESET)
		}
	}
	if _, err := w.dial(t, 0, netip.AddrPortFrom(far, port)); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("a dial after Close returned %v, want %v", err, syscall.EHOSTUNREACH)
	}
}

// TestShutdown checks that Shutdown refuses further flows, that it waits for the TCP connection, and that the UDP flow
// continues meanwhile. It also checks that Shutdown resets the TCP connection when ctx ends.
func TestShutdown(t *testing.T) {
	for _, patient := range []bool{true, false} {
		w := newWorld(t, gateway.Config{Policy: toLoopback})
		port, u := echo(t), host(t, "127.0.0.1:0")
		to := netip.AddrPortFrom(far, port)
		c, s := must(w.dial(t, 0, to))(t), w.socket(t, 0)
		send(t, s, "before", netip.AddrPortFrom(far, portOf(u)))
		receive(t, u)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- w.Shutdown(ctx) }()
		eventually(t, "the gateway refuses a further connection", func() bool {
			d, err := w.dial(t, 0, to)
			if err == nil {
				d.Close()
			}
			return errors.Is(err, syscall.EHOSTUNREACH)
		})
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatalf("during Shutdown, Read on the existing connection returned %v", err)
		}
		send(t, s, "meanwhile", netip.AddrPortFrom(far, portOf(u)))
		if text, _ := receive(t, u); text != "meanwhile" {
			t.Errorf("during Shutdown, the existing UDP flow passed %q, want meanwhile", text)
		}
		select {
		case err := <-ended:
			t.Fatalf("Shutdown returned %v before the connection was closed", err)
		default:
		}
		if patient {
			_ = c.Close()
			if err := <-ended; err != nil {
				t.Errorf("Shutdown returned %v after the last connection was closed, want nil", err)
			}
		} else {
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("Shutdown returned %v after ctx was cancelled, want %v", err, context.Canceled)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Read on the connection returned %v after Shutdown, want %v", err, syscall.ECONNRESET)
			}
		}
		if n := w.Stats()[w.keys[0]].Flows; n != 0 {
			t.Errorf("the peer has %d flows after Shutdown, want 0", n)
		}
	}
}

// TestPing checks that the gateway answers a ping if the target answers, and refuses a ping that it cannot send. If the target is
// silent, the peer gets no answer.
func TestPing(t *testing.T) {
	asked := make(chan string, 1)
	w := newWorld(t, gateway.Config{Policy: func(r gateway.Request) gateway.Verdict {
		return gateway.Verdict{Allow: r.Network == "ping"}
	}, Ping: func(ctx context.Context, target netip.Addr, data []byte) error {
		switch target {
		case far:
			asked <- string(data)
			return nil
		case distant:
			return os.ErrDeadlineExceeded
		}
		return syscall.ENETUNREACH
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := w.clients[0].Ping(ctx, far); err != nil {
		t.Error("a ping to a target that answers failed:", err)
	}
	if len(<-asked) == 0 {
		t.Error("the ping to the target contained no data")
	}
	if _, err := w.clients[0].Ping(ctx, netip.MustParseAddr("203.0.113.9")); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("a ping to a target without a route returned %v, want %v", err, syscall.ENETUNREACH)
	}
	brief, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := w.clients[0].Ping(brief, distant); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a ping to a silent target returned %v, want %v", err, context.DeadlineExceeded)
	}
	if s := w.Stats()[w.keys[0]]; s.Pings != 1 || s.Failed != 1 {
		t.Errorf("the peer's Stats are %+v, want 1 ping and 1 failed", s)
	}
}

// TestSystemPing checks that Ping can ping the loopback addresses with the system's ping sockets. If the system forbids these
// sockets, the error must name the setting.
func TestSystemPing(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, a := range []string{"127.0.0.1", "::1"} {
		err := gateway.Ping(ctx, netip.MustParseAddr(a), []byte("hello"))
		switch {
		case err == nil, errors.Is(err, errors.ErrUnsupported):
		case errors.Is(err, os.ErrPermission):
			if !strings.Contains(err.Error(), "ping_group_range") {
				t.Errorf("the error does not name the sysctl: %v", err)
			}
		case a == "::1" && errors.Is(err, syscall.EADDRNOTAVAIL): // a host without IPv6
		default:
			t.Error(err)
		}
	}
}

// TestCurl checks that curl can fetch a page through a gateway. The peer is part of the test's process, so curl connects to a local
// port, and the test forwards that connection into the tunnel.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("needs curl: apt-get install curl")
	}
	page := bytes.Repeat([]byte("0123456789"), 100_000)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Host)
		_, _ = w.Write(page)
	})}
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	go server.Serve(l)
	defer server.Close()
	w := newWorld(t, gateway.Config{Policy: toLoopback})
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	entry := serve(t, func(c net.Conn) {
		far, err := w.dial(t, 0, netip.AddrPortFrom(far, port))
		if err != nil {
			t.Error(err)
			return
		}
		go func() { _, _ = io.Copy(far, c); _ = far.Close() }()
		_, _ = io.Copy(c, far)
	})
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), entry).String()
	out, err := exec.CommandContext(t.Context(), curl, "-sS", "--max-time", "20", "--noproxy", "*",
		"--connect-to", "far.example:80:"+at, "http://far.example/").Output()
	if want := "far.example" + string(page); err != nil || string(out) != want {
		t.Errorf("curl printed %d bytes (error %v), want the page's %d", len(out), err, len(want))
	}
}
