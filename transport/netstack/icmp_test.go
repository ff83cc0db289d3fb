package netstack

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// datagramTo returns an empty UDP datagram as an IP packet.
func datagramTo(src, dst netip.Addr, port uint16) []byte {
	return pipe.UDPPacket(netip.AddrPortFrom(src, 1000), netip.AddrPortFrom(dst, port), nil)
}

// wantRefused checks that a datagram from n to a closed port causes an ICMP error.
func wantRefused(t *testing.T, n *Net, to netip.AddrPort, why string) {
	t.Helper()
	c, err := n.DialUDP(netip.AddrPort{}, to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after a datagram to %s: the error is %v, want ECONNREFUSED", why, err)
	}
}

// TestICMPErrorsPerPeer lets one peer flood closed ports of the Net, and ports of a host behind the Net whose flows the program
// refuses. It checks that the peer gets at most its limit of ICMP errors, and that another peer still gets ICMP errors.
func TestICMPErrorsPerPeer(t *testing.T) {
	g := newGateway(t, Config{Forward: func(f *Flow) { _ = f.Refuse(PortUnreachable) }})
	errorsTo := [2]int{}
	g.lose(func(p []byte) bool {
		_, dst := addressesOf(p)
		if i := g.routes[dst]; p[0]>>4 == 4 && p[ip4Protocol] == protoICMP4 || p[0]>>4 == 6 && p[ip6Next] == protoICMP6 {
			errorsTo[i]++
		}
		return false
	})
	begin := time.Now()
	const flood = 1000
	for port := range uint16(flood) {
		for i, src := range clientAddrs[0] {
			if _, err := g.WritePackets([][]byte{datagramTo(src, g.addrs[i], 1+port)}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := g.WritePackets([][]byte{datagramTo(clientAddrs[0][0], far4, 1+port)}); err != nil {
			t.Fatal(err)
		}
	}
	wantRefused(t, g.clients[1], netip.AddrPortFrom(a4, 9), "a port of the Net")
	wantRefused(t, g.clients[1], netip.AddrPortFrom(a6, 9), "a port of the Net, IPv6")
	wantRefused(t, g.clients[1], netip.AddrPortFrom(far4, 9), "a port of a host behind the Net")

	g.mu.Lock()
	n, took := errorsTo[0], time.Since(begin)
	g.mu.Unlock()
	if most := 20 + int(took/(10*time.Millisecond)) + 1; n < 20 || n > most {
		t.Errorf("%d of %d packets of the flooding peer caused ICMP errors in %v, want 20 to %d", n, 3*flood, took, most)
	}
	if g.Stats().Errors == 0 {
		t.Error("Stats.Errors is 0, want the number of ICMP errors that were not sent")
	}
}

// TestICMPErrorsWaitPerPeer sends ICMP errors of one peer faster than the Net delivers them. It checks that at most maxPeerErrors
// of them wait, and that an error of another peer can still wait.
func TestICMPErrorsWaitPerPeer(t *testing.T) {
	g := newGateway(t, Config{})
	q := &g.link.errors
	q.mu.Lock()
	q.running = true // as if a goroutine were delivering errors
	g.link.running.Add(1)
	q.mu.Unlock()
	errorFrom := func(i int, about uint16) []byte {
		p := datagramTo(g.addrs[0], clientAddrs[i][0], about)
		return packet.PortUnreachable.About(p)
	}
	for port := range uint16(10 * maxPeerErrors) {
		_, _ = g.WritePackets([][]byte{errorFrom(0, port)})
	}
	if n := len(q.packets); n != maxPeerErrors {
		t.Errorf("%d ICMP errors of one peer wait, want %d", n, maxPeerErrors)
	}
	c, err := g.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(clientAddrs[1][0], 9))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil { // the client, which has no such port, answers with an ICMP error at once
		t.Fatal(err)
	}
	if n := len(q.packets); n != maxPeerErrors+1 {
		t.Fatalf("%d ICMP errors wait, want one more for the other peer", n)
	}
	go g.link.deliverErrors()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the read at the Net ended with %v, want ECONNREFUSED", err)
	}
	g.link.running.Wait()
	if len(q.held) != 0 || q.packets != nil {
		t.Errorf("the queue still has %d parties and %d packets, want none", len(q.held), len(q.packets))
	}
	if got := g.Stats().Errors; got != 9*maxPeerErrors {
		t.Errorf("Stats.Errors is %d, want %d dropped errors", got, 9*maxPeerErrors)
	}
}

// TestICMPErrorsWaitBound checks that at most maxErrors ICMP errors of all senders together wait.
func TestICMPErrorsWaitBound(t *testing.T) {
	n := newNet(t, Config{Addresses: []netip.Addr{a4}})
	q := &n.link.errors
	q.running = true
	src := netip.MustParseAddr("10.9.0.0")
	for range 2 * maxErrors / maxPeerErrors {
		src = src.Next()
		for range maxPeerErrors {
			_, _ = n.WritePackets([][]byte{packet.PortUnreachable.About(datagramTo(a4, src, 9))})
		}
	}
	if len(q.packets) != maxErrors {
		t.Errorf("%d ICMP errors wait, want %d", len(q.packets), maxErrors)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if q.packets != nil || q.held != nil {
		t.Error("the Net still holds ICMP errors after Close")
	}
}
