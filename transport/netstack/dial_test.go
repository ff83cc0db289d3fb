package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
)

// echo listens on the given address of n, and sends back what it receives.
func echo(t testing.TB, n *Net, address string) net.Listener {
	t.Helper()
	l, err := n.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l
}

func roundTrip(t testing.TB, c net.Conn) {
	t.Helper()
	write(t, c, "hello")
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); string(b) != "hello" || err != nil {
		t.Fatalf("%v: read %q, %v; want \"hello\"", c.RemoteAddr(), b, err)
	}
}

func TestDial(t *testing.T) {
	a, b := pair(t)
	for _, l := range []string{":80", "10.8.0.2:81", "[fd08::2]:82", "0.0.0.0:83", "[::]:84"} {
		echo(t, b, l)
	}
	l4, err := b.Listen("tcp4", ":85")
	if err != nil {
		t.Fatal(err)
	}
	defer l4.Close()
	if got := l4.Addr().String(); got != "0.0.0.0:85" {
		t.Errorf("the address of the tcp4 listener is %s, want 0.0.0.0:85", got)
	}
	for _, x := range []struct {
		network, to string
		want        error // nil means that the dial succeeds
	}{
		{"tcp", "10.8.0.2:80", nil},
		{"tcp", "[fd08::2]:80", nil},
		{"tcp4", "10.8.0.2:80", nil},
		{"tcp6", "[fd08::2]:80", nil},
		{"tcp", "[::ffff:10.8.0.2]:80", nil},
		{"tcp", "10.8.0.2:http", nil},
		{"tcp", "10.8.0.2:81", nil},
		{"tcp", "[fd08::2]:81", syscall.ECONNREFUSED}, // the listener is bound to the other address
		{"tcp", "[fd08::2]:82", nil},
		{"tcp", "10.8.0.2:82", syscall.ECONNREFUSED},
		{"tcp", "10.8.0.2:83", nil},
		{"tcp", "[fd08::2]:83", nil}, // as in package net, 0.0.0.0 means all addresses of a host with both families
		{"tcp", "10.8.0.2:84", nil},
		{"tcp", "[fd08::2]:84", nil},
		{"tcp", "10.8.0.2:85", nil},
		{"tcp", "[fd08::2]:85", syscall.ECONNREFUSED},
		{"tcp", "10.8.0.2:9", syscall.ECONNREFUSED},
	} {
		c, err := a.Dial(x.network, x.to)
		if x.want != nil {
			wantOpError(t, x.network+" "+x.to, err, x.want)
			continue
		}
		if err != nil {
			t.Errorf("the dial of %s to %s failed: %v", x.network, x.to, err)
			continue
		}
		if x.to != "10.8.0.2:85" {
			roundTrip(t, c)
		}
		_ = c.Close()
	}
}

// TestDialSelf dials a listener of the same Net, both with an address of the Net and without a host. Package net allows both.
func TestDialSelf(t *testing.T) {
	n, err := New(Config{Addresses: []netip.Addr{a4, a6}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	echo(t, n, ":80")
	for _, to := range []string{"10.8.0.1:80", "[fd08::1]:80", ":80", "0.0.0.0:80", "[::]:80"} {
		c, err := n.Dial("tcp", to)
		if err != nil {
			t.Errorf("the dial to %s failed: %v", to, err)
			continue
		}
		roundTrip(t, c)
		_ = c.Close()
	}
}

func TestDialMisuse(t *testing.T) {
	a, _ := pair(t)
	for _, x := range [][2]string{
		{"ip", "10.8.0.2:80"}, {"", "10.8.0.2:80"}, {"tcp", "10.8.0.2"}, {"tcp", "10.8.0.2:no such service"},
		{"tcp", "10.8.0.2:65536"}, {"tcp4", "[fd08::2]:80"}, {"tcp6", "10.8.0.2:80"}, {"udp6", "10.8.0.2:80"},
	} {
		c, err := a.Dial(x[0], x[1])
		var op *net.OpError
		if !errors.As(err, &op) || op.Op != "dial" {
			t.Errorf("Dial(%q, %q) returned %v, %v; want a *net.OpError of dial", x[0], x[1], c, err)
		}
	}
	for _, x := range [][2]string{{"udp", ":80"}, {"tcp", "name:80"}, {"tcp", "80"}, {"tcp4", "[::1]:80"}, {"tcp6", "10.8.0.1:80"}} {
		if l, err := a.Listen(x[0], x[1]); err == nil {
			t.Errorf("Listen(%q, %q) listens on %v, want an error", x[0], x[1], l.Addr())
		}
	}
	for _, x := range [][2]string{{"tcp", ":80"}, {"udp", "name:80"}, {"udp6", "10.8.0.1:80"}} {
		if c, err := a.ListenPacket(x[0], x[1]); err == nil {
			t.Errorf("ListenPacket(%q, %q) listens on %v, want an error", x[0], x[1], c.LocalAddr())
		}
	}
	if _, err := a.DialTCP(t.Context(), netip.AddrPort{}, netip.AddrPort{}); err == nil {
		t.Error("DialTCP to the zero AddrPort succeeded")
	}
	if _, err := a.DialUDP(netip.AddrPort{}, netip.AddrPort{}); err == nil {
		t.Error("DialUDP to the zero AddrPort succeeded")
	}
}

func TestListenTaken(t *testing.T) {
	a, _ := pair(t)
	l := echo(t, a, ":80")
	_, err := a.Listen("tcp", ":80")
	wantOpError(t, "listen on a port in use", err, syscall.EADDRINUSE)
	_, err = a.Listen("tcp", "10.9.9.9:81")
	wantOpError(t, "listen on an address that the Net does not have", err, syscall.EADDRNOTAVAIL)
	_, err = a.DialTCP(t.Context(), netip.MustParseAddrPort("10.9.9.9:0"), netip.AddrPortFrom(b4, 80))
	wantOpError(t, "dial from an address that the Net does not have", err, syscall.EADDRNOTAVAIL)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wantOpError(t, "close again", l.Close(), net.ErrClosed)
	_, err = l.Accept()
	wantOpError(t, "accept after close", err, net.ErrClosed)
	echo(t, a, ":80") // the port is free again
}

func TestListenerUnblocks(t *testing.T) {
	a, _ := pair(t)
	l, err := a.ListenTCP(netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	_ = l.SetDeadline(time.Now().Add(time.Millisecond))
	_, err = l.Accept()
	wantOpError(t, "accept", err, os.ErrDeadlineExceeded)
	_ = l.SetDeadline(time.Time{})
	waiting := make(chan error)
	go func() {
		_, err := l.Accept()
		waiting <- err
	}()
	_ = l.Close()
	wantOpError(t, "accept that waits during close", <-waiting, net.ErrClosed)
}

func TestDialFrom(t *testing.T) {
	a, b := pair(t)
	echo(t, b, ":80")
	c, err := a.DialTCP(t.Context(), netip.AddrPortFrom(a4, 4321), netip.AddrPortFrom(b4, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.LocalAddr().String(); got != "10.8.0.1:4321" {
		t.Errorf("the local address is %s, want 10.8.0.1:4321", got)
	}
	roundTrip(t, c)
}

func TestDialGivesUp(t *testing.T) {
	a, _, ab, _ := wired(t, 0)
	ab.cut.Store(true)
	t.Run("deadline", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := a.DialContext(ctx, "tcp", "10.8.0.2:80")
		wantOpError(t, "dial", err, context.DeadlineExceeded)
		if e, ok := err.(net.Error); !ok || !e.Timeout() {
			t.Errorf("the error %v is not a timeout", err)
		}
	})
	t.Run("cancel", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		_, err := a.DialContext(ctx, "tcp", "10.8.0.2:80")
		wantOpError(t, "dial", err, context.Canceled)
		_, err = a.DialContext(ctx, "tcp", "10.8.0.2:80")
		wantOpError(t, "dial with a context that has ended", err, context.Canceled)
	})
	t.Run("close", func(t *testing.T) {
		time.AfterFunc(20*time.Millisecond, func() { _ = a.Close() })
		_, err := a.Dial("tcp", "10.8.0.2:80")
		wantOpError(t, "dial", err, net.ErrClosed)
		_, err = a.Dial("tcp", "10.8.0.2:80")
		wantOpError(t, "dial on a closed Net", err, net.ErrClosed)
		_, err = a.Listen("tcp", ":80")
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("listen on a closed Net returned %v, want net.ErrClosed", err)
		}
	})
}

// TestDialRace dials a name that has addresses of both families, while the connection to one of the addresses, or to both, fails in
// each possible way.
func TestDialRace(t *testing.T) {
	t.Run("silent", func(t *testing.T) {
		a, b, ab, _ := wired(t, 0)
		ab.tap = func(p []byte) bool { return p[0]>>4 == 6 && p[ip6Next] == protoTCP }
		serveDNS(t, b)
		echo(t, b, ":80")
		c, err := a.Dial("tcp", "both.test:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		roundTrip(t, c)
		if got := c.RemoteAddr().String(); got != "10.8.0.2:80" {
			t.Errorf("connected to %s, want 10.8.0.2:80", got)
		}
	})
	t.Run("refused", func(t *testing.T) {
		a, b := pair(t)
		serveDNS(t, b)
		echo(t, b, "10.8.0.2:80")
		c, err := a.Dial("tcp", "both.test:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		roundTrip(t, c)
	})
	t.Run("both refused", func(t *testing.T) {
		a, b := pair(t)
		serveDNS(t, b)
		_, err := a.Dial("tcp", "both.test:80")
		wantOpError(t, "dial", err, syscall.ECONNREFUSED)
		if got := err.(*net.OpError).Addr.String(); got != "[fd08::2]:80" {
			t.Errorf("the error is about %s, want the address of the preferred family", got)
		}
	})
	t.Run("preferred", func(t *testing.T) {
		a, b := pair(t)
		serveDNS(t, b)
		echo(t, b, ":80")
		for network, want := range map[string]string{"tcp": "[fd08::2]:80", "tcp4": "10.8.0.2:80", "tcp6": "[fd08::2]:80"} {
			c, err := a.Dial(network, "both.test:80")
			if err != nil {
				t.Fatal(err)
			}
			if got := c.RemoteAddr().String(); got != want {
				t.Errorf("%s: connected to %s, want %s", network, got, want)
			}
			_ = c.Close()
		}
	})
	t.Run("second address", func(t *testing.T) {
		a, b, ab, _ := wired(t, 0)
		ab.tap = func(p []byte) bool {
			if p[19] != 9 { // no host has the address 10.8.0.9
				return false
			}
			e := hostUnreachable(p)
			go func() { _, _ = a.WritePackets([][]byte{e}) }()
			return true
		}
		serveDNS(t, b)
		echo(t, b, ":80")
		c, err := a.Dial("tcp4", "two.test:80")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	})
}

func TestShare(t *testing.T) {
	for _, x := range []struct {
		left  time.Duration
		tries int
		want  time.Duration
	}{
		{30 * time.Second, 3, 10 * time.Second},
		{30 * time.Second, 1, 30 * time.Second},
		{5 * time.Second, 5, leastTry},
		{time.Second, 5, time.Second},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), x.left)
		whole, _ := ctx.Deadline()
		try, cancelTry := share(ctx, x.tries)
		end, _ := try.Deadline()
		// The test and share each read the clock, at slightly different times.
		if got := x.left - whole.Sub(end); got < x.want-time.Millisecond || got > x.want+time.Second/2 {
			t.Errorf("share gives the first of %d tries in %v a time of %v, want %v", x.tries, x.left, got, x.want)
		}
		cancelTry()
		cancel()
	}
}
