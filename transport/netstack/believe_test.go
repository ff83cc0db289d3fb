package netstack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

// icmpKinds has the types and codes of the ICMP errors that a forger sends, for IPv4 (true) and IPv6 (false). The first one is
// "packet too big".
var icmpKinds = map[bool][][2]byte{
	true:  {{3, 4}, {3, 0}, {3, 1}, {3, 2}, {3, 3}, {3, 5}, {3, 6}, {3, 8}, {3, 13}, {4, 0}, {11, 0}, {12, 0}},
	false: {{2, 0}, {1, 0}, {1, 1}, {1, 3}, {1, 4}, {1, 5}, {3, 0}, {4, 0}, {4, 1}},
}

// icmpAbout returns an ICMP error of the given kind, which the host from sends about the segment s. The second word of the ICMP
// header is mtu.
func icmpAbout(from netip.Addr, kind [2]byte, mtu int, s segment) []byte {
	about := s.packet()
	l3, proto := packet.IP4Header, uint8(packet.ICMP)
	if from.Is6() {
		l3, proto = packet.IP6Header, packet.ICMP6
	}
	p := make([]byte, l3+8+len(about))
	packet.PutIP(p, len(p), from, s.from.Addr(), proto, 0)
	icmp, sum := p[l3:], uint16(0)
	if from.Is6() {
		sum = packet.PseudoSum(p, len(icmp))
	}
	icmp[0], icmp[1] = kind[0], kind[1]
	binary.BigEndian.PutUint32(icmp[4:], uint32(mtu))
	copy(icmp[8:], about)
	binary.BigEndian.PutUint16(icmp[2:], ^packet.Sum(icmp, sum))
	return p
}

// talking returns an accepted connection s that has sent 8,000 bytes, and the peer's end c, which has not acknowledged them.
// una is the sequence number of the first of these bytes.
func talking(t *testing.T, flow [2]netip.AddrPort) (n *Net, c *handConn, s *TCPConn, una uint32) {
	t.Helper()
	n, h := byHand(t)
	h.mss = 1400
	l, err := n.ListenTCP(flow[1])
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c = h.connect(t, flow[0], flow[1])
	if s, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.SetLinger(0); _ = s.Close() })
	if _, err := s.Write(make([]byte, 8000)); err != nil {
		t.Fatal(err)
	}
	una = c.ack
	h.want(t, "8,000 bytes", func(s segment) bool { return c.mine(s) && s.seq+uint32(len(s.payload))-una == 8000 })
	return n, c, s, una
}

var talkFlows = map[string][2]netip.AddrPort{
	"IPv4": {netip.AddrPortFrom(b4, 5000), netip.AddrPortFrom(a4, 80)}, "IPv6": {netip.AddrPortFrom(b6, 5000), netip.AddrPortFrom(a6, 80)},
}

// lives checks that the connection s carries data in both directions, and returns the size of the largest payload that it
// sends.
func lives(t *testing.T, c *handConn, s *TCPConn, una uint32) (largest int) {
	t.Helper()
	c.ack = una + 8000
	c.h.forget()
	c.h.write(t, c.segment(flagACK|flagPSH, []byte("question")).packet())
	c.next += 8
	b := make([]byte, 8)
	if n, err := s.Read(b); err != nil || string(b[:n]) != "question" {
		t.Fatalf("read %q, %v; want the peer's question", b[:n], err)
	}
	if _, err := s.Write(make([]byte, 8000)); err != nil {
		t.Fatal(err)
	}
	for c.ack != una+16000 {
		g := c.h.want(t, "the next segment", func(g segment) bool { return c.mine(g) && g.seq == c.ack && len(g.payload) > 0 })
		largest = max(largest, len(g.payload))
		c.ack += uint32(len(g.payload))
		c.h.write(t, c.segment(flagACK, nil).packet())
	}
	return largest
}

// waitForged waits until n has dropped want forged errors.
func waitForged(t *testing.T, n *Net, want uint64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); n.Stats().Forged != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the Stats are %+v, want %d forged errors", n.Stats(), want)
		}
	}
}

// TestForgedErrors checks that the Net drops and counts forged ICMP errors, and that these errors have no effect. A host behind the
// peer, which does not see the connection, sends each kind of error about sequence numbers that are not in flight. It also sends
// "packet too big" about packets that are not too big.
func TestForgedErrors(t *testing.T) {
	for name, flow := range talkFlows {
		n, c, s, una := talking(t, flow)
		is4 := flow[0].Addr().Is4()
		forger := flow[0].Addr().Next()
		sent := uint64(0)
		for _, kind := range icmpKinds[is4] {
			for _, seq := range []uint32{una - 1, una + 8000, una + 1<<20, una - 1<<20, una + 1<<31, 0} {
				about := segment{from: flow[1], to: flow[0], seq: seq, ack: c.next, flags: flagACK, payload: make([]byte, 1200)}
				c.h.write(t, icmpAbout(forger, kind, 600, about))
				sent++
				waitForged(t, n, sent)
			}
		}
		about := segment{from: flow[1], to: flow[0], seq: una, ack: c.next, flags: flagACK, payload: make([]byte, 100)}
		c.h.write(t, icmpAbout(forger, icmpKinds[is4][0], 1300, about))
		short := icmpAbout(forger, icmpKinds[is4][1], 0, about)
		short = short[:len(short)-len(about.payload)-13] // without the last byte of the sequence number
		clear(short[:packet.IP4Header])
		at := packet.PutIP(short, len(short), forger, flow[1].Addr(), map[bool]uint8{true: packet.ICMP, false: packet.ICMP6}[is4], 0)
		binary.BigEndian.PutUint16(short[at+2:], 0)
		sum := uint16(0)
		if !is4 {
			sum = packet.PseudoSum(short, len(short)-at)
		}
		binary.BigEndian.PutUint16(short[at+2:], ^packet.Sum(short[at:], sum))
		c.h.write(t, short)
		waitForged(t, n, sent+2)
		if largest := lives(t, c, s, una); largest < 1300 {
			t.Errorf("%s: after forged errors, the largest payload has %d bytes, want at least 1,300", name, largest)
		}
		if err := s.Endpoint().LastError(); err != nil {
			t.Errorf("%s: a forged error made the connection's last error %v, want nil", name, err)
		}
	}
}

// TestTrueErrors checks that an error about a segment in flight never ends the connection, and that "packet too big" makes
// segments smaller.
func TestTrueErrors(t *testing.T) {
	for name, flow := range talkFlows {
		is4 := flow[0].Addr().Is4()
		for i, kind := range icmpKinds[is4] {
			n, c, s, una := talking(t, flow)
			about := segment{from: flow[1], to: flow[0], seq: una + 1388, ack: c.next, flags: flagACK, payload: make([]byte, 1340)}
			c.h.write(t, icmpAbout(flow[0].Addr().Next(), kind, 1300, about))
			waitFor(t, func() bool {
				n.link.errors.mu.Lock()
				defer n.link.errors.mu.Unlock()
				return !n.link.errors.running
			})
			largest := lives(t, c, s, una)
			if small := largest <= 1300-40; small != (i == 0) {
				t.Errorf("%s: after an error of type and code %v, the largest payload has %d bytes; want at most 1,260 only after \"packet too big\"", name, kind, largest)
			}
			if f := n.Stats().Forged; f != 0 {
				t.Errorf("%s: type and code %v: Stats.Forged is %d, want 0", name, kind, f)
			}
		}
	}
}

// TestErrorsAboutHandshakes checks that an error ends a dial only if it quotes the sequence number of the SYN.
func TestErrorsAboutHandshakes(t *testing.T) {
	for name, flow := range talkFlows {
		n, h := byHand(t)
		dialed := make(chan error, 1)
		go func() {
			_, err := n.DialTCP(t.Context(), netip.AddrPort{}, flow[0])
			dialed <- err
		}()
		syn := h.want(t, "a SYN", func(s segment) bool { return s.to == flow[0] && s.flags == flagSYN })
		kind := map[bool][2]byte{true: {3, 3}, false: {1, 4}}[flow[0].Addr().Is4()]
		for _, seq := range []uint32{syn.seq - 1, syn.seq + 1, 0} {
			wrong := syn
			wrong.seq = seq
			h.write(t, icmpAbout(flow[0].Addr().Next(), kind, 0, wrong))
		}
		waitFor(t, func() bool { return n.Stats().Forged == 3 })
		select {
		case err := <-dialed:
			t.Fatalf("%s: a forged error ended the dial: %v", name, err)
		case <-time.After(50 * time.Millisecond):
		}
		h.write(t, icmpAbout(flow[0].Addr().Next(), kind, 0, syn))
		if err := <-dialed; !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: the dial ended with %v, want ECONNREFUSED", name, err)
		}
	}
}

// TestForgedErrorsHalfOpen checks that an error does not end a half-open connection if it quotes a sequence number other than that
// of the SYN-ACK.
func TestForgedErrorsHalfOpen(t *testing.T) {
	for name, flow := range talkFlows {
		n, h := byHand(t)
		l, err := n.ListenTCP(flow[1])
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		h.write(t, synFrom(flow[0], flow[1]))
		s := h.want(t, "a SYN-ACK", func(s segment) bool { return s.to == flow[0] && s.flags == flagSYN|flagACK })
		kind := map[bool][2]byte{true: {3, 3}, false: {1, 4}}[flow[0].Addr().Is4()]
		wrong := s
		wrong.seq++
		h.write(t, icmpAbout(flow[0].Addr().Next(), kind, 0, wrong))
		waitFor(t, func() bool { return n.Stats().Forged == 1 })
		h.write(t, segment{from: flow[0], to: flow[1], seq: 8, ack: s.seq + 1, flags: flagACK, window: 60000}.packet())
		_ = l.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := l.Accept(); err != nil {
			t.Errorf("%s: a forged error ended the handshake: %v", name, err)
		}
	}
}

// A routedPeer is a handPeer that takes the place of two peers. One peer has the hosts with even addresses, the other one has
// all other hosts.
type routedPeer struct{ *handPeer }

func (routedPeer) Route(a netip.Addr) (k wireguard.PublicKey, ok bool) {
	b := a.AsSlice()
	k[0] = 1 + b[len(b)-1]&1
	return k, true
}

// TestErrorsOfOtherPeers checks that the Net drops a peer's error about a packet to another peer, even if the error quotes that
// packet.
func TestErrorsOfOtherPeers(t *testing.T) {
	for name, flow := range talkFlows {
		n, h := byHand(t)
		n.link.attach(routedPeer{h})
		kind := map[bool][2]byte{true: {3, 3}, false: {1, 4}}[flow[0].Addr().Is4()]
		dialed := make(chan error, 1)
		go func() {
			_, err := n.DialTCP(t.Context(), netip.AddrPort{}, flow[0])
			dialed <- err
		}()
		syn := h.want(t, "a SYN", func(s segment) bool { return s.to == flow[0] && s.flags == flagSYN })
		u, err := n.DialUDP(netip.AddrPort{}, flow[0])
		if err != nil {
			t.Fatal(err)
		}
		h.forget()
		if _, err := u.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		var datagram []byte
		waitFor(t, func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			i := slices.IndexFunc(h.sent, func(p []byte) bool { return bytes.HasSuffix(p, []byte("x")) })
			if i >= 0 {
				datagram = h.sent[i]
			}
			return i >= 0
		})
		for _, from := range []netip.Addr{flow[0].Addr().Next(), flow[0].Addr().Next().Next()} { // the other peer, then this peer
			e := packet.PortUnreachable.About(datagram)
			if from.Is4() {
				copy(e[ip4Addresses:], from.AsSlice())
				e[10], e[11] = 0, 0
				binary.BigEndian.PutUint16(e[10:], checksum(e[:20]))
			} else {
				copy(e[ip6Addresses:], from.AsSlice())
				e[42], e[43] = 0, 0
				binary.BigEndian.PutUint16(e[42:], ^icmpSumOf(e, 40))
			}
			before := n.Stats().Forged
			h.write(t, e, icmpAbout(from, kind, 0, syn))
			if from == flow[0].Addr().Next() {
				waitFor(t, func() bool { return n.Stats().Forged == before+2 })
				_ = u.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				if _, err := u.Read(make([]byte, 1)); errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s: an error from another peer reached the socket", name)
				}
				select {
				case err := <-dialed:
					t.Fatalf("%s: an error from another peer ended the dial: %v", name, err)
				default:
				}
				continue
			}
			if err := <-dialed; !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: the dial ended with %v, want ECONNREFUSED", name, err)
			}
			_ = u.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := u.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: the read from the UDP socket ended with %v, want ECONNREFUSED", name, err)
			}
		}
	}
}
