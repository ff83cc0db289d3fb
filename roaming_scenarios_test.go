package wireguard_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// If a device moves to another address and sends a packet, its peer uses the new address from then on: "the peer's endpoint is …
// the outer source IP address of the most recent correctly-authenticated packet received" (whitepaper, section 2.1).
func TestRoaming(t *testing.T) {
	for _, role := range []string{"initiator", "responder"} {
		t.Run(role, func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				if role == "initiator" {
					w.connect(a, b)
				} else {
					w.connect(b, a)
				}
				b.wantEvents("the first handshake", wireguard.EventHandshake)
				a.move(elsewhere)
				b.send(a, "lost")
				a.wantArrived("b does not know a's new address yet")
				a.send(b, "here I am")
				b.wantArrived("the packet is authentic, whatever its source", "here I am")
				b.wantEndpoint(a, netip.AddrPortFrom(elsewhere, a.port), "b uses a's new address")
				e := b.wantEvents("b publishes a's new endpoint", wireguard.EventEndpointMoved)[0]
				if e.Peer != a.pub() || e.Endpoint.Addr.Addr() != elsewhere {
					w.Fatalf("the event is %+v, want a's key and new address", e)
				}
				b.send(a, "found you")
				a.wantArrived("without a handshake", "found you")
				if n := w.net.Sent().Initiations; n != 1 {
					w.Fatalf("the devices sent %d initiations, want only the first one", n)
				}
			})
		})
	}
}

// Keepalives and handshake messages also change the endpoint.
func TestRoamingByKeepaliveAndHandshake(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.move(elsewhere)
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(25 * time.Second)})
		w.want("a keepalive", "a sends from its new address")
		b.wantEndpoint(a, netip.AddrPortFrom(elsewhere, a.port), "a keepalive changes the endpoint")

		w.advance(time.Second)
		w.lose("b response", 1)
		a.move(elsewhere2)
		a.restart()
		w.want("a initiation, b response", "the response is lost, so only the initiation arrives")
		b.wantEndpoint(a, netip.AddrPortFrom(elsewhere2, a.port), "an initiation changes the endpoint")
	})
	scenario(t, func(w *world, a, b *node) {
		w.net.SetConditions(pipe.Conditions{Delay: time.Millisecond})
		a.send(b, "x")
		w.advance(time.Millisecond)
		w.want("a initiation, b response", "the response is in flight")
		if w.last("b response").src != b.at().Addr {
			w.Fatal("the response was not sent from b's address")
		}
		w.net.Cut(nil, nil)
		w.advance(time.Second)
		w.net.Mend(nil, nil)
		response := w.last("b response")
		w.replay(response, stranger)
		a.wantEndpoint(b, stranger, "a response changes the endpoint, whatever its source")
	})
}

// Both devices move at the same time, and neither knows the other's new address. The tunnel works again as soon as one device can
// reach the other. In this test, b moves back to its old address, to which a still sends.
func TestBothRoamAtOnce(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		home := b.at().Addr.Addr()
		a.move(elsewhere)
		b.move(elsewhere2)
		a.send(b, "lost")
		b.send(a, "lost")
		w.advance(20 * time.Second)
		a.wantArrived("neither device knows the other's new address")
		b.wantArrived("neither device knows the other's new address")
		b.move(home)
		w.advance(5*time.Second + jitter)
		a.send(b, "there")
		b.send(a, "back")
		b.wantArrived("a's retries reached b at its old address", "there")
		a.wantArrived("b uses a's new address", "back")
		b.wantEndpoint(a, netip.AddrPortFrom(elsewhere, a.port), "b uses a's new address")
	})
}

// Both devices move at the same time, while a packet from a's old address is in flight. From this packet, b learns only a's old
// address. The tunnel works again when the program configures a's new address at b.
func TestBothRoamWithPacketsUnderWay(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.hold("a data", 1)
		a.send(b, "from the old place")
		a.move(elsewhere)
		w.release()
		b.wantEndpoint(a, netip.AddrPortFrom(netip.MustParseAddr("198.18.0.1"), a.port), "the packet was sent from a's old address")
		b.move(elsewhere2)
		b.send(a, "into the void")
		a.send(b, "into the void")
		w.want("a data, b data, a data", "each device sends to the other's old address")
		// The program configures a's new address at b. It may know the address from a rendezvous server.
		b.update(a, wireguard.PeerChange{Endpoint: ptr(a.at())})
		b.send(a, "here I am")
		a.wantArrived("the session still works", "here I am")
		a.send(b, "followed")
		b.wantArrived("both devices know the current addresses", "from the old place", "followed")
	})
}

// Only an authentic message that is not a replay changes an endpoint. An attacker who copies or changes messages cannot change an
// endpoint.
func TestEndpointUnchangedByForgedAndReplayed(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		home := a.at().Addr
		w.connect(a, b)
		a.send(b, "x")
		b.wantArrived("the first copy is delivered", "x")
		data, initiation, response := w.last("a data"), w.last("a initiation"), w.last("b response")

		w.replay(data, stranger)
		b.wantDrops(wireguard.DropReplayed, 1, "replayed data")
		b.wantEndpoint(a, home, "replayed data")

		w.lose("a data", 1)
		a.send(b, "y")
		forged := w.last("a data")
		forged.data[20] ^= 1
		w.replay(forged, stranger)
		b.wantDrops(wireguard.DropForged, 1, "forged data")
		b.wantEndpoint(a, home, "forged data")

		w.replay(initiation, stranger)
		b.wantDrops(wireguard.DropOldTimestamp, 1, "replayed initiation")
		b.wantEndpoint(a, home, "replayed initiation")
		initiation.data[90] ^= 1
		w.replay(initiation, stranger)
		b.wantDrops(wireguard.DropBadMAC, 1, "forged initiation")

		w.replay(response, stranger)
		a.wantDrops(wireguard.DropSuperseded, 1, "replayed response")
		a.wantEndpoint(b, b.at().Addr, "replayed response")
		b.wantArrived("no replayed or forged packet is delivered")
	})
}

// If the source address of the inner packet is not allowed, the message is still authentic, so it changes the endpoint. Linux
// also changes the endpoint before it checks the inner source (wg_packet_consume_data_done).
func TestRefusedSourceIsAuthentic(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.move(elsewhere)
		spoofed := pipe.UDPPacket(netip.MustParseAddrPort("10.9.9.9:1"), netip.AddrPortFrom(b.addr, 1), nil)
		a.inject(spoofed)
		b.wantDrops(wireguard.DropSourceNotAllowed, 1, "a may not send from this source address")
		b.wantArrived("the packet is not delivered")
		b.wantEndpoint(a, netip.AddrPortFrom(elsewhere, a.port), "b uses a's new address")
		if r := b.status(a).Received; r.Packets != 0 {
			w.Fatalf("%d packets are counted as received, want 0", r.Packets)
		}
	})
}

// A cookie reply never changes an endpoint.
func TestCookieReplyMovesNothing(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		wireguard.ForceLoad(b.Device, true)
		w.lose("b cookie reply", 1)
		a.send(b, "x")
		w.want("a initiation, b cookie reply", "under load")
		w.replay(w.last("b cookie reply"), stranger)
		a.wantDrops(wireguard.DropBadCookie, 0, "the cookie reply is authentic")
		a.wantEndpoint(b, b.at().Addr, "a cookie reply does not change the endpoint")
		w.wantJittered(5*time.Second, "a initiation, b response, a data", "the retry has a mac2 that is made with the cookie")
	})
}

// If a NAT forgets the mapping of a peer behind it, the peer's next packet gets a new mapping with another port. The other device
// learns the port from the peer's next packet, because the endpoint is the source of the last authentic packet (whitepaper,
// section 2.1). Persistent keepalives keep the NAT from forgetting its mapping (wg(8)).
func TestNATExpiry(t *testing.T) {
	inWorld(t, func(w *world) {
		nat := w.net.NewNAT(pipe.NATConfig{Addrs: []netip.Addr{elsewhere}, Idle: 30 * time.Second})
		a, b := w.node("a"), w.node("b")
		if err := a.end.MoveBehind(nat, netip.MustParseAddr("192.168.0.2")); err != nil {
			w.Fatal(err)
		}
		a.knows(b)
		b.knows(a, func(c *wireguard.PeerConfig) { c.Endpoint = wireguard.Endpoint{} })
		w.connect(a, b)
		first := b.status(a).Endpoint
		if first.Addr.Addr() != elsewhere {
			w.Fatalf("b has the endpoint %v for a, want an address of the NAT", first)
		}
		w.advance(31 * time.Second)
		b.send(a, "blocked")
		a.wantArrived("the NAT has forgotten the mapping")
		a.send(b, "out")
		b.wantArrived("a's packet makes a new mapping", "out")
		second := b.status(a).Endpoint
		if second.Addr.Addr() != elsewhere || second.Addr.Port() == first.Addr.Port() {
			w.Fatalf("b has the endpoint %v for a, before %v; want the same address with another port", second, first)
		}
		b.send(a, "in")
		a.wantArrived("through the new mapping", "in")

		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(25 * time.Second)})
		w.advance(10 * time.Minute)
		b.send(a, "still open")
		a.wantArrived("persistent keepalives keep the mapping", "still open")
		if got := b.status(a).Endpoint; got.Addr != second.Addr {
			w.Fatalf("b has the endpoint %v for a, before %v; want no change", got, second)
		}
	})
}

// If a NAT restarts during a transfer, packets to the peer behind it are lost until this peer sends a packet (whitepaper, section
// 2.1).
func TestNATRebind(t *testing.T) {
	inWorld(t, func(w *world) {
		nat := w.net.NewNAT(pipe.NATConfig{Addrs: []netip.Addr{elsewhere}})
		a, b := w.node("a"), w.node("b")
		if err := a.end.MoveBehind(nat, netip.MustParseAddr("192.168.0.2")); err != nil {
			w.Fatal(err)
		}
		a.knows(b)
		b.knows(a, func(c *wireguard.PeerConfig) { c.Endpoint = wireguard.Endpoint{} })
		w.connect(a, b)
		if err := nat.Rebind(elsewhere2); err != nil {
			w.Fatal(err)
		}
		b.send(a, "lost")
		a.wantArrived("the NAT has lost the mapping")
		a.send(b, "out")
		b.send(a, "in")
		a.wantArrived("a's first packet makes a new mapping", "in")
	})
}

// A device sends to a peer from the local address at which it last received from the peer, until the machine loses this address.
func TestStickySource(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		second := netip.MustParseAddr("198.51.100.7")
		if err := b.end.SetAddrs(b.at().Addr.Addr(), second); err != nil {
			w.Fatal(err)
		}
		a.update(b, wireguard.PeerChange{Endpoint: ptr(wireguard.EndpointOf(netip.AddrPortFrom(second, b.port)))})
		a.send(b, "x")
		if r := w.last("b response"); r.src.Addr() != second {
			w.Fatalf("the response was sent from %v, want the address to which a sends", r.src)
		}
		b.send(a, "y")
		if d := w.last("b data"); d.src.Addr() != second {
			w.Fatalf("the data was sent from %v, want the address to which a sends", d.src)
		}
		first := b.end.Addrs()[0]
		b.move(first) // b loses the address to which a sends
		b.send(a, "z")
		if d := w.last("b data"); d.src.Addr() != first {
			w.Fatalf("the data was sent from %v, want b's remaining address", d.src)
		}
		if s := b.status(a).Endpoint.Source; s == second {
			w.Fatal("b keeps a source address that its machine has lost")
		}
		a.wantArrived("no packet is lost", "y", "z")
		a.wantEndpoint(b, netip.AddrPortFrom(first, b.port), "a uses b's remaining address")
	})
}

// A device forgets the local source address for a peer (the sticky source) when sending from it may not work: when data went
// unanswered for 15 s, on a retry of a handshake, on a change of the port or the mark, and on Wake (Linux,
// wg_socket_clear_peer_endpoint_src).
func TestStickySourceForgotten(t *testing.T) {
	for name, cause := range map[string]func(w *world, a, b *node){
		"unanswered data": func(w *world, a, b *node) {
			w.net.Cut(nil, nil)
			b.send(a, "x")
			w.advance(15*time.Second + jitter)
		},
		"retry of a handshake": func(w *world, a, b *node) {
			w.advance(180 * time.Second)
			w.net.Cut(nil, nil)
			b.send(a, "x")
			w.advance(5*time.Second + jitter)
		},
		"port": func(w *world, a, b *node) { b.configure(wireguard.Change{ListenPort: ptr(uint16(2000))}) },
		"mark": func(w *world, a, b *node) { b.configure(wireguard.Change{FirewallMark: ptr(uint32(7))}) },
		"wake": func(w *world, a, b *node) {
			w.net.Cut(nil, nil)
			b.Wake()
			w.settle()
		},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				w.connect(a, b)
				if s := b.status(a).Endpoint.Source; !s.IsValid() {
					w.Fatal("b has no sticky source before the cause")
				}
				cause(w, a, b)
				if s := b.status(a).Endpoint.Source; s.IsValid() {
					w.Fatalf("b keeps the sticky source %v, want none", s)
				}
			})
		})
	}
}

// The endpoints of both devices change from IPv4 to IPv6 during a session.
func TestRoamingBetweenFamilies(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		v6 := netip.AddrPortFrom(b.end.Addrs()[1], b.port)
		a.update(b, wireguard.PeerChange{Endpoint: ptr(wireguard.EndpointOf(v6))})
		a.send(b, "over IPv6")
		b.wantArrived("the session works over IPv6", "over IPv6")
		if e := b.status(a).Endpoint; !e.Addr.Addr().Is6() {
			w.Fatalf("b has the endpoint %v for a, want an IPv6 address", e)
		}
		b.send(a, "back")
		a.wantArrived("the session works in the other direction, too", "back")
	})
}

// behindNAT calls play with the device b behind a NAT and the device a outside of it. They have a session that b initiated.
func behindNAT(t *testing.T, play func(w *world, a, b *node)) {
	t.Helper()
	inWorld(t, func(w *world) {
		nat := w.net.NewNAT(pipe.NATConfig{Addrs: []netip.Addr{elsewhere}})
		a, b := w.node("a"), w.node("b")
		if err := b.end.MoveBehind(nat, netip.MustParseAddr("192.168.0.2")); err != nil {
			w.Fatal(err)
		}
		a.knows(b, func(c *wireguard.PeerConfig) { c.Endpoint = wireguard.Endpoint{} })
		b.knows(a)
		w.connect(b, a)
		play(w, a, b)
	})
}

// lostUntilTold asserts that all packets in both directions are lost for 30 s. Then it configures a's new endpoint at b, and
// asserts that new packets arrive in both directions.
func lostUntilTold(w *world, a, b *node) {
	w.Helper()
	for range 30 {
		a.send(b, "lost")
		b.send(a, "lost")
		w.advance(time.Second)
	}
	a.wantArrived("b sends to a's old endpoint")
	b.wantArrived("the NAT has no mapping for a's new endpoint")
	b.update(a, wireguard.PeerChange{Endpoint: ptr(a.at())})
	w.advance(5*time.Second + jitter)
	a.arrived()
	b.arrived()
	b.send(a, "there")
	a.send(b, "back")
	a.wantArrived("a's new endpoint is configured at b again", "there")
	b.wantArrived("b's packet makes a mapping for a's new endpoint", "back")
}

// The device b is behind a NAT. After the program has configured a's new endpoint at b, a packet arrives that a sent before it
// moved. The packet is authentic and not a replay, so b changes back to a's old endpoint, as Linux does
// (wg_packet_consume_data_done). Then no packet arrives in either direction until the program configures the endpoint again.
func TestLateDataMovesEndpointBack(t *testing.T) {
	behindNAT(t, func(w *world, a, b *node) {
		old := a.at().Addr
		w.hold("a data", 1)
		a.send(b, "late")
		a.changePort(2013)
		b.update(a, wireguard.PeerChange{Endpoint: ptr(a.at())})
		b.wantEndpoint(a, a.at().Addr, "a's new endpoint is configured at b")
		w.release()
		b.wantArrived("the late packet is authentic", "late")
		b.wantEndpoint(a, old, "the late packet was sent from a's old endpoint")
		lostUntilTold(w, a, b)
	})
}

// A late response to b's newest initiation changes a's endpoint at b back to the old one, because b cannot see from the response
// that it is late: a response has no counter (Linux, wg_receive_handshake_packet).
func TestLateResponseMovesEndpointBack(t *testing.T) {
	behindNAT(t, func(w *world, a, b *node) {
		old := a.at().Addr
		w.advance(121 * time.Second)
		w.script()
		w.hold("a response", 1)
		b.send(a, "x")
		w.want("b data, b initiation, a response", "b renews the old session")
		a.arrived()
		a.changePort(2013)
		b.update(a, wireguard.PeerChange{Endpoint: ptr(a.at())})
		w.release()
		b.wantEndpoint(a, old, "the late response was sent from a's old endpoint")
		lostUntilTold(w, a, b)
	})
}
