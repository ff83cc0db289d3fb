package wireguard_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// These tests call Configure on devices that are up, have sessions and send packets.

// Configure makes either the whole change or no part of it. If the change has a mistake, or a socket cannot be opened, nothing is
// changed. The error lists all mistakes.
func TestConfigureAllOrNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		mood := &moodyBind{}
		h, b, c, d := hub(w, func(c *wireguard.Config) { mood.Bind, c.Bind = c.Bind, mood })
		newcomer := wireguard.NewPrivateKey().Public()
		good := func() wireguard.Change { // changes everything that a Change can change
			return wireguard.Change{
				PrivateKey: ptr(wireguard.NewPrivateKey()), ListenPort: ptr(uint16(4000)), FirewallMark: ptr(uint32(9)), ReplacePeers: true,
				Peers: []wireguard.PeerChange{
					{PublicKey: newcomer, AllowedIPs: prefixesOf("10.0.0.0/8")},
					{
						PublicKey: b.pub(), PresharedKey: &wireguard.PresharedKey{1}, Endpoint: ptr(c.at()), PersistentKeepalive: ptr(time.Minute),
						ReplaceAllowedIPs: true, AllowedIPs: c.prefixes(), Timestamp: &wireguard.Timestamp{0xff},
					},
					{PublicKey: c.pub(), Remove: true},
				},
			}
		}
		before := snapshot(h)
		refused := func(name string, change wireguard.Change, texts ...string) {
			w.Helper()
			err := h.Configure(change)
			for _, text := range texts {
				if !contains(err, text) {
					w.Fatalf("%s: Configure returned the error %v, want one that contains %q", name, err, text)
				}
			}
			if after := snapshot(h); after != before {
				w.Fatalf("%s: Configure returned an error, but changed the device from\n%s\nto\n%s", name, before, after)
			}
			w.want("", name)
			for _, n := range []*node{b, c, d} {
				wantWorks(w, h, n, name)
			}
			before = snapshot(h) // the counters of h have grown
		}
		change := good()
		change.Peers = append(change.Peers,
			wireguard.PeerChange{PublicKey: d.pub(), PersistentKeepalive: ptr(-time.Second)},
			wireguard.PeerChange{},
			wireguard.PeerChange{PublicKey: change.PrivateKey.Public()},
			wireguard.PeerChange{PublicKey: b.pub(), RemoveAllowedIPs: []netip.Prefix{{}}, Endpoint: ptr(wireguard.EndpointOf(netip.MustParseAddrPort("0.0.0.0:1")))},
		)
		refused("a change with mistakes", change, "peer 3 ("+d.pub().String(), "persistent keepalive -1s", "peer 4 (", "public key is missing",
			"peer 5 (", "own public key", "peer 6 ("+b.pub().String(), "not a valid prefix", "the address of one host")

		mood.set(func() { mood.fail = syscall.EADDRINUSE })
		refused("a port that is taken", good(), "listen on port 4000", syscall.EADDRINUSE.Error())
		mood.set(func() { mood.fail, mood.noMark = nil, syscall.EPERM })
		refused("a mark that is not allowed, on a new port", good(), "firewall mark 0x9", syscall.EPERM.Error())
		onlyMark := good()
		onlyMark.ListenPort = nil
		refused("a mark that is not allowed", onlyMark, "firewall mark 0x9", syscall.EPERM.Error())

		mood.set(func() { mood.noMark = nil })
		change = good()
		h.key = *change.PrivateKey
		h.configure(change)
		if s := h.Status(); s.PublicKey != h.pub() || s.ListenPort != 4000 || s.FirewallMark != 9 || s.Peers != 2 {
			w.Fatalf("status %+v, want that of the change without mistakes", s)
		}
		if _, ok := h.Peer(newcomer); !ok {
			w.Fatal("the change did not add the new peer")
		}
		if s := h.status(b); s.PersistentKeepalive != time.Minute || s.Endpoint.Addr != c.at().Addr || h.psk(b) != (wireguard.PresharedKey{1}) ||
			!slices.Equal(h.allowed(b), c.prefixes()) || s.Timestamp != (wireguard.Timestamp{0xff}) {
			w.Fatalf("peer %+v, want the settings of the change", s)
		}
	})
}

// snapshot returns everything that a program can read of a device and its peers, except events.
func snapshot(n *node) string {
	s := fmt.Sprintf("%+v", n.Status())
	for p := range n.Peers() {
		p.NextDeadline = 0
		psk, _ := n.PresharedKey(p.PublicKey)
		s += fmt.Sprintf("\n%+v %v %v", p, psk.IsZero(), slices.Collect(n.AllowedIPs(p.PublicKey)))
	}
	return s
}

// TestReplacePeersKeepsSessions checks row 27 of the list decisions in coverage_test.go, with the API instead of the control
// protocol: a change with ReplacePeers removes the peers that it does not name. A peer that it names keeps its session and all
// state that the change does not set.
func TestReplacePeersKeepsSessions(t *testing.T) {
	inWorld(t, func(w *world) {
		h, b, c, d := hub(w)
		before, allowed := h.status(b), h.allowed(b)
		h.configure(wireguard.Change{ReplacePeers: true, Peers: []wireguard.PeerChange{{PublicKey: b.pub()}, c.peer().Change()}})
		w.want("", "a change of peers does not send messages")
		if s := h.status(b); s.Received != before.Received || s.Timestamp != before.Timestamp || s.LastHandshake != before.LastHandshake ||
			!s.Session || !slices.Equal(h.allowed(b), allowed) || s.Endpoint != before.Endpoint {
			w.Fatalf("ReplacePeers changed the peer from\n%+v\nto\n%+v", before, s)
		}
		wantWorks(w, h, b, "the change names only the key of b, and b keeps its session")
		wantWorks(w, h, c, "the change has the configuration of c, and c keeps its session")
		if n := wireguard.SessionIndices(h.Device); n != 2 {
			w.Fatalf("%d session indices, want those of b and c", n)
		}
		h.send(d, "to nobody")
		h.wantDrops(wireguard.DropNoRoute, 1, "the change does not name d, so the hub has no route to d")
		d.send(h, "from nobody")
		h.wantDrops(wireguard.DropUnknownIndex, 1, "the hub removed the session together with d")
		h.configure(wireguard.Change{ReplacePeers: true})
		if h.Status().Peers != 0 || wireguard.SessionIndices(h.Device) != 0 {
			w.Fatal("a change that names no peer did not remove all peers and their session indices")
		}
	})
}

// If one change removes a peer and adds it again, the peer starts anew: it has no session, its counters are zero, and the device
// may send it an initiation at once, even if the last one was sent less than 5 s ago. Messages of the old session that are still
// in flight are dropped.
func TestRemoveAndAddInOneChange(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		a.update(b, wireguard.PeerChange{PresharedKey: &wireguard.PresharedKey{}, PersistentKeepalive: ptr(time.Hour)})
		w.hold("b data", 1)
		b.send(a, "in flight")
		w.advance(time.Second)
		w.script()
		a.configure(wireguard.Change{Peers: []wireguard.PeerChange{{PublicKey: b.pub(), Remove: true}, b.peer().Change()}})
		if s := a.status(b); s.Session || s.Sent.Bytes+s.Received.Bytes != 0 || !s.LastHandshake.IsZero() || s.PersistentKeepalive != 0 || s.NextReason != "" {
			w.Fatalf("peer %+v, want a peer without session, counters and settings", s)
		}
		w.release()
		a.wantDrops(wireguard.DropUnknownIndex, 1, "the message in flight belongs to the old session")
		a.send(b, "anew")
		w.want("a initiation, b response, a data", "a sends an initiation at once")
		b.wantArrived("anew", "anew")
		wantWorks(w, a, b, "in both directions")
	})
}

// A change of one field of a peer does not affect the peer's session and its other fields.
func TestUpdateOneField(t *testing.T) {
	for name, change := range map[string]wireguard.PeerChange{
		"preshared key":         {PresharedKey: &wireguard.PresharedKey{1}},
		"keepalive":             {PersistentKeepalive: ptr(time.Hour)},
		"allowed IPs added":     {AllowedIPs: prefixesOf("10.77.0.0/16")},
		"allowed IPs replaced":  {ReplaceAllowedIPs: true, AllowedIPs: prefixesOf("10.0.0.2/32", "10.78.0.0/16")},
		"allowed IPs taken":     {RemoveAllowedIPs: prefixesOf("fd00::2/128")},
		"timestamp":             {Timestamp: &wireguard.Timestamp{0xff}},
		"older timestamp":       {Timestamp: &wireguard.Timestamp{}},
		"nothing":               {},
		"nothing, if it exists": {UpdateOnly: true},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(w *world, a, b *node) {
				w.connect(b, a) // so that a has received a timestamp from b
				before, allowed := a.status(b), a.allowed(b)
				a.update(b, change)
				after := a.status(b)
				w.script() // the change of the keepalive interval made a send a keepalive
				want, wantPSK := before, wireguard.PresharedKey{}
				switch {
				case change.PresharedKey != nil:
					wantPSK = *change.PresharedKey
				case change.PersistentKeepalive != nil:
					want.PersistentKeepalive = *change.PersistentKeepalive
					want.Sent.Bytes += 32
				case name == "timestamp":
					want.Timestamp = *change.Timestamp
				case change.ReplaceAllowedIPs:
					allowed = slices.Clone(change.AllowedIPs)
				case change.RemoveAllowedIPs != nil:
					allowed = allowed[:1]
				default:
					allowed = slices.Concat(allowed, change.AllowedIPs)
				}
				slices.SortFunc(allowed, netip.Prefix.Compare)
				want.AllowedIPs = len(allowed)
				after.NextDeadline, want.NextDeadline, after.NextReason, want.NextReason = 0, 0, "", ""
				if fmt.Sprintf("%+v", after) != fmt.Sprintf("%+v", want) || a.psk(b) != wantPSK || !slices.Equal(a.allowed(b), allowed) {
					w.Fatalf("peer\n%+v, want\n%+v", after, want)
				}
				wantWorks(w, a, b, "in the same session")
			})
		})
	}
	scenario(t, func(w *world, a, b *node) {
		stranger := wireguard.NewPrivateKey().Public()
		a.configure(wireguard.Change{Peers: []wireguard.PeerChange{
			{PublicKey: stranger, UpdateOnly: true, AllowedIPs: prefixesOf("0.0.0.0/0")},
		}})
		if _, ok := a.Peer(stranger); ok || a.Status().Peers != 1 {
			w.Fatal("an update of a peer that does not exist made one")
		}
		if _, ok := a.Route(netip.MustParseAddr("192.0.2.1")); ok {
			w.Fatal("an update of a peer that does not exist made a route")
		}
	})
}

// The test moves a prefix from one peer to another while packets flow. From then on only the new owner may send from addresses of
// this prefix. Neither peer needs a new handshake.
func TestAllowedIPsMoveWhilePacketsFlow(t *testing.T) {
	inWorld(t, func(w *world) {
		h, b, c, _ := hub(w)
		shared := netip.MustParseAddrPort("10.50.0.1:1")
		home := netip.AddrPortFrom(h.addr, 1)
		for _, n := range []*node{b, c} {
			n.update(h, wireguard.PeerChange{AllowedIPs: prefixesOf("10.0.0.0/8")})
		}
		refused := uint64(0)
		for i, owner := range []*node{b, c, b, c, c, b} {
			other := map[*node]*node{b: c, c: b}[owner]
			h.update(owner, wireguard.PeerChange{AllowedIPs: prefixesOf("10.50.0.0/24")})
			name := fmt.Sprintf("round %d, %s has the prefix", i, owner.name)
			h.inject(ipPacket(home, shared, name))
			owner.wantArrived(name, name)
			other.wantArrived(name)
			for _, n := range []*node{b, c} {
				n.inject(ipPacket(shared, home, n.name))
			}
			h.wantArrived(name+", and may send from its addresses", owner.name)
			refused++
			h.wantDrops(wireguard.DropSourceNotAllowed, refused, "the other peer may not send from the prefix")
		}
		if n := w.net.Sent().Initiations; n != 3 {
			w.Fatalf("%d initiations, want only the 3 of the first handshakes", n)
		}
	})
}

// The test moves a prefix between two peers while goroutines send to addresses of this prefix. Each packet must reach exactly one
// of the two peers, exactly once.
func TestAllowedIPsMoveUnderSenders(t *testing.T) {
	inWorld(t, func(w *world) {
		h, b, c, _ := hub(w)
		for _, n := range []*node{b, c} {
			n.update(h, wireguard.PeerChange{AllowedIPs: prefixesOf("10.0.0.0/8")})
		}
		h.update(b, wireguard.PeerChange{AllowedIPs: prefixesOf("10.50.0.0/24")})
		const senders, rounds = 2, 200
		var wg sync.WaitGroup
		for range senders {
			wg.Go(func() {
				batch := h.NewBatch()
				for range rounds {
					batch.Append(ipPacket(netip.AddrPortFrom(h.addr, 1), netip.MustParseAddrPort("10.50.0.1:1"), "x"))
					if err := h.Send(batch); err != nil {
						w.Error(err)
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
		wg.Go(func() {
			for i := range rounds {
				change := wireguard.PeerChange{PublicKey: []*node{b, c}[i%2].pub(), AllowedIPs: prefixesOf("10.50.0.0/24")}
				if err := h.Configure(wireguard.Change{Peers: []wireguard.PeerChange{change}}); err != nil {
					w.Error(err)
				}
				time.Sleep(time.Millisecond)
			}
		})
		wg.Wait()
		atB, atC := len(b.arrived()), len(c.arrived())
		if atB+atC != senders*rounds || atB == 0 || atC == 0 {
			w.Fatalf("%d packets arrived at b and %d at c, want %d in total and some at each", atB, atC, senders*rounds)
		}
		if drops := h.Status().Drops; drops.Total() != 0 {
			w.Fatalf("drops %v, want none, because b or c always has the prefix", drops)
		}
	})
}

// When the listen port changes, the device opens a socket on the new port before it closes the old one. Each peer learns the new
// port from the next packet that the device sends to this peer.
func TestListenPortChange(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.hold("b data", 1)
		b.send(a, "in flight to the old port")
		a.configure(wireguard.Change{ListenPort: &a.port})
		wantPort := func(port uint16, why string) {
			w.Helper()
			if m := w.last("a data"); m.src.Port() != port || a.Status().ListenPort != port {
				w.Fatalf("a sent from port %d, and its status shows port %d, want %d: %s", m.src.Port(), a.Status().ListenPort, port, why)
			}
		}
		a.send(b, "1")
		wantPort(a.port, "setting the same port changes nothing")
		w.release()
		a.wantArrived("no socket was closed", "in flight to the old port")

		a.configure(wireguard.Change{ListenPort: ptr(uint16(3000))})
		w.script()
		a.send(b, "2")
		wantPort(3000, "the new port")
		b.wantArrived("in the same session", "1", "2")
		b.wantEndpoint(a, netip.AddrPortFrom(a.at().Addr.Addr(), 3000), "b has learned the new port from a's packet")
		b.send(a, "back")
		a.wantArrived("b sends to the new port", "back")
		w.want("a data, b data", "the session continues without a handshake")

		taken, err := a.end.Listen(3001)
		if err != nil {
			w.Fatal(err)
		}
		defer taken.Close()
		if err := a.Configure(wireguard.Change{ListenPort: ptr(uint16(3001))}); !errors.Is(err, syscall.EADDRINUSE) {
			w.Fatalf("Configure: %v, want EADDRINUSE", err)
		}
		a.send(b, "3")
		wantPort(3000, "a keeps the old port if it cannot open the new one")
		a.configure(wireguard.Change{ListenPort: ptr(uint16(0))})
		a.send(b, "4")
		port := a.Status().ListenPort
		if port == 0 || port == 3000 {
			w.Fatalf("port %d, want one that the Bind chose", port)
		}
		wantPort(port, "with port 0, the Bind chooses the port")
		a.configure(wireguard.Change{ListenPort: ptr(uint16(0))})
		a.send(b, "5")
		wantPort(port, "setting port 0 again changes nothing")
		b.wantArrived("nothing was lost", "3", "4", "5")
	})
}

// The device sets the firewall mark on its socket at once, and on each socket that it opens later.
func TestFirewallMarkChange(t *testing.T) {
	withMood(t, func(w *world, a, b *node, mood *moodyBind) {
		w.connect(a, b)
		opened := len(mood.opened)
		for _, mark := range []uint32{7, 7, 8, 0} {
			a.configure(wireguard.Change{FirewallMark: &mark})
		}
		if fmt.Sprint(mood.marks) != "[7 8 0]" || len(mood.opened) != opened {
			w.Fatalf("marks %v and %d new sockets, want each change once on the existing socket", mood.marks, len(mood.opened)-opened)
		}
		wantWorks(w, a, b, "a new mark does not affect the session")
		a.configure(wireguard.Change{FirewallMark: ptr(uint32(9)), ListenPort: ptr(uint16(3000))})
		a.restart()
		if fmt.Sprint(mood.marks) != "[7 8 0 9 9]" {
			w.Fatalf("marks %v, want 9 on the socket of the new port, and again on the socket after Down and Up", mood.marks)
		}
		a.Down()
		a.configure(wireguard.Change{FirewallMark: ptr(uint32(10))})
		if fmt.Sprint(mood.marks) != "[7 8 0 9 9]" || a.Status().FirewallMark != 10 {
			w.Fatalf("marks %v, status %+v, want the mark 10 only in the status, because there is no socket", mood.marks, a.Status())
		}
		a.Up()
		if fmt.Sprint(mood.marks) != "[7 8 0 9 9 10]" {
			w.Fatalf("marks %v, want 10 on the new socket, because 10 was set while the device was down", mood.marks)
		}
	})
}

// TestPrivateKeyChangeUnderTraffic checks rows 13 and 15 of the list decisions in coverage_test.go under traffic: a's private key
// changes while a sends to b. Packets that a sends after the change wait for a session of the new key, and arrive. The device b
// drops packets that a sealed before the change and that are still in flight, because b has moved the prefixes to the
// peer with the new key.
func TestPrivateKeyChangeUnderTraffic(t *testing.T) {
	scenario(t, func(w *world, a, b *node) {
		w.connect(a, b)
		w.net.SetConditions(pipe.Conditions{Delay: 10 * time.Millisecond})
		next := wireguard.NewPrivateKey()
		var want []string
		for i := range 100 {
			if i == 50 {
				a.key = next
				a.configure(wireguard.Change{PrivateKey: &next})
				b.configure(wireguard.Change{Peers: []wireguard.PeerChange{a.peer().Change()}})
			}
			s := fmt.Sprint(i)
			want = append(want, s)
			a.send(b, s)
			w.advance(time.Millisecond)
		}
		w.advance(time.Second)
		got := b.arrived()
		// The device b has moved a's prefixes to the peer with the new key. So b drops packets that still arrive in the session of
		// the old key, because their source is no longer allowed for the peer with the old key.
		refused := int(b.Status().Drops[wireguard.DropSourceNotAllowed])
		if refused == 0 || refused > 15 {
			w.Fatalf("%d packets were refused, want about 10, those in flight during the change", refused)
		}
		if !slices.Equal(got, slices.Concat(want[:50-refused], want[50:])) {
			w.Fatalf("the packets %q arrived, want all except the refused ones", got)
		}
		if n := w.net.Sent().Initiations; n != 2 {
			w.Fatalf("%d initiations, want one for each key", n)
		}
	})
}
