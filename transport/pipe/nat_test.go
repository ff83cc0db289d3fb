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
		h.t.Error("no datagram has arrived")
		return wireguard.EndpointOf(addrPort(gateway, 1))
	}
	ts, err := h.rx.Receive()
	if err != nil || len(ts) != 1 || ts[0].Len() != 1 {
		h.t.Fatalf("Receive returned %v, error %v; want one datagram", ts, err)
	}
	return wireguard.EndpointOf(ts[0].Endpoint.Addr)
}

func TestNATMapsAndFilters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, nat, a, b, c := behindNAT(t, NATConfig{})
		a.send(b, "out")
		outside := b.from()
		if outside.Addr.Addr() != gateway {
			t.Errorf("the datagram came from %v, want an address of the NAT", outside)
		}
		b.trySend(outside, "answer")
		a.want("the mapping lets the answer in", "answer")
		c.trySend(outside, "stranger")
		a.want("a sent nothing to c, so the NAT blocks c")
		b.trySend(wireguard.EndpointOf(addrPort(gateway, outside.Addr.Port()+1)), "wrong port")
		a.want("no mapping has that port")
		b.trySend(wireguard.EndpointOf(addrPort(private, 1000)), "inside address")
		a.want("an address behind a NAT cannot be reached from outside")
		n.wantFate(t, FateBlocked, 2, "the stranger and the wrong port")
		n.wantFate(t, FateNoSocket, 1, "the inside address")

		a.send(c, "out")
		if c.from() != outside {
			t.Error("a socket has two ports outside a NAT that is not symmetric, want one")
		}
		if nat.Mappings() != 2 {
			t.Errorf("%d mappings, want 2, one for each destination", nat.Mappings())
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
			t.Errorf("b and c both received from %v, want a different port for each destination", atB)
		}
		c.trySend(atB, "x")
		a.want("that port is mapped for b, not for c")
		c.trySend(atC, "y")
		a.want("this port is mapped for c", "y")
	})
}

func TestNATMappingExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, nat, a, b, _ := behindNAT(t, NATConfig{Idle: 10 * time.Second})
		a.send(b, "x")
		outside := b.from()
		time.Sleep(10*time.Second - 1)
		b.trySend(outside, "in time")
		a.want("the mapping has not expired", "in time")
		time.Sleep(10*time.Second - 1)
		a.send(b, "x")
		if b.from() != outside {
			t.Error("the NAT made a new mapping, although the answer must keep the old one alive")
		}
		time.Sleep(10 * time.Second)
		b.trySend(outside, "late")
		a.want("the mapping has expired")
		n.wantFate(t, FateBlocked, 1, "the datagram that arrived after the mapping expired")
		a.send(b, "x")
		if b.from() == outside {
			t.Error("the new mapping has the port of the old one, want another port")
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
		a.want("a negative Idle means that mappings never expire", "x")
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
		a.want("Rebind has removed the mappings")
		a.send(b, "x")
		after := b.from()
		if after == before || after.Addr.Addr() != gateway {
			t.Errorf("the datagrams came from %v and then %v, want the same address with another port", before, after)
		}

		if err := nat.Rebind(b.Addrs()[0]); err == nil {
			t.Error("Rebind accepted an address that an end has")
		}
		moved := netip.MustParseAddr("203.0.113.9")
		if err := nat.Rebind(moved); err != nil {
			t.Fatal(err)
		}
		b.trySend(after, "x")
		a.want("no end and no NAT has the old address")
		n.wantFate(t, FateNoSocket, 1, "the datagram to the old address of the NAT")
		a.send(b, "x")
		if got := b.from(); got.Addr.Addr() != moved {
			t.Errorf("the datagram came from %v, want %v", got, moved)
		}
	})
}

func TestNATWithoutFamily(t *testing.T) {
	n, nat, _, b, _ := behindNAT(t, NATConfig{})
	a := newHost(t, nat.NewEnd()) // this end has addresses of both families
	if err := a.trySend(wireguard.EndpointOf(addrPort(b.Addrs()[1], 1000)), "x"); err != nil {
		t.Errorf("Send: %v, want no error: an end does not know which families its NAT has", err)
	}
	b.want("the NAT has no IPv6 address")
	n.wantFate(t, FateBlocked, 1, "the NAT blocks the IPv6 datagram")
	n.wantBalance(t)
}

func TestEndsBehindNATs(t *testing.T) {
	n, nat, a, _, _ := behindNAT(t, NATConfig{})
	neighbour := newHost(t, nat.NewEnd())
	neighbour.send(a, "x")
	if from := a.from(); from != neighbour.Endpoint(1000) {
		t.Errorf("the datagram came from %v, want the neighbour's own address", from)
	}

	second := n.NewNAT(NATConfig{Addrs: []netip.Addr{netip.MustParseAddr("203.0.113.2")}})
	twin := newHost(t, second.NewEnd(private)) // twin has the same address as a, but is behind another NAT
	neighbour.send(a, "y")
	a.want("192.168.1.2 is the end behind the same NAT", "y")
	twin.want("the twin is behind another NAT")

	a.send(neighbour, "hello") // does not pass the NAT
	if nat.Mappings() != 0 {
		t.Error("the NAT has a mapping for datagrams between two ends behind it, want none")
	}
}

func TestMoveBehindNAT(t *testing.T) {
	n, nat, a, b, c := behindNAT(t, NATConfig{})
	if err := c.MoveBehind(nat, private); err == nil {
		t.Error("MoveBehind succeeded, although port 1000 of that address is in use behind the NAT")
	}
	c.send(b, "x")
	if from := b.from(); from != c.Endpoint(1000) {
		t.Errorf("the datagram came from %v after MoveBehind failed, want the old address", from)
	}
	a.s.Close()
	if err := c.MoveBehind(nat, private); err != nil {
		t.Fatal(err)
	}
	c.send(b, "x")
	if from := b.from(); from.Addr.Addr() != gateway {
		t.Errorf("the datagram came from %v, want the NAT's address", from)
	}
	public := netip.MustParseAddr("192.0.2.7")
	if err := c.MoveBehind(nil, public); err != nil {
		t.Fatal(err)
	}
	c.send(b, "x")
	if from := b.from(); from.Addr.Addr() != public {
		t.Errorf("the datagram came from %v, want %v", from, public)
	}
	if NewNetwork(Config{}).NewEnd().MoveBehind(nat, private) == nil {
		t.Error("MoveBehind accepted a NAT of another network")
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
	n.wantFate(t, FateBlocked, 1, "the NAT has room for all mappings but one")
}

func TestConditionsReachThroughNAT(t *testing.T) {
	n, _, a, b, _ := behindNAT(t, NATConfig{})
	a.send(b, "x")
	outside := b.from()
	n.SetPath(b.End, a.End, Conditions{Loss: 1})
	b.trySend(outside, "x")
	n.wantFate(t, FateLost, 1, "SetPath applies to the ends, also through a NAT")
	n.ResetPath(b.End, a.End)
	n.Cut(a.End, b.End)
	b.trySend(outside, "x")
	a.send(b, "x")
	n.wantFate(t, FateCut, 2, "Cut applies to the ends, also through a NAT")
}

func TestNATAddressInUse(t *testing.T) {
	n, _, _, b, _ := behindNAT(t, NATConfig{})
	wantPanic(t, "NewEnd with the address of a NAT", func() { n.NewEnd(gateway) })
	wantPanic(t, "NewNAT with the address of an end", func() { n.NewNAT(NATConfig{Addrs: b.Addrs()[:1]}) })
	wantPanic(t, "NewNAT with the address of another NAT", func() { n.NewNAT(NATConfig{Addrs: []netip.Addr{gateway}}) })
	wantPanic(t, "NewNAT with the zero address", func() { n.NewNAT(NATConfig{Addrs: []netip.Addr{{}}}) })
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
