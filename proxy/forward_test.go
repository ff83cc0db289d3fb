package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// TestForward checks that a client reaches the target, and that a failed dial resets the client's connection.
func TestForward(t *testing.T) {
	addr, done := serve(t, &Server{Protocol: Forward{Target: target(t, echo)}})
	c := dial(t, addr)
	write(t, c, "hello")
	_ = c.CloseWrite()
	if got := wantEnd(t, "the echo", c); got != "hello" {
		t.Errorf("the client read %q, want the echo hello", got)
	}
	if r := done.next(t); r.Err != nil || r.Sent != 5 || r.Received != 5 {
		t.Errorf("report: %+v, want no error and 5 bytes in each direction", r)
	}
	broken := errors.New("broken")
	addr, done = serve(t, &Server{Protocol: Forward{Target: "x:1"}, DialContext: failing(broken)})
	conn, err := net.Dial("tcp", addr)
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a failed dial, the client reads %v, want a reset", err)
	}
	if r := done.next(t); !errors.Is(r.Err, broken) || r.Target != "x:1" {
		t.Errorf("report: %+v, want the error of the dialer and the target x:1", r)
	}
	if err := (&Server{Protocol: Forward{}}).Serve(&feed{done: make(chan struct{})}); !errors.Is(err, errTarget) {
		t.Errorf("Serve without a target: %v, want errTarget", err)
	}
	if err := (&Server{}).Serve(&feed{done: make(chan struct{})}); err == nil {
		t.Error("Serve without a protocol succeeds, want an error")
	}
}

// TestReset checks that the server resets the client's connection when the target resets its own. Otherwise the client could
// believe that it has all the data.
func TestReset(t *testing.T) {
	addr, done := serve(t, &Server{Protocol: Forward{Target: target(t, func(c *net.TCPConn) {
		_, _ = c.Write([]byte("half an ans"))
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.SetLinger(0)
	})}})
	c := dial(t, addr)
	want(t, "the beginning", c, "half an ans")
	write(t, c, "x")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after the target's reset, the client reads %v, want a reset", err)
	}
	if r := done.next(t); !errors.Is(r.Err, syscall.ECONNRESET) {
		t.Errorf("the report has the error %v, want a reset", r.Err)
	}
}

// TestLimits checks that a client that has reached MaxConnsPerClient is refused while another client is still served. After a
// connection has ended, the first client can connect again.
func TestLimits(t *testing.T) {
	addr, done := serve(t, &Server{Protocol: Forward{Target: target(t, echo)}, MaxConns: 3, MaxConnsPerClient: 2})
	open := func(from byte) *net.TCPConn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, from)}}
		c, err := d.Dial("tcp", addr)
		if err != nil {
			t.Skipf("this system has no address 127.0.0.%d: %v", from, err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(testkit.Patience))
		return c.(*net.TCPConn)
	}
	served := func(c *net.TCPConn) bool {
		b := make([]byte, 1)
		_, _ = c.Write([]byte("x"))
		_, err := io.ReadFull(c, b)
		return err == nil
	}
	a, b := open(1), open(1)
	if !served(a) || !served(b) {
		t.Fatal("the server refuses connections within the limits")
	}
	if served(open(1)) {
		t.Error("the server serves a third connection of one client, want at most 2")
	}
	if r := done.next(t); !errors.Is(r.Err, ErrLimit) {
		t.Errorf("report of the client's third connection: %v, want ErrLimit", r.Err)
	}
	if !served(open(2)) {
		t.Error("the server refuses another client, although it may serve 3 connections and serves 2")
	}
	if served(open(3)) {
		t.Error("the server serves a fourth connection, want at most 3")
	}
	if r := done.next(t); !errors.Is(r.Err, ErrLimit) {
		t.Errorf("report of the fourth connection: %v, want ErrLimit", r.Err)
	}
	a.Close()
	done.next(t)
	testkit.Eventually(t, "the server serves a new connection after another one has ended", func() bool { return served(open(1)) })
}

// TestIdle checks that a silent connection is closed, also if it is half-closed or if its reader has stopped. Traffic keeps a
// connection open.
func TestIdle(t *testing.T) {
	stuck := make(chan struct{})
	defer close(stuck)
	for name, c := range map[string]struct {
		target func(*net.TCPConn)
		client func(*net.TCPConn)
	}{
		"silent":         {func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }, func(*net.TCPConn) {}},
		"half-closed":    {func(*net.TCPConn) { <-stuck }, func(c *net.TCPConn) { _ = c.CloseWrite() }},
		"does not read":  {func(*net.TCPConn) { <-stuck }, func(c *net.TCPConn) { _, _ = c.Write(make([]byte, 32<<20)) }},
		"reads too late": {func(c *net.TCPConn) { _, _ = c.Write(make([]byte, 32<<20)) }, func(*net.TCPConn) {}},
	} {
		t.Run(name, func(t *testing.T) {
			stopped := make(chan struct{})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				defer close(stopped)
				if conn, err := l.Accept(); err == nil {
					go func() { <-t.Context().Done(); conn.Close() }()
					c.target(conn.(*net.TCPConn))
				}
			}()
			t.Cleanup(func() { l.Close() })
			addr, done := serve(t, &Server{Protocol: Forward{Target: l.Addr().String()}, IdleTimeout: 100 * time.Millisecond})
			conn := dial(t, addr)
			go c.client(conn)
			if r := done.next(t); !errors.Is(r.Err, ErrIdle) {
				t.Errorf("report: %v, want ErrIdle", r.Err)
			}
		})
	}
	addr, done := serve(t, &Server{Protocol: Forward{Target: target(t, echo)}, IdleTimeout: time.Second})
	c := dial(t, addr)
	for range 30 {
		write(t, c, "x")
		want(t, "the echo of a busy connection", c, "x")
		time.Sleep(50 * time.Millisecond)
	}
	c.Close()
	if r := done.next(t); r.Err != nil || r.Sent != 30 {
		t.Errorf("report of a busy connection: %+v, want no error and 30 bytes sent", r)
	}
}

// udpTarget starts a UDP server that answers each datagram with what the function answer returns. It returns the server's
// address.
func udpTarget(t testing.TB, answer func(b []byte) []byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for b := make([]byte, 1<<16); ; {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(answer(b[:n]), from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-ended })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func unchanged(b []byte) []byte { return b }

// servePackets runs a Server on a UDP socket until the test ends.
func servePackets(t testing.TB, s *Server) (addr string, done reports) {
	t.Helper()
	done = make(reports, 1000)
	s.Done = func(r Report) { done <- r }
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	background(t, s, func() error { return s.ServePacket(c) })
	return c.LocalAddr().String(), done
}

func udpClient(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(testkit.Patience))
	return c
}

// exchangeDatagram sends b, and checks that the next datagram that arrives is answer.
func exchangeDatagram(t testing.TB, c net.Conn, b, answer string) {
	t.Helper()
	write(t, c, b)
	got := make([]byte, 1<<16)
	n, err := c.Read(got)
	if err != nil || string(got[:n]) != answer {
		t.Fatalf("the answer has %d bytes, %v, want the expected datagram of %d bytes", n, err, len(answer))
	}
}

// TestForwardUDP checks that each client has its own flow, that datagrams of all sizes pass, and that silence ends a flow.
func TestForwardUDP(t *testing.T) {
	at := udpTarget(t, unchanged)
	addr, done := servePackets(t, &Server{Protocol: Forward{Target: at.String()}, IdleTimeout: 300 * time.Millisecond})
	a, b := udpClient(t, addr), udpClient(t, addr)
	for _, n := range []int{1, 0, 1400, 60000} {
		exchangeDatagram(t, a, zeros(n), zeros(n))
	}
	exchangeDatagram(t, b, "b", "b")
	for range 2 {
		r := done.next(t)
		if !errors.Is(r.Err, ErrIdle) || r.Sent != r.Received || r.Client.String() != a.LocalAddr().String() && r.Client.String() != b.LocalAddr().String() {
			t.Errorf("report: %+v, want ErrIdle, as many bytes received as sent, and the address of one of the two clients", r)
		}
	}
	exchangeDatagram(t, a, "again", "again")
}

// TestForwardUDPEvicts checks that a new flow in a full table evicts the flow that was silent for longest.
func TestForwardUDPEvicts(t *testing.T) {
	at := udpTarget(t, unchanged)
	addr, done := servePackets(t, &Server{Protocol: Forward{Target: at.String()}, MaxConns: 3, MaxConnsPerClient: 4, IdleTimeout: -1})
	cs := make([]net.Conn, 4)
	for i := range cs {
		cs[i] = udpClient(t, addr)
	}
	for _, i := range []int{0, 1, 2, 0, 3} {
		exchangeDatagram(t, cs[i], "x", "x")
	}
	if r := done.next(t); !errors.Is(r.Err, ErrLimit) || r.Client.String() != cs[1].LocalAddr().String() {
		t.Errorf("the server ended the flow of %v (%v), want ErrLimit for the flow of %v", r.Client, r.Err, cs[1].LocalAddr())
	}
}

// udpClientFrom returns the connection of a client with the address 127.0.0.from.
func udpClientFrom(t testing.TB, from byte, addr string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, from)}}
	c, err := d.Dial("udp", addr)
	if err != nil {
		t.Skipf("this system has no address 127.0.0.%d: %v", from, err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(testkit.Patience))
	return c
}

// TestForwardUDPShare checks that a client that exceeds MaxConnsPerClient loses its own oldest flow, and that an older flow of
// another client stays.
func TestForwardUDPShare(t *testing.T) {
	at := udpTarget(t, unchanged)
	addr, done := servePackets(t, &Server{Protocol: Forward{Target: at.String()}, MaxConns: 10, MaxConnsPerClient: 2, IdleTimeout: -1})
	var cs []net.Conn
	for i, from := range []byte{2, 1, 1, 1} {
		cs = append(cs, udpClientFrom(t, from, addr))
		exchangeDatagram(t, cs[i], "x", "x")
	}
	if r := done.next(t); !errors.Is(r.Err, ErrLimit) || r.Client.String() != cs[1].LocalAddr().String() {
		t.Errorf("the server ended the flow of %v (%v), want ErrLimit for the flow of %v", r.Client, r.Err, cs[1].LocalAddr())
	}
}

// TestForwardUDPAlone checks that UDP flows do not count against the limits for connections of the same server, because the
// addresses of their clients may be forged.
func TestForwardUDPAlone(t *testing.T) {
	at := udpTarget(t, unchanged)
	tcp := target(t, echo)
	s := &Server{Protocol: Forward{Target: "x:1"}, MaxConns: 2, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		if network == "udp" {
			return new(net.Dialer).DialContext(ctx, network, at.String())
		}
		return new(net.Dialer).DialContext(ctx, network, tcp)
	}}
	packets, _ := servePackets(t, s)
	addr, _ := serve(t, s)
	for range 2 {
		exchangeDatagram(t, udpClient(t, packets), "x", "x")
	}
	c := dial(t, addr)
	write(t, c, "hello")
	want(t, "the echo of a connection beside two flows", c, "hello")
}

// TestForwardUDPHeld checks that the datagrams of one flow that wait for its dial have at most maxHeld bytes together.
func TestForwardUDPHeld(t *testing.T) {
	at := udpTarget(t, unchanged)
	release := make(chan struct{})
	var dials atomic.Int64
	addr, _ := servePackets(t, &Server{Protocol: Forward{Target: "name:53"}, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		if dials.Add(1) == 1 {
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return new(net.Dialer).DialContext(ctx, network, at.String())
	}})
	slow := udpClient(t, addr)
	write(t, slow, zeros(60000))
	testkit.Eventually(t, "the first dial begins", func() bool { return dials.Load() == 1 })
	write(t, slow, zeros(50000))
	write(t, slow, "last")
	exchangeDatagram(t, udpClient(t, addr), "x", "x") // the answer shows that the server has read the earlier datagrams
	close(release)
	b := make([]byte, 1<<16)
	for _, want := range []int{60000, len("last")} {
		if n, err := slow.Read(b); n != want || err != nil {
			t.Errorf("the client read a datagram of %d bytes, %v, want %d bytes", n, err, want)
		}
	}
}

// TestForwardUDPDial checks that at most maxWaiting datagrams wait for a dial, that other flows work during the dial of one flow,
// and that a failed dial is reported.
func TestForwardUDPDial(t *testing.T) {
	at := udpTarget(t, unchanged)
	var dials atomic.Int64
	release := make(chan struct{})
	addr, done := servePackets(t, &Server{Protocol: Forward{Target: "name:53"}, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		switch dials.Add(1) {
		case 1:
			select {
			case <-release:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		case 3:
			return nil, errors.New("broken")
		}
		return new(net.Dialer).DialContext(ctx, network, at.String())
	}})
	slow, quick, failed := udpClient(t, addr), udpClient(t, addr), udpClient(t, addr)
	for i := range maxWaiting + 4 {
		write(t, slow, fmt.Sprint(i))
	}
	testkit.Eventually(t, "the first dial begins", func() bool { return dials.Load() == 1 })
	exchangeDatagram(t, quick, "quick", "quick")
	write(t, failed, "x")
	if r := done.next(t); r.Err == nil || r.Target != "name:53" {
		t.Errorf("report of the flow whose dial failed: %+v, want an error and the target name:53", r)
	}
	close(release)
	for i := range maxWaiting {
		b := make([]byte, 10)
		if n, err := slow.Read(b); err != nil || string(b[:n]) != fmt.Sprint(i) {
			t.Fatalf("the client read the datagram %q, %v, want %d", b[:n], err, i)
		}
	}
}

// associate opens a UDP association. It returns the TCP connection of the association and the address for datagrams.
func associate(t testing.TB, addr string) (*net.TCPConn, netip.AddrPort) {
	t.Helper()
	c := dial(t, addr)
	write(t, c, hello+"\x05\x03\x00\x01"+zeros(6))
	return c, wantReply(t, c, 0)
}

// TestSOCKSDatagrams checks that a client reaches several targets, by address and by name, through one association. The server
// must drop fragments and the datagrams of other senders, and the association must end with its TCP connection.
func TestSOCKSDatagrams(t *testing.T) {
	at := udpTarget(t, unchanged)
	var asked sync.Map
	addr, done := serve(t, &Server{Protocol: SOCKS5{}, ListenPacket: net.ListenPacket, DialContext: to(at.String(), &asked)})
	c, relay := associate(t, addr)
	u := udpClient(t, relay.String())
	head := "\x00\x00\x00" + string(appendAddress(nil, at))
	name := "\x00\x00\x00\x03\x06target" + string([]byte{byte(at.Port() >> 8), byte(at.Port())})
	write(t, u, "\x00\x00\x01"+head[3:]+"a fragment")
	write(t, u, "short")
	exchangeDatagram(t, u, head+"one", head+"one")
	stranger := udpClient(t, relay.String())
	write(t, stranger, head+"stranger")
	for range 3 {
		exchangeDatagram(t, u, name+"two", head+"two")
	}
	exchangeDatagram(t, u, head+zeros(60000), head+zeros(60000))
	exchangeDatagram(t, u, head, head)
	if _, ok := asked.Load(fmt.Sprintf("udp target:%d", at.Port())); !ok {
		t.Error("the server did not dial the name of the target")
	}
	c.Close()
	if r := done.next(t); r.Err != nil || r.Sent != 3+9+60000 || r.Received != r.Sent {
		t.Errorf("report: %+v, want no error and 60012 bytes in each direction", r)
	}
	testkit.Eventually(t, "the socket of an association is closed", func() bool {
		l, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(relay))
		if err == nil {
			l.Close()
		}
		return err == nil
	})
}

// TestSOCKSDatagramAllocations checks that the server parses a SOCKS client's datagram and resolves a known name without an
// allocation.
func TestSOCKSDatagramAllocations(t *testing.T) {
	r := names{known: map[string]knownName{"target": {addr: netip.IPv6Loopback(), until: time.Now().Add(time.Hour)}}}
	for _, b := range []string{"\x00\x00\x00\x01\x01\x02\x03\x04\x00\x35data", "\x00\x00\x00\x03\x06target\x00\x35data"} {
		b := []byte(b)
		if n := testing.AllocsPerRun(100, func() {
			to, name, _, err := parseDatagram(b)
			if name != nil {
				to, err = r.resolve(name, to.Port())
			}
			if err != nil || to.Port() != 53 || !to.IsValid() {
				t.Errorf("%q: target %v, %v, want a valid address with port 53", b, to, err)
			}
		}); n > 0 && !testkit.Race {
			t.Errorf("%q: %v allocations, want 0", b, n)
		}
	}
}

// FuzzDatagram checks that the parts that parseDatagram returns lie within the datagram.
func FuzzDatagram(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01\x01\x02\x03\x04\x00\x35data"))
	f.Add([]byte("\x00\x00\x00\x03\x01a\x00\x35"))
	f.Add([]byte("\x00\x00\x00\x04" + zeros(18)))
	f.Fuzz(func(t *testing.T, b []byte) {
		to, name, data, err := parseDatagram(b)
		if err == nil && (b[2] != 0 || to.IsValid() == (len(name) > 0) || len(data) > len(b)-7 || len(data) > 0 && &data[len(data)-1] != &b[len(b)-1]) {
			t.Errorf("%q: parseDatagram accepts it with the target %v or the name %q, and %d bytes of data; want either an address or a name, and the data from the end of the datagram", b, to, name, len(data))
		}
	})
}
