package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRefusals makes calls that a Net must refuse. It checks that each refusal is immediate, wraps the error number that package
// net reports, and contains the given text.
func TestRefusals(t *testing.T) {
	make := func(c Config) *Net {
		n, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
		n.link.attach(discard{})
		return n
	}
	four, six := make(Config{Addresses: []netip.Addr{a4}}), make(Config{Addresses: []netip.Addr{a6}})
	both := make(Config{Addresses: []netip.Addr{a4, a6}})
	dial := func(n *Net, network, to string) func() error {
		return func() error { _, err := n.Dial(network, to); return err }
	}
	listen := func(n *Net, network, at string) func() error {
		return func() error { _, err := n.Listen(network, at); return err }
	}
	packet := func(n *Net, network, at string) func() error {
		return func() error { _, err := n.ListenPacket(network, at); return err }
	}
	send := func(n *Net, to string) func() error {
		c, err := n.ListenUDP(netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return func() error {
			_, err := c.WriteToUDPAddrPort([]byte("x"), netip.MustParseAddrPort(to))
			return err
		}
	}
	ping := func(n *Net, to string) func() error {
		return func() error { _, err := n.Ping(t.Context(), netip.MustParseAddr(to)); return err }
	}
	from := func(n *Net, local, to string) func() error {
		return func() error {
			_, err := n.DialTCP(t.Context(), netip.MustParseAddrPort(local), netip.MustParseAddrPort(to))
			return err
		}
	}
	udpFrom := func(n *Net, local, to string) func() error {
		return func() error {
			_, err := n.DialUDP(netip.MustParseAddrPort(local), netip.MustParseAddrPort(to))
			return err
		}
	}
	for name, x := range map[string]struct {
		do   func() error
		want syscall.Errno
		says []string
	}{
		"dial loopback":          {dial(both, "tcp", "127.0.0.1:80"), syscall.ENETUNREACH, []string{"127.0.0.1", "no loopback", "10.8.0.1, fd08::1"}},
		"dial loopback, IPv6":    {dial(both, "tcp", "[::1]:80"), syscall.ENETUNREACH, []string{"::1", "no loopback", "10.8.0.1, fd08::1"}},
		"dial loopback, UDP":     {dial(both, "udp", "127.1.2.3:53"), syscall.ENETUNREACH, []string{"127.1.2.3", "no loopback"}},
		"dial loopback, mapped":  {dial(both, "tcp", "[::ffff:127.0.0.1]:80"), syscall.ENETUNREACH, []string{"no loopback"}},
		"dial no IPv6":           {dial(four, "tcp", "[fd08::2]:80"), syscall.ENETUNREACH, []string{"fd08::2", "only IPv4", "10.8.0.1", "Config.Addresses"}},
		"dial no IPv4":           {dial(six, "tcp", "10.8.0.2:80"), syscall.ENETUNREACH, []string{"10.8.0.2", "only IPv6", "fd08::1", "Config.Addresses"}},
		"dial no IPv6, UDP":      {dial(four, "udp", "[fd08::2]:80"), syscall.ENETUNREACH, []string{"only IPv4"}},
		"dial a group":           {dial(both, "tcp", "224.0.0.1:80"), syscall.ENETUNREACH, []string{"several hosts"}},
		"dial everybody":         {dial(both, "tcp", "255.255.255.255:80"), syscall.ENETUNREACH, []string{"several hosts"}},
		"dial from elsewhere":    {from(both, "10.9.9.9:0", "10.8.0.2:80"), syscall.EADDRNOTAVAIL, []string{"10.9.9.9", "10.8.0.1, fd08::1"}},
		"listen elsewhere":       {listen(both, "tcp", "10.9.9.9:80"), syscall.EADDRNOTAVAIL, []string{"10.9.9.9", "10.8.0.1, fd08::1"}},
		"listen on loopback":     {listen(both, "tcp", "127.0.0.1:80"), syscall.EADDRNOTAVAIL, []string{"127.0.0.1", "10.8.0.1, fd08::1"}},
		"packets elsewhere":      {packet(both, "udp", "10.9.9.9:80"), syscall.EADDRNOTAVAIL, []string{"10.9.9.9", "10.8.0.1, fd08::1"}},
		"packets on loopback":    {packet(both, "udp", "[::1]:80"), syscall.EADDRNOTAVAIL, []string{"::1", "10.8.0.1, fd08::1"}},
		"send to loopback":       {send(both, "127.0.0.1:53"), syscall.ENETUNREACH, []string{"no loopback"}},
		"send to loopback, IPv6": {send(both, "[::1]:53"), syscall.ENETUNREACH, []string{"no loopback"}},
		"send without IPv6":      {send(four, "[fd08::2]:53"), syscall.ENETUNREACH, []string{"only IPv4"}},
		"send without IPv4":      {send(six, "10.8.0.2:53"), syscall.ENETUNREACH, []string{"only IPv6"}},
		"dial from a group":      {from(both, "224.0.0.1:0", "10.8.0.2:80"), syscall.EADDRNOTAVAIL, []string{"multicast", "TCP"}},
		"dial from IPv4 to IPv6": {from(both, "10.8.0.1:0", "[fd08::2]:80"), syscall.EINVAL, []string{"10.8.0.1 and fd08::2", "families"}},
		"dial from IPv6 to IPv4": {from(both, "[fd08::1]:0", "10.8.0.2:80"), syscall.EINVAL, []string{"fd08::1 and 10.8.0.2", "families"}},
		"UDP from IPv4 to IPv6":  {udpFrom(both, "10.8.0.1:0", "[fd08::2]:80"), syscall.EINVAL, []string{"10.8.0.1 and fd08::2", "families"}},
		"UDP from IPv6 to IPv4":  {udpFrom(both, "[fd08::1]:0", "10.8.0.2:80"), syscall.EINVAL, []string{"fd08::1 and 10.8.0.2", "families"}},
		"UDP from elsewhere":     {udpFrom(both, "10.9.9.9:0", "10.8.0.2:80"), syscall.EADDRNOTAVAIL, []string{"10.9.9.9", "10.8.0.1, fd08::1"}},
		"listen on a group":      {listen(both, "tcp", "224.0.0.1:80"), syscall.EADDRNOTAVAIL, []string{"multicast", "TCP"}},
		"group without IPv6":     {packet(four, "udp", "[ff02::1]:80"), syscall.EAFNOSUPPORT, []string{"ff02::1", "only IPv4"}},
		"group without IPv4":     {packet(six, "udp", "224.0.0.1:80"), syscall.EAFNOSUPPORT, []string{"224.0.0.1", "only IPv6"}},
		"broadcast without IPv4": {send(six, "255.255.255.255:9"), syscall.ENETUNREACH, []string{"only IPv6"}},
		"ping a group":           {ping(both, "ff02::1"), syscall.ENETUNREACH, []string{"several hosts"}},
		"ping everybody":         {ping(both, "255.255.255.255"), syscall.ENETUNREACH, []string{"several hosts"}},
		"ping loopback":          {ping(both, "127.0.0.1"), syscall.ENETUNREACH, []string{"no loopback"}},
		"ping without IPv6":      {ping(four, "fd08::2"), syscall.ENETUNREACH, []string{"only IPv4"}},
		"listen without IPv6":    {listen(four, "tcp6", ":80"), syscall.EAFNOSUPPORT, []string{"only IPv4", "10.8.0.1"}},
		"listen without IPv4":    {listen(six, "tcp4", ":80"), syscall.EAFNOSUPPORT, []string{"only IPv6", "fd08::1"}},
		"packets without IPv4":   {packet(six, "udp4", ":80"), syscall.EAFNOSUPPORT, []string{"only IPv6", "fd08::1"}},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			err := x.do()
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("the refusal took %v, want an immediate one", took)
			}
			wantOpError(t, "refused call", err, x.want)
			var call *os.SyscallError
			if !errors.As(err, &call) {
				t.Errorf("the error %v wraps no *os.SyscallError, but package net's does", err)
			}
			for _, want := range x.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not contain %q: %v", want, err)
				}
			}
		})
	}
}

// TestListenOnName checks that Listen and ListenPacket refuse a name, because they do not resolve names.
func TestListenOnName(t *testing.T) {
	n, _ := pair(t)
	_, err1 := n.Listen("tcp", "localhost:80")
	_, err2 := n.ListenPacket("udp", "localhost:80")
	for _, err := range []error{err1, err2} {
		var a *net.AddrError
		if !errors.As(err, &a) || !strings.Contains(err.Error(), "one of 10.8.0.1, fd08::1") {
			t.Errorf("listening on a name returned %v, want a *net.AddrError that names the Net's addresses", err)
		}
	}
}

// TestAddresses checks that an error lists only the first addresses of a Net that has many.
func TestAddresses(t *testing.T) {
	n := &Net{addrs: addrs("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6")}
	if got, want := n.addresses(), "10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4 and 2 more"; got != want {
		t.Errorf("addresses returns %q, want %q", got, want)
	}
}

// TestNoNet checks the errors of a Dialer and a ListenConfig without a Net.
func TestNoNet(t *testing.T) {
	_, err1 := new(Dialer).Dial("tcp", "10.0.0.1:80")
	_, err2 := new(Dialer).DialTCP(t.Context(), "tcp", netip.AddrPort{}, netip.MustParseAddrPort("10.0.0.1:80"))
	_, err3 := new(Dialer).DialUDP(t.Context(), "udp", netip.AddrPort{}, netip.MustParseAddrPort("10.0.0.1:80"))
	_, err4 := new(ListenConfig).Listen(context.Background(), "tcp", ":80")
	_, err5 := new(ListenConfig).ListenPacket(context.Background(), "udp", ":80")
	for i, err := range []error{err1, err2, err3, err4, err5} {
		if _, ok := err.(*net.OpError); !ok || !errors.Is(err, errNoNet) {
			t.Errorf("call %d without a Net returned %v, want a *net.OpError that wraps errNoNet", i+1, err)
		}
	}
}

// TestSelf checks that, as in package net, the unspecified address as a destination means the Net itself.
func TestSelf(t *testing.T) {
	n, err := New(Config{Addresses: []netip.Addr{a4, a6}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	echo(t, n, ":80")
	u, err := n.ListenUDP(netip.MustParseAddrPort("0.0.0.0:81"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for _, unspecified := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		c, err := n.DialTCP(t.Context(), netip.AddrPort{}, netip.AddrPortFrom(unspecified, 80))
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, c)
		_ = c.Close()
		if _, err := u.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(unspecified, 81)); err != nil {
			t.Fatal(err)
		}
		_ = u.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, from, err := u.ReadFromUDPAddrPort(make([]byte, 1)); err != nil || from.Addr() != a4 && from.Addr() != a6 {
			t.Errorf("a datagram to %v came from %v, %v; want it from one of the Net's own addresses", unspecified, from, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := n.Ping(ctx, unspecified); err != nil {
			t.Error(err)
		}
		cancel()
	}
}

// TestBroadcast checks that a UDPConn can send to the broadcast address, as in package net.
func TestBroadcast(t *testing.T) {
	a, b := pair(t)
	s, err := b.ListenPacket("udp4", ":67")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, network := range []string{"udp", "udp4"} {
		c, err := a.ListenPacket(network, ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.WriteTo([]byte("hello"), &net.UDPAddr{IP: net.IPv4bcast, Port: 67}); err != nil {
			t.Fatal(err)
		}
		_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
		got := make([]byte, 10)
		if n, from, err := s.ReadFrom(got); string(got[:n]) != "hello" || err != nil {
			t.Errorf("%s: the receiver read %q from %v, %v; want the datagram hello", network, got[:n], from, err)
		}
	}
	d, err := a.Dial("udp", "255.255.255.255:67")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	write(t, d, "dialed")
	got := make([]byte, 10)
	if n, _, err := s.ReadFrom(got); string(got[:n]) != "dialed" || err != nil {
		t.Errorf("the receiver read %q, %v; want the datagram dialed", got[:n], err)
	}
}
