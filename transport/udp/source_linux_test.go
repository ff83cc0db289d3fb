package udp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

// TestAnswerComesFromTheAddressReached checks that a server that is not bound to an address answers from the address that the
// client sent to.
//
//	client 127.0.0.1 ──▶ 127.0.0.2 server (bound to no address)
//	client 127.0.0.1 ◀── 127.0.0.2 server
func TestAnswerComesFromTheAddressReached(t *testing.T) {
	for _, v := range variants {
		if !v.control() {
			continue
		}
		client, server := v.listen(t), v.listen(t)
		second := netip.MustParseAddr("127.0.0.2")
		to := wireguard.EndpointOf(netip.AddrPortFrom(second, server.Port()))
		client.send(trainOf(1, 2100, 1000, to))
		got := server.receive(ipv4, 3)
		back := got[0].from
		if back.Source != second || back.Interface != 0 {
			t.Fatalf("%s: received at %v, interface %d; want %v and no interface", v.name, back.Source, back.Interface, second)
		}
		server.send(trainOf(2, 2100, 1000, back))
		if from := client.receive(ipv4, 3)[0].from; !from.SamePlace(to) {
			t.Errorf("%s: the answer comes from %v, want %v", v.name, from, to)
		}
		back.Source = netip.Addr{}
		server.send(trainOf(3, 10, 10, back))
		if from := client.receive(ipv4, 1)[0].from; from.Addr.Addr() != loopback(ipv4) {
			t.Errorf("%s: an answer without a source came from %v, want the address that the system chooses", v.name, from)
		}
	}
}

func TestSourceOfIPv6(t *testing.T) {
	if !has(ipv6) {
		t.Skip("needs an IPv6 loopback address")
	}
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Skip("this host has no interface called lo")
	}
	for _, v := range variants {
		if !v.control() {
			continue
		}
		x, y := v.listen(t), v.listen(t)
		x.send(trainOf(1, 10, 10, y.at(ipv6)))
		back := y.receive(ipv6, 1)[0].from
		if back.Source != loopback(ipv6) || back.Interface != 0 {
			t.Errorf("%s: received at %v, interface %d; want ::1 and no interface", v.name, back.Source, back.Interface)
		}
		y.send(trainOf(2, 3000, 1000, back))
		x.receive(ipv6, 3)

		// Send also accepts an endpoint with an Interface but without a Source.
		for f := range families {
			to := x.at(f)
			to.Interface = uint32(lo.Index)
			y.send(trainOf(3, 3000, 1000, to))
			x.receive(f, 3)
		}
	}
}

// TestGoneSourceIsForgotten checks that Send clears a source that the host does not have, and sends without it. Another
// implementation kept such a source for ever (faults_test.go).
func TestGoneSourceIsForgotten(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		if !v.control() {
			t.Skip("this path does not support sources")
		}
		_, y := v.pair(t, f)
		x := v.listen(t)
		gone := y.at(f)
		gone.Source = map[family]netip.Addr{ipv4: netip.MustParseAddr("192.0.2.1"), ipv6: netip.MustParseAddr("2001:db8::1")}[f]
		ts := []wireguard.Train{ // the second train takes two messages; the last message has a single datagram
			trainOf(1, 100, 100, gone), trainOf(2, 65*100, 100, gone), trainOf(3, 100, 100, y.at(f))}
		x.send(ts...)
		for i := range ts {
			if ts[i].Endpoint != y.at(f) {
				t.Errorf("train %d: the endpoint is %+v, want it without source", i, ts[i].Endpoint)
			}
		}
		got := y.receive(f, 67)
		wantTrain(t, got[:1], ts[0])
		wantTrain(t, got[1:66], ts[1])
		wantTrain(t, got[66:], ts[2])

		// The system refused the train because of its source, not because of its size. So Send sends the next train in one
		// message.
		before := x.Stats()
		x.send(trainOf(4, 7000, 1000, ts[1].Endpoint))
		y.receive(f, 7)
		if calls := x.Stats().SendCalls - before.SendCalls; x.paths[f].socket().gso && calls != 1 {
			t.Errorf("the next train took %d system calls, want 1", calls)
		}
	})
}

// TestGoneInterfaceIsForgotten checks that Send clears an Interface that does not exist, and sends without it.
func TestGoneInterfaceIsForgotten(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		if !v.control() {
			t.Skip("this path does not support sources")
		}
		x, y := v.pair(t, f)
		gone := y.at(f)
		gone.Interface = 1 << 30
		ts := []wireguard.Train{trainOf(1, 2100, 1000, gone), trainOf(2, 100, 100, gone)}
		x.send(ts...)
		y.receive(f, 4)
		for i := range ts {
			if ts[i].Endpoint != y.at(f) {
				t.Errorf("train %d: the endpoint is %+v, want it without interface", i, ts[i].Endpoint)
			}
		}
	})
}

// TestSourceOfTheOtherFamily checks that a source of the other family is ignored.
func TestSourceOfTheOtherFamily(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		x, y := v.pair(t, f)
		to := y.at(f)
		to.Source = loopback(1 - f)
		x.send(trainOf(1, 10, 10, to))
		y.receive(f, 1)
	})
}

// listenErrors makes the system report ICMP errors to a socket, which it does not do by default for an unconnected socket.
func listenErrors(network, _ string, c syscall.RawConn) (err error) {
	c.Control(func(fd uintptr) {
		if network == "udp4" {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		}
	})
	return err
}

// TestErrorsOfEarlierDatagrams checks that neither Send nor Receive fails because of an error that belongs to an earlier
// datagram. A datagram to a closed port causes such an error, which the next system call on the socket returns. In another
// implementation, a receiver stopped for ever after such an error (faults_test.go).
func TestErrorsOfEarlierDatagrams(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		v.bind.Control = listenErrors
		x, y := v.pair(t, f)
		shut := v.listen(t)
		shut.Close()
		for i := range 10 {
			// Here, the system call that returns the error is one that sends.
			x.Send([]wireguard.Train{trainOf(i, 10, 10, shut.at(f))})
			sent := trainOf(i, 2500, 1000, y.at(f))
			x.send(sent)
			wantTrain(t, y.receive(f, 3), sent)
			// Here, the system call that returns the error is one that receives. This is tested before and after a datagram has
			// arrived.
			x.Send([]wireguard.Train{trainOf(i, 10, 10, shut.at(f))})
			sent = trainOf(i, 2500, 1000, x.at(f))
			y.send(sent)
			x.Send([]wireguard.Train{trainOf(i, 10, 10, shut.at(f))})
			wantTrain(t, x.receive(f, 3), sent)
		}
	})
}

func TestMark(t *testing.T) {
	for _, v := range variants {
		e := v.listen(t)
		err := e.SetMark(0xca6c0000)
		if os.Geteuid() != 0 {
			if !errors.Is(err, syscall.EPERM) {
				t.Errorf("%s: SetMark without privilege: error %v, want EPERM", v.name, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		if got := option(t, e, ipv4, unix.SOL_SOCKET, unix.SO_MARK); uint32(got) != 0xca6c0000 {
			t.Errorf("%s: the socket's mark is %#x, want 0xca6c0000", v.name, got)
		}
		if err := e.SetMark(0); err != nil {
			t.Error(err)
		}
		e.Close()
		if err := e.SetMark(1); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: SetMark after Close: error %v, want net.ErrClosed", v.name, err)
		}
	}
}

func option(t *testing.T, e *end, f family, level, name int) (value int) {
	t.Helper()
	e.paths[f].socket().raw.Control(func(fd uintptr) {
		var err error
		if value, err = unix.GetsockoptInt(int(fd), level, name); err != nil {
			t.Error(err)
		}
	})
	return value
}

// TestSocketOptions checks the options of a socket. IP_PMTUDISC_DONT keeps the flag DF of outer packets clear.
func TestSocketOptions(t *testing.T) {
	for _, v := range variants {
		e := v.listen(t)
		if got := option(t, e, ipv4, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER); got != unix.IP_PMTUDISC_DONT {
			t.Errorf("%s: IP_MTU_DISCOVER is %d, want IP_PMTUDISC_DONT", v.name, got)
		}
		if got := option(t, e, ipv4, unix.SOL_SOCKET, unix.SO_RCVBUF); os.Geteuid() == 0 && got != 2*bufferSize {
			t.Errorf("%s: SO_RCVBUF is %d, want %d", v.name, got, 2*bufferSize)
		}
		if e.paths[ipv6] == nil {
			continue
		}
		if got := option(t, e, ipv6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER); got != unix.IPV6_PMTUDISC_DONT {
			t.Errorf("%s: IPV6_MTU_DISCOVER is %d, want IPV6_PMTUDISC_DONT", v.name, got)
		}
		if got := option(t, e, ipv6, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY); got != 1 {
			t.Errorf("%s: IPV6_V6ONLY is %d, want 1", v.name, got)
		}
	}
}

func TestInterface(t *testing.T) {
	if _, err := net.InterfaceByName("lo"); err != nil {
		t.Skip("this host has no interface called lo")
	}
	for _, v := range variants {
		v.bind.Interface = "lo"
		x, y := v.listen(t), v.listen(t)
		x.send(trainOf(1, 10, 10, y.at(ipv4)))
		y.receive(ipv4, 1)
	}
}

// TestOtherInterface checks that a socket of a Bind with Interface d0 receives no datagram that arrives on lo.
func TestOtherInterface(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	link(t, "d0", "198.51.100.1/24")
	for _, v := range variants {
		x := v.listen(t)
		y := v.with(func(b *Bind) { b.Interface = "lo" }).listen(t)
		z := v.with(func(b *Bind) { b.Interface = "d0" }).listen(t)
		for f := range families {
			if x.paths[f] == nil || !has(f) {
				continue
			}
			x.send(trainOf(1, 10, 10, z.at(f)), trainOf(2, 10, 10, y.at(f)))
			y.receive(f, 1) // the datagram for z was sent before this one, so it has arrived by now or never will
			if n := pending(t, z, f); n != 0 {
				t.Errorf("%s: a datagram of %d bytes that arrived on lo reached a socket bound to d0", v.name, n)
			}
		}
	}
}

// pending returns the size of the first datagram in the socket's receive buffer, or 0.
func pending(t *testing.T, e *end, f family) (size int) {
	t.Helper()
	e.paths[f].socket().raw.Control(func(fd uintptr) {
		var err error
		if size, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ); err != nil {
			t.Error(err)
		}
	})
	return size
}

// TestZones checks that datagrams to a link-local address with a zone arrive, and that received addresses have their zone. Both
// sockets of the test are on this host.
func TestZones(t *testing.T) {
	local := linkLocal()
	if !local.IsValid() {
		t.Skip("needs a link-local address")
	}
	for _, v := range variants {
		x, y := v.listen(t), v.listen(t)
		to := wireguard.EndpointOf(netip.AddrPortFrom(local, y.Port()))
		for range 2 { // in the second round, the interface is cached
			x.send(trainOf(1, 10, 10, to))
			back := y.receive(ipv6, 1)[0].from
			if back.Addr.Addr() != local {
				t.Fatalf("%s: the datagram came from %v, want %v", v.name, back.Addr.Addr(), local)
			}
			if v.control() && back.Source != local.WithZone("") {
				t.Errorf("%s: the datagram was received at the address %v, want %v", v.name, back.Source, local.WithZone(""))
			}
			y.send(trainOf(2, 10, 10, back))
			if from := x.receive(ipv6, 1)[0].from; !from.SamePlace(to) {
				t.Errorf("%s: the answer comes from %v, want %v", v.name, from, to)
			}
		}
	}
}

// linkLocal returns a link-local address of this host, with its zone.
func linkLocal() netip.Addr {
	is, _ := net.Interfaces()
	for _, i := range is {
		as, _ := i.Addrs()
		for _, a := range as {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && i.Flags&net.FlagUp != 0 && p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
				return p.Addr().WithZone(i.Name)
			}
		}
	}
	return netip.Addr{}
}

func TestZoneNames(t *testing.T) {
	is, err := net.Interfaces()
	if err != nil || len(is) == 0 {
		t.Skip("this host has no interfaces")
	}
	var z zones
	for range 2 {
		for _, i := range is {
			if got := z.name(uint32(i.Index)); got != i.Name {
				t.Errorf("interface %d is called %q, want %q", i.Index, got, i.Name)
			}
			if got := z.index(i.Name); got != uint32(i.Index) {
				t.Errorf("interface %q has index %d, want %d", i.Name, got, i.Index)
			}
		}
	}
	if got := z.name(1 << 30); got != "1073741824" {
		t.Errorf("an interface that does not exist is called %q, want its index as a number", got)
	}
	if got := z.index("1073741824"); got != 1<<30 {
		t.Errorf("the zone 1073741824 has index %d, want the same number", got)
	}
	if got := z.index("nowhere0"); got != 0 {
		t.Errorf("an unknown zone has index %d, want 0", got)
	}
	z.names[1<<20] = "renumbered"
	z.forget()
	if got := z.name(1 << 20); got == "renumbered" {
		t.Error("forget left a name in the cache")
	}
	for i := range 10 * maxZones {
		z.learn(&net.Interface{Index: i + 1<<20, Name: "x" + string(rune(i))})
	}
	if len(z.names) > maxZones || len(z.indexes) > maxZones {
		t.Errorf("the cache holds %d names and %d indexes, want at most %d of each", len(z.names), len(z.indexes), maxZones)
	}
}
