package sockets

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// TestWaiter checks that a wait ends when a datagram arrives, and leaves the datagram for the read. If the socket is closed, the
// wait ends with an error.
func TestWaiter(t *testing.T) {
	if runtime.GOOS == "windows" || runtime.GOOS == "js" {
		t.Skip("needs Unix, because Waiter does not wait on other systems")
	}
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	wait := Waiter(DatagramsOf(c))
	waits := make(chan error, 1)
	go func() { waits <- wait() }()
	select {
	case err := <-waits:
		t.Fatalf("the wait returned %v without a datagram", err)
	case <-time.After(20 * time.Millisecond):
	}
	if _, err := c.WriteTo([]byte("hello"), c.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if err := <-waits; err != nil {
		t.Errorf("the wait for a datagram returned %v, want nil", err)
	}
	if err := wait(); err != nil {
		t.Errorf("the wait for a datagram that had already arrived returned %v, want nil", err)
	}
	b := make([]byte, 10)
	if n, _, err := c.ReadFrom(b); string(b[:n]) != "hello" {
		t.Errorf("read %q, error %v after the wait; want hello", b[:n], err)
	}
	go func() { waits <- wait() }()
	time.Sleep(time.Millisecond)
	c.Close()
	if err := <-waits; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the wait returned %v after Close, want net.ErrClosed", err)
	}
}

// plain hides the methods of a *net.UDPConn that net.PacketConn does not have.
type plain struct{ net.PacketConn }

// TestDatagramsOf checks that DatagramsOf accepts a socket that has only the methods of net.PacketConn. The result reads and
// writes with a netip.AddrPort, and the function that Waiter returns for it does not block.
func TestDatagramsOf(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d := DatagramsOf(plain{c})
	if err := Waiter(d)(); err != nil {
		t.Error(err)
	}
	at := c.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := d.WriteToUDPAddrPort([]byte("hello"), at); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	n, from, err := d.ReadFromUDPAddrPort(b)
	if string(b[:n]) != "hello" || netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != at || err != nil {
		t.Errorf("read %q from %v, error %v; want hello from %v", b[:n], from, err, at)
	}
}

// TestAbort checks that the other side of an aborted connection gets a reset, and not the end of the data.
func TestAbort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	Abort(a)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) && runtime.GOOS != "windows" {
		t.Errorf("Read at the other side returned %v, want %v", err, syscall.ECONNRESET)
	}
}
