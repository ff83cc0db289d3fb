package pipe

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
)

func TestListen(t *testing.T) {
	n := NewNetwork(Config{})
	shared := netip.MustParseAddr("192.0.2.1")
	a, b := n.NewEnd(shared, netip.MustParseAddr("2001:db8::1")), n.NewEnd(shared)
	listen := func(e *End, port uint16) wireguard.Socket {
		s, err := e.Listen(port)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := listen(a, 51820)
	for _, e := range []*End{a, b} {
		if _, err := e.Listen(51820); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("Listen on a port that is in use at %v: error %v, want EADDRINUSE", shared, err)
		}
	}
	second := listen(a, 51821)
	if second.Port() != 51821 || first.Port() != 51820 {
		t.Errorf("the sockets have the ports %d and %d, want 51820 and 51821", first.Port(), second.Port())
	}
	seen := make(map[uint16]bool)
	for range 100 {
		for _, e := range []*End{a, b} {
			p := listen(e, 0).Port()
			if p == 0 || seen[p] {
				t.Fatalf("Listen(0) chose port %d, which is in use: %v; want a port that is not 0 and not in use", p, seen[p])
			}
			seen[p] = true
		}
	}
	first.Close()
	listen(b, 51820)
}

func TestNoPortIsFree(t *testing.T) {
	e := NewNetwork(Config{}).NewEnd(netip.MustParseAddr("192.0.2.1"))
	var some wireguard.Socket
	for i := range lastPort - firstPort + 1 {
		s, err := e.Listen(0)
		if err != nil {
			t.Fatal(err)
		}
		if i == 1000 {
			some = s
		}
	}
	if _, err := e.Listen(0); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Listen: %v, want EADDRINUSE", err)
	}
	some.Close()
	if s, err := e.Listen(0); err != nil || s.Port() != some.Port() {
		t.Errorf("Listen(0): error %v; want the only free port, %d", err, some.Port())
	}
}

func TestAddressesOfNoHost(t *testing.T) {
	n := NewNetwork(Config{})
	for _, a := range []string{"0.0.0.0", "::", "224.0.0.1", "::ffff:192.0.2.1"} {
		wantPanic(t, "NewEnd with "+a+", which cannot be a host's address", func() { n.NewEnd(netip.MustParseAddr(a)) })
		if err := n.NewEnd().SetAddrs(netip.MustParseAddr(a)); err == nil || !strings.Contains(err.Error(), a) {
			t.Errorf("SetAddrs(%s): error %v, want one that contains the address", a, err)
		}
	}
	wantPanic(t, "NewEnd with the zero address", func() { n.NewEnd(netip.Addr{}) })
}

func TestSourceAddress(t *testing.T) {
	n := NewNetwork(Config{})
	one, two, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")
	a, b := newHost(t, n.NewEnd(one, two, six)), newHost(t, n.NewEnd())
	for _, tc := range []struct {
		name                 string
		plain                bool
		to                   int // address of b
		source, want, leaves netip.Addr
	}{
		{name: "the system chooses", want: one},
		{name: "no source, IPv6 destination", to: 1, want: six},
		{name: "source that the end has", source: two, want: two, leaves: two},
		{name: "source of the wrong family", to: 1, source: two, want: six, leaves: two},
		{name: "source that the end does not have", source: netip.MustParseAddr("192.0.2.3"), want: one},
	} {
		for _, slow := range []bool{false, true} {
			remove := func() {}
			if slow {
				remove = n.Tap(func(Packet) {})
			}
			to := wireguard.Endpoint{Addr: addrPort(b.Addrs()[tc.to], 1000), Source: tc.source}
			ts := []wireguard.Train{{Data: []byte("x"), Size: 1, Endpoint: to}}
			a.s.Send(ts)
			if ts[0].Err != nil || ts[0].Endpoint.Source != tc.leaves {
				t.Errorf("%s: error %v, and Source is %v after Send, want %v", tc.name, ts[0].Err, ts[0].Endpoint.Source, tc.leaves)
			}
			if got := b.from(); got.Addr.Addr() != tc.want {
				t.Errorf("%s: the datagram came from %v, want %v", tc.name, got, tc.want)
			}
			remove()
		}
	}
}

type link struct{}

func (link) Key() (k [16]byte) { return k }
func (link) String() string    { return "link" }

func TestSendErrors(t *testing.T) {
	n := NewNetwork(Config{})
	a, b := newHost(t, n.NewEnd(netip.MustParseAddr("192.0.2.1"))), newHost(t, n.NewEnd())
	to := b.Endpoint(1000)
	for _, tc := range []struct {
		name string
		t    wireguard.Train
		want error
	}{
		{"no endpoint", wireguard.Train{Data: []byte("x"), Size: 1}, errPlace},
		{"port 0", wireguard.Train{Data: []byte("x"), Size: 1, Endpoint: b.Endpoint(0)}, errPlace},
		{"a link", wireguard.Train{Data: []byte("x"), Size: 1, Endpoint: wireguard.Endpoint{Link: link{}}}, errPlace},
		{"no data", wireguard.Train{Size: 1, Endpoint: to}, errTrain},
		{"no size", wireguard.Train{Data: []byte("x"), Endpoint: to}, errTrain},
		{"overlong", wireguard.Train{Data: make([]byte, 65508), Size: 65508, Endpoint: to}, syscall.EMSGSIZE},
		{"no IPv6", wireguard.Train{Data: []byte("x"), Size: 1, Endpoint: wireguard.EndpointOf(addrPort(b.Addrs()[1], 1000))},
			syscall.ENETUNREACH},
	} {
		for _, slow := range []bool{false, true} {
			remove := func() {}
			if slow {
				remove = n.Tap(func(Packet) {})
			}
			ts := []wireguard.Train{tc.t, {Data: []byte("next"), Size: 4, Endpoint: to}}
			a.s.Send(ts)
			if !errors.Is(ts[0].Err, tc.want) {
				t.Errorf("%s: Send set the error %v, want %v", tc.name, ts[0].Err, tc.want)
			}
			b.want("Send tries each train, even after an error", "next")
			remove()
		}
	}
	if s := a.Sent(); s.Total() != 14 {
		t.Errorf("%d datagrams count as sent, want 14: a train that fails must not count", s.Total())
	}
	n.wantBalance(t)
}

func TestNobodyListens(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	a.trySend(b.Endpoint(1001), "x")
	n.wantFate(t, FateNoSocket, 1, "no socket is open on that port")
	b.s.Close()
	a.send(b, "x")
	n.wantFate(t, FateNoSocket, 2, "the socket is closed")
	n.wantBalance(t)
}

func TestRoaming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		old := a.Endpoint(1000)
		moved := netip.MustParseAddr("192.0.2.99")
		n.SetConditions(Conditions{Delay: time.Second})
		b.trySend(old, "under way")
		if err := a.SetAddrs(moved); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		a.want("the end lost the old address before the datagram arrived")
		n.SetConditions(Conditions{})
		b.trySend(old, "old")
		a.want("no end has the old address")
		a.send(b, "hello")
		if from := b.from(); from != a.Endpoint(1000) || from.Addr.Addr() != moved {
			t.Errorf("the datagram came from %v, want %v", from, moved)
		}
		b.send(a, "new")
		a.want("the socket receives at the new address", "new")
		if err := a.SetAddrs(moved, old.Addr.Addr()); err != nil {
			t.Errorf("SetAddrs with one more address: %v", err)
		}
		b.trySend(old, "back")
		a.want("the end has both addresses", "back")

		if err := b.SetAddrs(moved); err == nil {
			t.Error("SetAddrs succeeded, although a has port 1000 of that address")
		}
		a.send(b, "still there")
		b.want("SetAddrs failed, so b keeps its address", "still there")

		if err := a.SetAddrs(); err != nil {
			t.Fatal(err)
		}
		if err := a.trySend(b.Endpoint(1000), "x"); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("Send without an address: error %v, want ENETUNREACH", err)
		}
		if a.Endpoint(1000).IsValid() {
			t.Error("Endpoint of an end without addresses is valid, want invalid")
		}
		if _, err := a.Listen(1000); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("Listen: error %v, want EADDRINUSE: the socket on that port is still open", err)
		}
		n.wantBalance(t)
	})
}

func TestCloseIsIdempotent(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	a.send(b, "x")
	for range 3 {
		if err := b.s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.rx.Receive(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Receive: %v, want net.ErrClosed", err)
	}
	if len(n.sockets) != 2 || len(b.sockets) != 0 {
		t.Errorf("the network has %d addresses with a socket, want only the two of the other end", len(n.sockets))
	}
}
