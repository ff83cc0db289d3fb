package udp

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
)

var _ wireguard.Bind = (*Bind)(nil)

// failing returns a function for Bind.Control that returns err if the socket is of the given network.
func failing(network string, err error) func(string, string, syscall.RawConn) error {
	return func(n, _ string, _ syscall.RawConn) error {
		if n == network {
			return err
		}
		return nil
	}
}

func TestBothFamiliesOnOnePort(t *testing.T) {
	if !has(ipv6) {
		t.Skip("needs an IPv6 loopback address")
	}
	for _, v := range variants {
		x, y := v.listen(t), v.listen(t)
		if n := len(x.Receivers()); n != 2 {
			t.Fatalf("%s: %d receivers, want 2, one per family", v.name, n)
		}
		if x.Port() == 0 || x.Port() == y.Port() {
			t.Fatalf("%s: the sockets have the ports %d and %d, want two different ports that are not 0", v.name, x.Port(), y.Port())
		}
		for f := range families {
			x.send(trainOf(int(f), 100, 100, y.at(f)))
			if got := y.receive(f, 1); got[0].from.Addr.Port() != x.Port() {
				t.Errorf("%s: %v came from port %d, want %d", v.name, f, got[0].from.Addr.Port(), x.Port())
			}
		}
	}
}

// TestChangeOfPort checks that a new socket can be opened on another port while the old one is open, and that the old socket
// still works then.
func TestChangeOfPort(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		x, old := v.pair(t, f)
		free := v.listen(t)
		free.Close()
		s, err := v.bind.Listen(free.Port())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if s.Port() != free.Port() {
			t.Fatalf("the new socket has port %d, want %d", s.Port(), free.Port())
		}
		fresh := &end{s.(*Socket), t}
		x.send(trainOf(1, 10, 10, old.at(f)), trainOf(2, 10, 10, fresh.at(f)))
		old.receive(f, 1)
		fresh.receive(f, 1)
		old.Close()
		x.send(trainOf(3, 10, 10, fresh.at(f)))
		fresh.receive(f, 1)
	})
}

// TestPortTakenInOneFamily checks that Listen fails if the port is in use in only one family, and then leaves no socket open.
func TestPortTakenInOneFamily(t *testing.T) {
	if !has(ipv6) {
		t.Skip("needs an IPv6 loopback address")
	}
	for _, v := range variants {
		for f := range families {
			taken, err := net.ListenPacket(f.network(), ":0")
			if err != nil {
				t.Fatal(err)
			}
			port := taken.LocalAddr().(*net.UDPAddr).Port
			s, err := v.bind.Listen(uint16(port))
			if err == nil {
				t.Fatalf("%s: Listen succeeded on a port that is in use over %v; it has port %v", v.name, f, s.Port())
			}
			if !errors.Is(err, errnoInUse) || !strings.Contains(err.Error(), strconv.Itoa(port)) {
				t.Errorf("%s: the error does not say that port %d is in use: %v", v.name, port, err)
			}
			taken.Close()
			if s, err = v.bind.Listen(uint16(port)); err != nil {
				t.Errorf("%s: the failed Listen left a socket on the port: %v", v.name, err)
			} else {
				s.Close()
			}
		}
	}
}

func TestPortZeroTriesUntilBothFamiliesHaveIt(t *testing.T) {
	if runtime.GOOS == "js" {
		t.Skip("GOOS=js only imitates a network, within this process")
	}
	if !has(ipv6) {
		t.Skip("needs an IPv6 loopback address")
	}
	for _, v := range variants {
		for _, taken := range []int{3, 1000} {
			tries := 0
			v := v.with(func(b *Bind) {
				b.Control = func(network, _ string, _ syscall.RawConn) error {
					if network == "udp6" {
						if tries++; tries <= taken {
							return errnoInUse
						}
					}
					return nil
				}
			})
			s, err := v.bind.Listen(0)
			switch {
			case taken == 3 && (err != nil || tries != 4):
				t.Errorf("%s: %d attempts, error %v; want success with the fourth attempt", v.name, tries, err)
			case taken == 1000 && (err == nil || tries != 100):
				t.Errorf("%s: %d attempts, error %v; want an error after 100 attempts", v.name, tries, err)
			}
			if err == nil {
				s.Close()
			}
		}
	}
}

// TestMissingFamilyIsNoError checks that Listen succeeds on a host without IPv6, or without IPv4.
func TestMissingFamilyIsNoError(t *testing.T) {
	for _, v := range variants {
		for f := range families {
			if !has(f) {
				continue
			}
			e := v.with(func(b *Bind) { b.Control = failing((1 - f).network(), syscall.EAFNOSUPPORT) }).listen(t)
			if n := len(e.Receivers()); n != 1 {
				t.Fatalf("%s: %d receivers without %v, want 1", v.name, n, 1-f)
			}
			e.send(trainOf(1, 10, 10, e.at(f)))
			e.receive(f, 1)
			ts := []wireguard.Train{trainOf(1, 10, 10, e.at(1-f))}
			if e.Send(ts); !errors.Is(ts[0].Err, syscall.EAFNOSUPPORT) {
				t.Errorf("%s: sending over the missing %v returned %v, want EAFNOSUPPORT", v.name, 1-f, ts[0].Err)
			}
		}
	}
	_, err := (&Bind{Control: func(string, string, syscall.RawConn) error { return syscall.EAFNOSUPPORT }}).Listen(0)
	if !errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Errorf("Listen on a host without IPv4 and IPv6 returned %v, want EAFNOSUPPORT", err)
	}
}

func TestAddress(t *testing.T) {
	for _, v := range variants {
		for _, c := range []struct {
			address string
			family  family
		}{{"127.0.0.1", ipv4}, {"0.0.0.0", ipv4}, {"::ffff:127.0.0.1", ipv4}, {"::1", ipv6}, {"::", ipv6}} {
			if !has(c.family) {
				continue
			}
			e := v.with(func(b *Bind) { b.Address = netip.MustParseAddr(c.address) }).listen(t)
			if e.paths[c.family] == nil || e.paths[1-c.family] != nil {
				t.Errorf("%s: address %s opens the wrong families", v.name, c.address)
			}
			if strings.HasSuffix(c.address, "127.0.0.1") { // the system may deliver datagrams for 127.0.0.2 to this host too
				ts := []wireguard.Train{trainOf(2, 20, 20, wireguard.EndpointOf(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), e.Port())))}
				v.listen(t).Send(ts)
			}
			e.send(trainOf(1, 10, 10, e.at(c.family)))
			if got := e.receive(c.family, 1); len(got[0].data) != 10 {
				t.Errorf("%s: a datagram sent to 127.0.0.2 arrived at the socket of %s", v.name, c.address)
			}
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		name string
		bind Bind
		want string
	}{
		{"address of another host", Bind{Address: netip.MustParseAddr("192.0.2.1")}, "does not have the address 192.0.2.1"},
		{"unknown interface", Bind{Interface: "nowhere0"}, `no network interface "nowhere0"`},
		{"control", Bind{Control: failing("udp4", errors.New("the vault is shut"))}, "the vault is shut"},
	} {
		s, err := c.bind.Listen(0)
		if err == nil {
			s.Close()
			t.Errorf("%s: Listen succeeded, want an error", c.name)
		} else if !strings.HasPrefix(err.Error(), "udp: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %q does not say %q", c.name, err, c.want)
		}
	}
	if err := sendError(syscall.EPERM); !errors.Is(err, syscall.EPERM) || !strings.Contains(err.Error(), "packet filter") {
		t.Errorf("sendError for EPERM returned %v, want a hint about the packet filter", err)
	}
}

func TestControlIsCalledForEachSocket(t *testing.T) {
	for _, v := range variants {
		var networks []string
		e := v.with(func(b *Bind) {
			b.Control = func(network, address string, c syscall.RawConn) error {
				networks = append(networks, network)
				return c.Control(func(fd uintptr) {})
			}
		}).listen(t)
		if len(networks) != len(e.Receivers()) {
			t.Errorf("%s: Control was called for %v, want one call for each of %d sockets", v.name, networks, len(e.Receivers()))
		}
	}
}

// TestClose checks that Close makes every receiver fail with net.ErrClosed, and that Close may be called again.
func TestClose(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			e := v.listen(t)
			ended := make(chan error, 4)
			var last []wireguard.Receiver
			for _, r := range e.Receivers() {
				last = append(last, r)
				go func() {
					for {
						if _, err := r.Receive(); err != nil {
							ended <- err
							return
						}
					}
				}()
			}
			time.Sleep(time.Millisecond) // so that some receivers wait before Close
			for range 3 {
				if err := e.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}
			for range last {
				if err := <-ended; !errors.Is(err, net.ErrClosed) {
					t.Errorf("a receiver ended with %v, want net.ErrClosed", err)
				}
			}
			for _, r := range last {
				if _, err := r.Receive(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Receive after Close: %v, want net.ErrClosed", err)
				}
			}
			ts := []wireguard.Train{trainOf(1, 30, 10, e.at(ipv4)), trainOf(1, 10, 10, e.at(ipv4))}
			e.Send(ts)
			for i := range ts {
				if !errors.Is(ts[i].Err, net.ErrClosed) {
					t.Errorf("Send after Close: %v, want net.ErrClosed", ts[i].Err)
				}
			}
			if e.Stats().SentDatagrams != 0 {
				t.Errorf("Send after Close counted datagrams: %+v", e.Stats())
			}
		})
	}
}

func TestCloseUnderLoad(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		x, y := v.pair(t, f)
		done := make(chan error, 2)
		go func() {
			for {
				if _, err := y.paths[f].Receive(); err != nil {
					done <- err
					return
				}
			}
		}()
		started := make(chan bool)
		go func() {
			ts := []wireguard.Train{trainOf(1, 3000, 1000, y.at(f))}
			for i := 0; ; i++ {
				if ts[0].Err = nil; i == 20 {
					close(started)
				}
				if x.Send(ts); errors.Is(ts[0].Err, net.ErrClosed) {
					done <- ts[0].Err
					return
				}
			}
		}()
		<-started
		y.Close()
		x.Close()
		for range 2 {
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Send or Receive ended with %v, want net.ErrClosed", err)
			}
		}
	})
}
