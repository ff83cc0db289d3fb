package netstack

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
)

// reads reports whether a datagram is waiting for c. In these tests, a datagram is delivered before the call that sends it
// returns.
func reads(t *testing.T, c *UDPConn) bool {
	t.Helper()
	wait := 10 * time.Second
	if !c.arrivals.isReadable() {
		wait = 0
	}
	_ = c.SetReadDeadline(time.Now().Add(wait))
	_, _, err := c.ReadFrom(make([]byte, 100))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == nil
}

// TestGroups joins and leaves multicast groups with two connections that are bound to the same port.
func TestGroups(t *testing.T) {
	for _, group := range addrs("224.0.0.251", "239.1.2.3", "ff02::fb", "ff0e::1234") {
		t.Run(group.String(), func(t *testing.T) {
			a, b := pair(t)
			at := netip.AddrPortFrom(group, 5353)
			c, err := a.ListenUDP(netip.AddrPort{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			send := func() {
				t.Helper()
				if _, err := c.WriteToUDPAddrPort([]byte("x"), at); err != nil {
					t.Fatal(err)
				}
			}
			first, err := b.ListenMulticastUDP("udp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			p, err := b.ListenPacket("udp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			second := p.(*UDPConn)
			if got := second.LocalAddr().(*net.UDPAddr); !got.IP.IsUnspecified() || got.Port != 5353 {
				t.Errorf("ListenPacket of a group listens on %v, want port 5353 of all addresses", got)
			}
			wantOpError(t, "join again", first.JoinGroup(group), syscall.EADDRINUSE)
			wantOpError(t, "leave without having joined", second.LeaveGroup(group), syscall.EADDRNOTAVAIL)
			send()
			if !reads(t, first) {
				t.Error("the connection that joined read nothing")
			}
			if err := second.JoinGroup(group); err != nil {
				t.Fatal(err)
			}
			_ = reads(t, second) // as on Linux, second may have received datagrams to a group that only first had joined
			send()
			if x, y := reads(t, first), reads(t, second); !x || !y {
				t.Errorf("both connections joined the group, and read a datagram: %v and %v, want true and true", x, y)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			send()
			if !reads(t, second) {
				t.Error("after the first connection was closed, the second read nothing")
			}
			if err := second.LeaveGroup(group); err != nil {
				t.Fatal(err)
			}
			send()
			if reads(t, second) {
				t.Error("the connection read a datagram to a group that it had left")
			}
		})
	}
}

// TestGroupTTL checks the TTL of datagrams to a group. It also checks that the datagrams reach the Net that sends them only if
// SetMulticastLoopback is on.
func TestGroupTTL(t *testing.T) {
	a, _, ab, _ := wired(t, 0)
	ttls := make(chan byte, 100)
	ab.tap = func(p []byte) bool {
		if p[0]>>4 == 4 {
			ttls <- p[8]
		} else {
			ttls <- p[7]
		}
		return true
	}
	for _, group := range addrs("239.1.2.3", "ff0e::1234") {
		at := netip.AddrPortFrom(group, 5353)
		c, err := a.ListenMulticastUDP("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		send := func(ttl byte, loop bool) {
			t.Helper()
			if _, err := c.WriteToUDPAddrPort([]byte("x"), at); err != nil {
				t.Fatal(err)
			}
			if got := <-ttls; got != ttl {
				t.Errorf("%v: a datagram has the TTL %d, want %d", group, got, ttl)
			}
			if got := reads(t, c); got != loop {
				t.Errorf("%v: the datagram was looped back: %v, want %v", group, got, loop)
			}
		}
		send(1, false)
		if err := errors.Join(c.SetMulticastTTL(9), c.SetMulticastLoopback(true), c.SetTTL(99)); err != nil {
			t.Fatal(err)
		}
		send(9, true)
	}
}

func TestGroupMisuse(t *testing.T) {
	four, err := New(Config{Addresses: []netip.Addr{a4}})
	if err != nil {
		t.Fatal(err)
	}
	defer four.Close()
	_, err = four.ListenMulticastUDP("udp", netip.AddrPortFrom(b4, 1))
	wantOpError(t, "listen to the address of a host as a group", err, syscall.EINVAL)
	_, err = four.ListenMulticastUDP("tcp", netip.MustParseAddrPort("224.0.0.1:1"))
	wantOpError(t, "listen with TCP", err, net.UnknownNetworkError("tcp"))
	_, err = four.ListenMulticastUDP("udp", netip.MustParseAddrPort("[ff02::1]:1"))
	wantOpError(t, "listen without IPv6", err, syscall.EAFNOSUPPORT)
	c, err := four.ListenUDP(netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	wantOpError(t, "join the address of a host", c.JoinGroup(b4), syscall.EINVAL)
	wantOpError(t, "join the zero address", c.JoinGroup(netip.Addr{}), syscall.EINVAL)
	wantOpError(t, "join without IPv6", c.JoinGroup(netip.MustParseAddr("ff02::1")), syscall.ENODEV)
	for _, bad := range []int{-1, 256} {
		wantOpError(t, "SetTOS", c.SetTOS(bad), syscall.EINVAL)
		wantOpError(t, "SetTTL", c.SetTTL(bad), syscall.EINVAL)
		wantOpError(t, "SetMulticastTTL", c.SetMulticastTTL(bad), syscall.EINVAL)
	}
	wantOpError(t, "SetTTL(0)", c.SetTTL(0), syscall.EINVAL)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"JoinGroup": c.JoinGroup(netip.MustParseAddr("224.0.0.1")), "LeaveGroup": c.LeaveGroup(netip.MustParseAddr("224.0.0.1")),
		"SetTOS": c.SetTOS(1), "SetMulticastLoopback": c.SetMulticastLoopback(true), "SetDontFragment": c.SetDontFragment(true),
	} {
		wantOpError(t, what+" after Close", err, net.ErrClosed)
	}
}

// TestDontFragment checks the size of the largest datagram, with and without fragmentation.
func TestDontFragment(t *testing.T) {
	a, b, ab, _ := wired(t, 1280)
	var flags byte
	ab.tap = func(p []byte) bool {
		if p[0]>>4 == 4 {
			flags |= p[6]
		}
		return false
	}
	for _, x := range []struct {
		at, to netip.Addr
		header int
		most   int // the most bytes of data, with fragments
	}{{a4, b4, 28, 65507}, {a6, b6, 48, 65527}} {
		c, s := connectedUDP(t, a, b, x.at, x.to)
		loose, err := a.ListenUDP(netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		defer loose.Close()
		size := func(n int, want error) {
			t.Helper()
			_, err1 := c.Write(make([]byte, n))
			_, err2 := loose.WriteToUDPAddrPort(make([]byte, n), netip.AddrPortFrom(x.to, 2222))
			for _, err := range []error{err1, err2} {
				if !errors.Is(err, want) {
					t.Errorf("sending %d bytes to %v returned %v, want %v", n, x.to, err, want)
				}
			}
			if want == nil {
				_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
				if got, err := s.Read(make([]byte, 65536)); got != n || err != nil {
					t.Errorf("read %d bytes, %v; want %d", got, err, n)
				}
			}
		}
		size(1280, nil)
		size(x.most, nil)
		size(x.most+1, syscall.EMSGSIZE)
		size(65536, syscall.EMSGSIZE)
		if err := errors.Join(c.SetDontFragment(true), loose.SetDontFragment(true)); err != nil {
			t.Fatal(err)
		}
		flags = 0
		size(1280-x.header, nil)
		if x.at.Is4() && flags != 0x40 {
			t.Errorf("the IPv4 flags are %x, want only \"don't fragment\"", flags)
		}
		size(1280-x.header+1, syscall.EMSGSIZE)
		if err := errors.Join(c.SetDontFragment(false), loose.SetDontFragment(false)); err != nil {
			t.Fatal(err)
		}
		size(1280, nil)
	}
}
