package netstack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"golang.org/x/net/ipv4"
)

// ipPacket returns an IP packet with correct checksums. transport has the bytes after the IP header.
func ipPacket(src, dst netip.Addr, proto uint8, transport ...byte) []byte {
	l3 := 20
	if src.Is6() {
		l3 = 40
	}
	p := make([]byte, l3+len(transport))
	packet.PutIP(p, len(p), src, dst, proto, 0)
	copy(p[l3:], transport)
	switch t := p[l3:]; proto {
	case protoTCP:
		mendSums(p, l3)
	case protoUDP:
		putChecksum(proto, t[:8], t[8:], p[:l3])
	case protoICMP4, protoICMP6:
		putChecksum(proto, t, nil, p[:l3])
	}
	return p
}

// udpPacket returns an IP packet with a datagram that carries the given data.
func udpPacket(src, dst netip.AddrPort, data string) []byte {
	return ipPacket(src.Addr(), dst.Addr(), protoUDP, append(udpHeader(src, dst, len(data)), data...)...)
}

// TestForwardFilter checks that the second stack gets the packets that a router may forward, and that the Net's own stack gets
// the packets for the Net. All other packets are dropped.
func TestForwardFilter(t *testing.T) {
	g := newGateway(t, Config{Forward: func(*Flow) {}})
	own, second := &g.link.own, &g.link.forward.port
	c4, c6 := clientAddrs[0][0], clientAddrs[0][1]
	for _, c := range []struct {
		src, dst netip.Addr
		want     *port
	}{
		{c4, far4, second}, {c6, far6, second}, {c4, clientAddrs[1][0], second},
		{c4, a4, own}, {c6, a6, own},
		{c4, netip.MustParseAddr("224.0.0.1"), own}, {c6, netip.MustParseAddr("ff02::1"), own},
		{c4, netip.MustParseAddr("255.255.255.255"), own},
		{c4, netip.MustParseAddr("127.0.0.1"), nil}, {c6, netip.IPv6Loopback(), nil},
		{c4, netip.MustParseAddr("169.254.1.1"), nil}, {c6, netip.MustParseAddr("fe80::1"), nil},
		{c4, netip.MustParseAddr("0.1.2.3"), nil}, {c4, netip.MustParseAddr("240.0.0.1"), nil}, {c6, netip.IPv6Unspecified(), nil},
		{c6, netip.MustParseAddr("::ffff:192.0.2.1"), nil},
		{netip.MustParseAddr("127.0.0.1"), far4, nil}, {netip.MustParseAddr("224.0.0.1"), far4, nil}, {netip.IPv6Unspecified(), far6, nil},
		{c4, c4, nil}, {a4, far4, nil}, {a6, far6, nil},
	} {
		before := g.Stats().Martian
		p := udpPacket(netip.AddrPortFrom(c.src, 1), netip.AddrPortFrom(c.dst, 2), "")
		if got := g.link.forward.portOf(p); got != c.want {
			t.Errorf("%v to %v: portOf returned %p, want %p; the Net's own port is %p, and the second is %p", c.src, c.dst, got, c.want, own, second)
		}
		if counted := g.Stats().Martian - before; counted == 1 != (c.want == nil) {
			t.Errorf("%v to %v: Stats.Martian grew by %d, want 1 only for a dropped packet", c.src, c.dst, counted)
		}
	}
	for kind, want := range map[byte]*port{0: nil, 3: second, 8: second, 11: second, 13: nil, 17: nil} {
		if got := g.link.forward.portOf(ipPacket(c4, far4, protoICMP4, kind, 0, 0, 0, 0, 0, 0, 0)); got != want {
			t.Errorf("ICMP type %d: portOf returned %p, want %p", kind, got, want)
		}
	}
	for kind, want := range map[byte]*port{1: second, 2: second, 128: second, 129: nil, 133: nil, 135: nil} {
		if got := g.link.forward.portOf(ipPacket(c6, far6, protoICMP6, kind, 0, 0, 0, 0, 0, 0, 0)); got != want {
			t.Errorf("ICMPv6 type %d: portOf returned %p, want %p", kind, got, want)
		}
	}
}

// FuzzForward sends two arbitrary packets of a peer to a Net that forwards. It checks that nothing panics, and that the program
// gets no flow that a router must not forward or that belongs to another peer.
func FuzzForward(f *testing.F) {
	var g *gateway
	g = newGateway(f, Config{Forwarding: Forwarding{Pending: 256, Flows: 1024}, Forward: func(fl *Flow) {
		src, dst := fl.Source().Addr(), fl.Destination().Addr()
		i := slices.IndexFunc(clientAddrs[:], func(as []netip.Addr) bool { return slices.Contains(as, src) })
		if i < 0 || fl.Peer() != g.keys[i] {
			panic(fmt.Sprintf("a flow from %v has the wrong peer %v", src, fl.Peer()))
		}
		if dst == a4 || dst == a6 || !isForwardable(dst) || dst == src {
			panic(fmt.Sprintf("the program got a flow to %v, which must not be forwarded", dst))
		}
		switch {
		case fl.Network() == "ping":
			_ = fl.Data()
			_ = fl.Answer()
		case fl.Network() == "udp" && fl.Destination().Port()%2 == 1:
			if s, began, err := fl.AcceptSource(); err == nil && began {
				time.AfterFunc(time.Millisecond, func() { _ = s.Close() })
			}
		case fl.Destination().Port()%2 == 1:
			fl.Discard()
		default:
			_ = fl.Refuse(Refusal(fl.Destination().Port() / 2 % 4))
		}
	}})
	for i, far := range []netip.Addr{far4, far6} {
		client := clientAddrs[0][i]
		src, dst := netip.AddrPortFrom(client, 5000), netip.AddrPortFrom(far, 53)
		datagram := udpPacket(src, dst, "question")
		syn := ipPacket(client, far, protoTCP, 0x13, 0x88, 0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 5<<4, 2, 3, 232, 0, 0, 0, 0)
		proto, echo, unreachable, code := byte(protoICMP4), byte(8), byte(3), byte(3)
		if client.Is6() {
			proto, echo, unreachable, code = protoICMP6, 128, 1, 4
		}
		ping := ipPacket(client, far, proto, echo, 0, 0, 0, 0, 1, 0, 1, 'd', 'a', 't', 'a')
		quote := append([]byte{unreachable, code, 0, 0, 0, 0, 0, 0}, udpPacket(dst, src, "answer")...)
		f.Add(datagram, ipPacket(client, far, proto, quote...))
		f.Add(syn, ping)
		f.Add(ping, datagram[:len(datagram)-3])
		f.Add(udpPacket(src, netip.AddrPortFrom(far, 54), "refused"), udpPacket(src, netip.AddrPortFrom([]netip.Addr{a4, a6}[i], 54), ""))
	}
	first := ipPacket(clientAddrs[0][0], far4, protoUDP, append(udpHeader(netip.AddrPortFrom(far4, 1), netip.AddrPortFrom(far4, 2), 8), make([]byte, 8)...)...)
	second := slices.Clone(first)
	binary.BigEndian.PutUint16(first[ip4Fragment:], 1<<13)
	binary.BigEndian.PutUint16(second[ip4Fragment:], 2)
	f.Add(first, second)
	f.Fuzz(func(t *testing.T, p, q []byte) {
		for _, p := range [][]byte{p, q} {
			p = append(make([]byte, 0, len(p)), p...) // the slice has no spare capacity, so a read beyond its end panics
			mendAny(p)
			_, _ = g.WritePackets([][]byte{p})
		}
	})
}

// mendAny corrects the lengths and the checksums in p, if p is long enough to have them, so that the Net does not drop p
// because of them.
func mendAny(p []byte) {
	if len(p) < 20 {
		return
	}
	l3, proto := int(p[0]&15)*4, p[ip4Protocol]
	switch {
	case p[0]>>4 == 4 && l3 >= 20 && l3 <= len(p):
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], checksum(p[:l3]))
	case p[0]>>4 == 6 && len(p) >= 40:
		l3, proto = 40, p[ip6Next]
		binary.BigEndian.PutUint16(p[ip6Length:], uint16(len(p)-40))
	default:
		return
	}
	t := p[l3:]
	at, ok := map[uint8]int{protoTCP: 16, protoUDP: udpChecksum, protoICMP4: 2, protoICMP6: 2}[proto]
	if !ok || len(t) < at+2 {
		return
	}
	t[at], t[at+1] = 0, 0
	if proto == protoUDP {
		binary.BigEndian.PutUint16(t[udpLength:], uint16(len(t)))
	}
	sum := uint16(0)
	if proto != protoICMP4 {
		sum = packet.PseudoSum(p[:l3], len(t))
	}
	binary.BigEndian.PutUint16(t[at:], ^packet.Sum(t, sum))
}

// TestForwardAllocs checks that a packet of an established forwarded flow causes no more allocations than a packet to an
// address of the Net.
func TestForwardAllocs(t *testing.T) {
	if testkit.Race {
		t.Skip("the race detector empties pools at random")
	}
	conns, sources := make(chan *UDPConn, 1), make(chan *UDPSource, 1)
	g := newGateway(t, Config{Forward: func(f *Flow) {
		if f.Destination().Port() == 53 {
			s, _, err := f.AcceptSource()
			if err != nil {
				t.Error(err)
			}
			sources <- s
			return
		}
		c, err := f.Accept()
		if err != nil {
			t.Error(err)
		}
		conns <- c.(*UDPConn)
	}})
	own, err := g.ListenUDP(netip.AddrPortFrom(a4, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	b := make([]byte, 100)
	measure := func(port uint16, dst netip.AddrPort, read func() (int, error)) float64 {
		p := udpPacket(netip.AddrPortFrom(clientAddrs[0][0], port), dst, "datagram")
		ps := [][]byte{p}
		return testing.AllocsPerRun(200, func() {
			if _, err := g.WritePackets(ps); err != nil {
				t.Fatal(err)
			}
			if n, err := read(); n != len("datagram") || err != nil {
				t.Fatal("bytes of the datagram read, and the error:", n, err)
			}
		})
	}
	base := measure(1000, netip.AddrPortFrom(a4, 80), func() (int, error) {
		n, _, err := own.ReadFromUDPAddrPort(b)
		return n, err
	})
	var c *UDPConn
	forwarded := measure(1001, netip.AddrPortFrom(far4, 80), func() (int, error) {
		if c == nil {
			c = <-conns
		}
		return c.Read(b)
	})
	if forwarded > base {
		t.Errorf("a datagram of a forwarded flow allocates %v times, want at most %v, as for a datagram to the Net itself", forwarded, base)
	}
	var s *UDPSource
	sourced := measure(1002, netip.AddrPortFrom(far4, 53), func() (int, error) {
		if s == nil {
			s = <-sources
		}
		n, _, err := s.ReadTo(b)
		return n, err
	})
	if sourced > base {
		t.Errorf("a datagram of a UDPSource allocates %v times, want at most %v, as for a datagram to the Net itself", sourced, base)
	}
	g.lose(func([]byte) bool { return true }) // the client's work is not measured
	answered := testing.AllocsPerRun(200, func() {
		if _, err := s.WriteFrom(b[:8], netip.AddrPortFrom(far4, 53)); err != nil {
			t.Fatal(err)
		}
	})
	wrote := testing.AllocsPerRun(200, func() {
		if _, err := own.WriteToUDPAddrPort(b[:8], netip.AddrPortFrom(clientAddrs[0][0], 1000)); err != nil {
			t.Fatal(err)
		}
	})
	if answered > wrote {
		t.Errorf("WriteFrom allocates %v times, want at most %v, as WriteToUDPAddrPort does", answered, wrote)
	}
	t.Logf("allocations per received datagram: %v to the Net, %v forwarded, %v to a UDPSource; per sent datagram: %v from the Net, %v from a UDPSource", base, forwarded, sourced, wrote, answered)
}

// TestForwardMessage checks that a control message may name the destination of a forwarded flow as the source address of a
// datagram.
func TestForwardMessage(t *testing.T) {
	conns := make(chan *UDPConn, 1)
	g := newGateway(t, Config{Forward: func(f *Flow) {
		c, err := f.Accept()
		if err != nil {
			t.Error(err)
		}
		conns <- c.(*UDPConn)
	}})
	client, err := g.clients[0].DialUDP(netip.AddrPort{}, netip.AddrPortFrom(far4, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_ = client.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := client.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	c := <-conns
	oob := (&ipv4.ControlMessage{Src: far4.AsSlice()}).Marshal()
	if _, _, err := c.WriteMsgUDP([]byte("answer"), oob, nil); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, err := client.Read(b); string(b[:n]) != "answer" || err != nil {
		t.Errorf("the client read %q, %v; want \"answer\"", b[:n], err)
	}
}
