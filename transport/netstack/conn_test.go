package netstack

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/net/nettest"
	"gvisor.dev/gvisor/pkg/tcpip"
)

func TestConnTCP(t *testing.T) {
	for name, to := range map[string]netip.Addr{"IPv4": b4, "IPv6": b6} {
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				a, b := pair(t)
				x, y := connectedTCP(t, a, b, to)
				return x, y, func() { _, _ = x.Close(), y.Close() }, nil
			})
		})
	}
}

// connectedTCP returns both ends of a connection from a to the address to of b.
func connectedTCP(t testing.TB, a, b *Net, to netip.Addr) (c1, c2 *TCPConn) {
	t.Helper()
	l, err := b.ListenTCP(netip.AddrPortFrom(to, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c1, err = a.DialTCP(t.Context(), netip.AddrPort{}, l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	if c2, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c1.Close(), c2.Close() })
	return c1, c2
}

// TestConnUDP runs the tests of nettest on UDP connections. No datagram socket passes the subtests BasicIO and PingPong, because
// they expect that a read ends when the other end has closed its connection. These two subtests run first, and get TCP
// connections instead.
func TestConnUDP(t *testing.T) {
	for name, addrs := range map[string][2]netip.Addr{"IPv4": {a4, b4}, "IPv6": {a6, b6}} {
		t.Run(name, func(t *testing.T) {
			subtest := 0
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				a, b := deepPair(t)
				if subtest++; subtest <= 2 {
					x, y := connectedTCP(t, a, b, addrs[1])
					return x, y, func() { _, _ = x.Close(), y.Close() }, nil
				}
				x, y := connectedUDP(t, a, b, addrs[0], addrs[1])
				return x, y, func() { _, _ = x.Close(), y.Close() }, nil
			})
		})
	}
}

// connectedUDP returns two UDP connections to each other, with deep buffers.
func connectedUDP(t testing.TB, a, b *Net, at, to netip.Addr) (c1, c2 *UDPConn) {
	t.Helper()
	open := func(n *Net, local, remote netip.AddrPort) *UDPConn {
		deepBuffers(t, n)
		c, err := n.DialUDP(local, remote)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	p, q := netip.AddrPortFrom(at, 1111), netip.AddrPortFrom(to, 2222)
	return open(a, p, q), open(b, q, p)
}

// deepBuffers gives the UDP endpoints that n makes from now on such large receive buffers that a test cannot fill them. A test
// that floods an endpoint and then waits for one particular datagram must not lose that datagram.
func deepBuffers(t testing.TB, n *Net) {
	t.Helper()
	const size = 1 << 30
	if err := n.Stack().SetOption(tcpip.ReceiveBufferSizeOption{Min: 4096, Default: size, Max: size}); err != nil {
		t.Fatal(err)
	}
}

func TestHalfClose(t *testing.T) {
	a, b := pair(t)
	c, s := connectedTCP(t, a, b, b4)
	write(t, c, "question")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("more")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write after CloseWrite: %v, want EPIPE", err)
	}
	if got, err := io.ReadAll(s); string(got) != "question" || err != nil {
		t.Fatalf("read %q, %v from a half-closed connection, want \"question\" and its end", got, err)
	}
	write(t, s, "answer")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); string(got) != "answer" || err != nil {
		t.Fatalf("read %q, %v in the direction that is still open, want \"answer\" and its end", got, err)
	}
}

func TestCloseRead(t *testing.T) {
	a, b := pair(t)
	c, s := connectedTCP(t, a, b, b4)
	waiting := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		waiting <- err
	}()
	if err := c.CloseRead(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != io.EOF {
		t.Errorf("a Read that was waiting when CloseRead was called returned %v, want io.EOF", err)
	}
	write(t, c, "still open")
	if got := make([]byte, 10); true {
		if _, err := io.ReadFull(s, got); err != nil || string(got) != "still open" {
			t.Errorf("after CloseRead at the sender, the other end read %q, %v; want \"still open\"", got, err)
		}
	}
}

func TestErrorsTCP(t *testing.T) {
	a, b := pair(t)
	t.Run("use after Close", func(t *testing.T) {
		c, _ := connectedTCP(t, a, b, b4)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		_, rerr := c.Read(make([]byte, 1))
		_, werr := c.Write(make([]byte, 1))
		_, cerr := c.WriteTo(io.Discard)
		for what, err := range map[string]error{
			"Read": rerr, "Write": werr, "WriteTo": cerr, "Close": c.Close(), "CloseRead": c.CloseRead(), "CloseWrite": c.CloseWrite(),
			"SetDeadline": c.SetDeadline(time.Time{}), "SetNoDelay": c.SetNoDelay(true), "SetLinger": c.SetLinger(0),
		} {
			wantOpError(t, what, err, net.ErrClosed)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		c, _ := connectedTCP(t, a, b, b4)
		_ = c.SetReadDeadline(time.Now())
		_, err := c.Read(make([]byte, 1))
		wantOpError(t, "Read", err, os.ErrDeadlineExceeded)
		_, err = c.WriteTo(io.Discard)
		wantOpError(t, "WriteTo", err, os.ErrDeadlineExceeded)
		_ = c.SetWriteDeadline(time.Now())
		_, err = c.Write(make([]byte, 1))
		wantOpError(t, "Write", err, os.ErrDeadlineExceeded)
	})
	t.Run("reset", func(t *testing.T) {
		c, s := connectedTCP(t, a, b, b4)
		if err := s.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := c.Read(make([]byte, 1))
		wantOpError(t, "Read", err, syscall.ECONNRESET)
		_, err = c.Write(make([]byte, 1))
		wantOpError(t, "Write", err, syscall.EPIPE)
	})
	t.Run("Net closed", func(t *testing.T) {
		a, b := pair(t)
		c, _ := connectedTCP(t, a, b, b4)
		waiting := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 1))
			waiting <- err
		}()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		wantOpError(t, "Read that waited", <-waiting, net.ErrClosed)
		_, err := c.Write(make([]byte, 1))
		wantOpError(t, "Write", err, net.ErrClosed)
	})
}

// wantOpError checks that err is a *net.OpError that wraps want and has an address.
func wantOpError(t *testing.T, what string, err, want error) {
	t.Helper()
	var op *net.OpError
	if !errors.As(err, &op) || !errors.Is(err, want) {
		t.Errorf("%s: %v (%T), want a *net.OpError that wraps %v", what, err, err, want)
		return
	}
	if op.Op == "" || op.Net == "" || op.Addr == nil && op.Source == nil {
		t.Errorf("%s: the error %#v lacks Op, Net, or both addresses", what, op)
	}
}

// TestWriteTo copies from a connection with io.Copy, which uses WriteTo.
func TestWriteTo(t *testing.T) {
	a, b := pair(t)
	c, s := connectedTCP(t, a, b, b4)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		_, _ = s.Write(want)
		_ = s.Close()
	}()
	var got bytes.Buffer
	n, err := io.Copy(&got, c)
	if n != int64(len(want)) || err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("copied %d bytes, %v; want the same %d bytes and no error", n, err, len(want))
	}
}

// TestReadFrom copies a stream into a connection with io.Copy, which uses ReadFrom.
func TestReadFrom(t *testing.T) {
	a, b := pair(t)
	c, s := connectedTCP(t, a, b, b4)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	got := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(s)
		got <- all
	}()
	source := io.MultiReader(bytes.NewReader(want)) // hides the method WriteTo of bytes.Reader
	if n, err := io.Copy(c, source); n != int64(len(want)) || err != nil {
		t.Errorf("copied %d bytes, %v; want %d and no error", n, err, len(want))
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := <-got; !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived, want the same %d bytes", len(got), len(want))
	}
	broken := errors.New("broken source")
	_, err := c.ReadFrom(iotest.ErrReader(broken))
	wantOpError(t, "ReadFrom of a broken source", err, broken)
	n, err := c.ReadFrom(strings.NewReader("x"))
	wantOpError(t, "ReadFrom after CloseWrite", err, syscall.EPIPE)
	if n != 0 {
		t.Errorf("ReadFrom after CloseWrite copied %d bytes, want 0", n)
	}
	if on, err := c.MultipathTCP(); on || err != nil {
		t.Errorf("MultipathTCP returned %v, %v; want false and no error", on, err)
	}
}

func TestErrorsUDP(t *testing.T) {
	a, b := pair(t)
	c, _ := connectedUDP(t, a, b, a4, b4)
	_, err := c.WriteTo([]byte("x"), c.RemoteAddr())
	wantOpError(t, "WriteTo of a dialed connection", err, net.ErrWriteToConnected)

	refused, err := a.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(b4, 9))
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	write(t, refused, "is there anybody?")
	_, err = refused.Read(make([]byte, 1))
	wantOpError(t, "Read after a datagram to a closed port", err, syscall.ECONNREFUSED)

	l, err := a.ListenUDP(netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.Write([]byte("x"))
	wantOpError(t, "Write without an address", err, syscall.EDESTADDRREQ)
	_, err = l.WriteTo([]byte("x"), &net.TCPAddr{})
	if err == nil {
		t.Error("WriteTo a *net.TCPAddr succeeded")
	}
	_, err = l.WriteToUDPAddrPort(make([]byte, 66000), netip.AddrPortFrom(b4, 9))
	wantOpError(t, "Write of 66,000 bytes", err, syscall.EMSGSIZE)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, _, err = l.ReadFrom(make([]byte, 1))
	wantOpError(t, "ReadFrom after Close", err, net.ErrClosed)
	wantOpError(t, "Close again", l.Close(), net.ErrClosed)
}

// TestDatagrams sends datagrams of both families through one socket. Some datagrams are empty, some are larger than the reader's
// buffer, and some must be fragmented.
func TestDatagrams(t *testing.T) {
	a, b := pair(t)
	s, err := b.ListenPacket("udp", ":53")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := a.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 1<<16)
	for _, n := range []int{0, 1, 1000, 1392, 1500, 5000, 40000} {
		for _, to := range []netip.Addr{b4, b6} {
			want := bytes.Repeat([]byte{byte(n)}, n)
			if _, err := c.WriteTo(want, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 53))); err != nil {
				t.Fatalf("sending %d bytes to %v failed: %v", n, to, err)
			}
			got, from, err := s.ReadFrom(buf)
			if err != nil || !bytes.Equal(buf[:got], want) {
				t.Fatalf("after %d bytes were sent to %v, the server read %d bytes, %v; want the same bytes", n, to, got, err)
			}
			if a := from.(*net.UDPAddr).AddrPort().Addr(); a != a4 && a != a6 || a.Is4() != to.Is4() {
				t.Errorf("a datagram to %v came from %v, want the client's address of the same family", to, a)
			}
			// The answer has n bytes, but the client reads it into a buffer of half that size.
			if _, err := s.WriteTo(want, from); err != nil {
				t.Fatal(err)
			}
			got, from, err = c.ReadFrom(buf[:max(n/2, 1)])
			if err != nil || got != n/2 && n > 1 {
				t.Fatalf("reading an answer of %d bytes into a buffer of half the size returned %d, %v; want a full buffer", n, got, err)
			}
			if want := netip.AddrPortFrom(to, 53); from.(*net.UDPAddr).AddrPort() != want {
				t.Errorf("the answer came from %v, want %v, to which the datagram was sent", from, want)
			}
		}
	}
}

func write(t testing.TB, w io.Writer, s string) {
	t.Helper()
	if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatalf("writing %q returned %d, %v", s, n, err)
	}
}

// TestForgotten checks that a closed connection does not keep its memory while gVisor keeps its endpoint in TIME-WAIT.
func TestForgotten(t *testing.T) {
	a, b := pair(t)
	collected := make(chan struct{})
	func() {
		l, err := b.ListenTCP(netip.AddrPortFrom(b4, 80))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := a.DialTCP(t.Context(), netip.AddrPort{}, netip.AddrPortFrom(b4, 80))
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		runtime.AddCleanup(c, func(int) { close(collected) }, 0)
		write(t, c, "x")
		_, _ = s.Read(make([]byte, 1))
		write(t, s, "x")
		_, _ = c.Read(make([]byte, 1))
		_ = c.Close()
		_, _ = io.ReadAll(s)
		_ = s.Close()
	}()
	for range 100 {
		runtime.GC()
		select {
		case <-collected:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Error("a closed connection is still in memory")
}

// TestDatagramFlood makes many goroutines send datagrams as fast as they can. It checks that the senders wait for each other, and
// that no datagram is lost before it reaches the receiver's buffer.
func TestDatagramFlood(t *testing.T) {
	const senders, each = 8, 200
	a, b := deepPair(t)
	deepBuffers(t, b)
	s, err := b.ListenUDP(netip.AddrPortFrom(b4, 3333))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			c, err := a.ListenUDP(netip.AddrPort{})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for range each {
				if _, err := c.WriteToUDPAddrPort(make([]byte, 100+i*170), netip.AddrPortFrom(b4, 3333)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range senders * each {
		if err := s.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.ReadFrom(make([]byte, 2000)); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	if d := a.Stats(); d != (Stats{}) {
		t.Errorf("the Stats of the sending Net are %+v, want all 0", d)
	}
}

// TestUDPReadAllocatesNothing checks that each method that promises not to allocate reads a waiting datagram without an
// allocation.
func TestUDPReadAllocatesNothing(t *testing.T) {
	const reads = 100
	a, b := pair(t)
	c, s := connectedUDP(t, a, b, a4, b4)
	if err := s.SetReadBuffer(1 << 20); err != nil {
		t.Fatal(err)
	}
	buf, oob := make([]byte, 100), make([]byte, 128)
	for name, read := range map[string]func() (int, error){
		"Read":                func() (int, error) { return s.Read(buf) },
		"ReadFromUDPAddrPort": func() (int, error) { n, _, err := s.ReadFromUDPAddrPort(buf); return n, err },
		"ReadMsgUDPAddrPort":  func() (int, error) { n, _, _, _, err := s.ReadMsgUDPAddrPort(buf, oob); return n, err },
	} {
		for range reads + 1 { // AllocsPerRun calls read once more
			write(t, c, "datagram")
		}
		_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n := testing.AllocsPerRun(reads, func() {
			if n, err := read(); n != len("datagram") || err != nil {
				t.Errorf("%s returned %d bytes, %v; want the datagram", name, n, err)
			}
		}); n != 0 {
			t.Errorf("%s allocates %v times, want 0", name, n)
		}
	}
}

// TestWaitReadable checks that WaitReadable waits for a datagram and does not read it, and that a deadline and Close end
// WaitReadable.
func TestWaitReadable(t *testing.T) {
	a, b := pair(t)
	u, err := b.ListenUDP(netip.AddrPortFrom(b4, 9))
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(b4, 9))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	waits := make(chan error, 1)
	go func() { waits <- u.WaitReadable() }()
	select {
	case err := <-waits:
		t.Fatalf("WaitReadable returned %v before a datagram arrived", err)
	case <-time.After(10 * time.Millisecond):
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := <-waits; err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if n, err := u.Read(got); err != nil || string(got[:n]) != "hello" {
		t.Errorf("after WaitReadable, Read returned %q, %v; want \"hello\"", got[:n], err)
	}
	_ = u.SetReadDeadline(time.Now().Add(-time.Second))
	if err := u.WaitReadable(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("WaitReadable after the deadline returned %v, want os.ErrDeadlineExceeded", err)
	}
	_ = u.SetReadDeadline(time.Time{})
	go func() { waits <- u.WaitReadable() }()
	u.Close()
	if err := <-waits; !errors.Is(err, net.ErrClosed) {
		t.Errorf("WaitReadable returned %v after Close, want net.ErrClosed", err)
	}
}
