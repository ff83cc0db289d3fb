package pipe

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
)

var (
	gateway = netip.MustParseAddr("203.0.113.1")
	private = netip.MustParseAddr("192.168.1.2")
)

// behindNAT makes this network:
//
//	a ── nat ─┬─ b
//	          └─ c
func behindNAT(t *testing.T, c NATConfig) (n *Network, nat *NAT, a, b, other *host) {
	n = NewNetwork(Config{})
	c.Addrs = []netip.Addr{gateway}
	nat = n.NewNAT(c)
	return n, nat, newHost(t, nat.NewEnd(private)), newHost(t, n.NewEnd()), newHost(t, n.NewEnd())
}

// from receives the only datagram in the queue, and returns the endpoint from which the datagram came.
func (h *host) from() wireguard.Endpoint {
	h.t.Helper()
	if q := h.rx.(*queue); len(q.chunks) == 0 {
		h.t.Error("nothing has arrived")
		return wireguard.EndpointOf(addrPort(gateway, 1))
	}
	ts, err := h.rx.Receive()
	if err != nil || len(ts) != 1 || ts[0].Len() != 1 {
		h.t.Fatalf("got %v, %v; want one datagram", ts, err)
	}
	return wireguard.EndpointOf(ts[0].Endpoint.Addr)
}

func TestNATMapsAndFilters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, nat, a, b, c := behindNAT(t, NATConfig{})
		a.send(b, "out")
		outside := b.from()
		if outside.Addr.Addr() != gateway {
			t.Errorf("from %v, want an address of the NAT", outside)
		}
		b.trySend(outside, "answer")
		a.want("the mapping lets the answer in", "answer")
		c.trySend(outside, "stranger")
		a.want("nothing went to c, so c does not get in")
		b.trySend(wireguard.EndpointOf(addrPort(gateway, outside.Addr.Port()+1)), "wrong port")
		a.want("no mapping has that port")
		b.trySend(wireguard.EndpointOf(addrPort(private, 1000)), "inside address")
		a.want("an address behind a NAT means nothing outside")
		n.wantFate(t, FateBlocked, 2, "the stranger and the wrong port")
		n.wantFate(t, FateNoSocket, 1, "the inside address")

		a.send(c, "out")
		if c.from() != outside {
			t.Error("a socket has one port outside, unless the NAT is symmetric")
		}
		if nat.Mappings() != 2 {
			t.Errorf("%d mappings, want one for each destination", nat.Mappings())
		}
		n.wantBalance(t)
	})
}

func TestSymmetricNAT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, a, b, c := behindNAT(t, NATConfig{Symmetric: true})
		a.send(b, "x")
		a.send(c, "x")
		atB, atC := b.from(), c.from()
		if atB == atC {
			t.Errorf("both see %v, want a port for each destination", atB)
		}
		c.trySend(atB, "x")
		a.want("that port is not c's")
		c.trySend(atC, "y")
		a.want("this one is", "y")
	})
}

func TestNATMappingExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, nat, a, b, _ := behindNAT(t, NATConfig{Idle: 10 * time.Second})
		a.send(b, "x")
		outside := b.from()
		time.Sleep(10*time.Second - 1)
		b.trySend(outside, "in time")
		a.want("the mapping is not idle for long enough", "in time")
		time.Sleep(10*time.Second - 1)
		a.send(b, "x")
		if b.from() != outside {
			t.Error("the answer kept the mapping alive")
		}
		time.Sleep(10 * time.Second)
		b.trySend(outside, "late")
		a.want("the mapping is gone")
		n.wantFate(t, FateBlocked, 1, "the late one")
		a.send(b, "x")
		if b.from() == outside {
			t.Error("the new mapping has the port of the old one, so nobody would notice")
		}
		time.Sleep(10 * time.Second)
		if nat.Mappings() != 0 {
			t.Errorf("%d mappings, want 0", nat.Mappings())
		}
	})
}

func TestNATMappingThatNeverExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, a, b, _ := behindNAT(t, NATConfig{Idle: -1})
		a.send(b, "x")
		time.Sleep(1000 * time.Hour)
		b.trySend(b.from(), "x")
		a.want("negative is for ever", "x")
	})
}

func TestNATRebind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, nat, a, b, _ := behindNAT(t, NATConfig{})
		a.send(b, "x")
		before := b.from()
		if err := nat.Rebind(); err != nil {
			t.Fatal(err)
		}
		b.trySend(before, "x")
		a.want("mappings are forgotten")
		a.send(b, "x")
		after := b.from()
		if after == before || after.Addr.Addr() != gateway {
			t.Errorf("from %v and then %v, want another port of one address", before, after)
		}

		if err := nat.Rebind(b.Addrs()[0]); err == nil {
			t.Error("an end has this address")
		}
		moved := netip.MustParseAddr("203.0.113.9")
		if err := nat.Rebind(moved); err != nil {
			t.Fatal(err)
		}
		b.trySend(after, "x")
		a.want("the old address is nobody's")
		n.wantFate(t, FateNoSocket, 1, "not even the NAT's")
		a.send(b, "x")
		if got := b.from(); got.Addr.Addr() != moved {
			t.Errorf("from %v, want %v", got, moved)
		}
	})
}

func TestNATWithoutFamily(t *testing.T) {
	n, nat, _, b, _ := behindNAT(t, NATConfig{})
	a := newHost(t, nat.NewEnd()) // this end has addresses of both families
	if err := a.trySend(wireguard.EndpointOf(addrPort(b.Addrs()[1], 1000)), "x"); err != nil {
		t.Errorf("Send: %v; the end cannot know what its NAT can", err)
	}
	b.want("the NAT has no IPv6 address")
	n.wantFate(t, FateBlocked, 1, "by the NAT")
	n.wantBalance(t)
}

func TestEndsBehindNATs(t *testing.T) {
	n, nat, a, _, _ := behindNAT(t, NATConfig{})
	neighbour := newHost(t, nat.NewEnd())
	neighbour.send(a, "x")
	if from := a.from(); from != neighbour.Endpoint(1000) {
		t.Errorf("from %v, want the neighbour's own address", from)
	}

	second := n.NewNAT(NATConfig{Addrs: []netip.Addr{netip.MustParseAddr("203.0.113.2")}})
	twin := newHost(t, second.NewEnd(private)) // twin has the same address as a, but is behind another NAT
	neighbour.send(a, "y")
	a.want("each network has its own 192.168.1.2", "y")
	twin.want("this one is another")

	a.send(neighbour, "hello") // does not pass the NAT
	if nat.Mappings() != 0 {
		t.Error("neighbours need no mapping")
	}
}

func TestMoveBehindNAT(t *testing.T) {
	n, nat, a, b, c := behindNAT(t, NATConfig{})
	if err := c.MoveBehind(nat, private); err == nil {
		t.Error("port 1000 of that address is taken, behind the NAT")
	}
	c.send(b, "x")
	if from := b.from(); from != c.Endpoint(1000) {
		t.Errorf("from %v; a move that failed changes nothing", from)
	}
	a.s.Close()
	if err := c.MoveBehind(nat, private); err != nil {
		t.Fatal(err)
	}
	c.send(b, "x")
	if from := b.from(); from.Addr.Addr() != gateway {
		t.Errorf("from %v, want the NAT's address", from)
	}
	public := netip.MustParseAddr("192.0.2.7")
	if err := c.MoveBehind(nil, public); err != nil {
		t.Fatal(err)
	}
	c.send(b, "x")
	if from := b.from(); from.Addr.Addr() != public {
		t.Errorf("from %v, want %v", from, public)
	}
	if NewNetwork(Config{}).NewEnd().MoveBehind(nat, private) == nil {
		t.Error("the NAT is of another network")
	}
	n.wantBalance(t)
}

func TestNATIsFull(t *testing.T) {
	n, nat, a, _, _ := behindNAT(t, NATConfig{Symmetric: true})
	for i := range maxMappings + 1 {
		a.trySend(wireguard.EndpointOf(addrPort(gateway.Next(), uint16(i+1))), "x")
	}
	if nat.Mappings() != maxMappings {
		t.Errorf("%d mappings, want %d", nat.Mappings(), maxMappings)
	}
	n.wantFate(t, FateBlocked, 1, "one too many")
}

func TestConditionsReachThroughNAT(t *testing.T) {
	n, _, a, b, _ := behindNAT(t, NATConfig{})
	a.send(b, "x")
	outside := b.from()
	n.SetPath(b.End, a.End, Conditions{Loss: 1})
	b.trySend(outside, "x")
	n.wantFate(t, FateLost, 1, "the path is named by its ends, not by the NAT")
	n.ResetPath(b.End, a.End)
	n.Cut(a.End, b.End)
	b.trySend(outside, "x")
	a.send(b, "x")
	n.wantFate(t, FateCut, 2, "so is a cut")
}

func TestNATAddressInUse(t *testing.T) {
	n, _, _, b, _ := behindNAT(t, NATConfig{})
	wantPanic(t, "it is a NAT's", func() { n.NewEnd(gateway) })
	wantPanic(t, "it is an end's", func() { n.NewNAT(NATConfig{Addrs: b.Addrs()[:1]}) })
	wantPanic(t, "it is another NAT's", func() { n.NewNAT(NATConfig{Addrs: []netip.Addr{gateway}}) })
	wantPanic(t, "it is no host's", func() { n.NewNAT(NATConfig{Addrs: []netip.Addr{{}}}) })
}

func wantPanic(t *testing.T, why string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("no panic: %s", why)
		}
	}()
	f()
}
