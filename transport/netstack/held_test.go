package netstack

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestHeldBesideTCP checks that sockets and listeners still work while one TCP connection has the whole budget. It also checks that
// the memory of all three together exceeds the budget by at most an eighth and the guaranteed minimums.
func TestHeldBesideTCP(t *testing.T) {
	const memory = 8 << 20
	n, h := smallNet(t, memory)
	to := netip.AddrPortFrom(a4, 80)
	l, err := n.ListenTCP(to)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h.connect(t, netip.AddrPortFrom(b4, 999), to)
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 100 {
		c.memory.growRecv(memory)
	}
	if m := n.Stats().Memory; m < memory-memory/64 || m > memory {
		t.Fatalf("Stats.Memory is %d bytes with one large connection, want nearly %d", m, memory)
	}
	var unread []*UDPConn
	for i := range 4 {
		at := netip.AddrPortFrom(a4, uint16(1000+i))
		u, err := n.ListenUDP(at)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		if err := u.SetReadBuffer(memory); err != nil {
			t.Fatal(err)
		}
		unread = append(unread, u)
		for range 4000 {
			h.write(t, udpPacket(netip.AddrPortFrom(b4, 5), at, strings.Repeat("x", 1000)))
		}
	}
	if held := unread[0].arrivals.held; held < memory/16 || held > memory/16+4096 {
		t.Errorf("the first socket holds %d bytes, want half of an eighth of %d", held, memory)
	}
	conns := 0
	for i := range 100 {
		if _, ok := h.tryConnect(t, netip.AddrPortFrom(b4, uint16(2000+i)), to, 100*time.Millisecond); !ok {
			break
		}
		conns++
	}
	if conns < leastConns/waitingCost {
		t.Errorf("%d connections wait for Accept, want at least %d", conns, leastConns/waitingCost)
	}
	if _, ok := h.tryConnect(t, netip.AddrPortFrom(b4.Next(), 2000), to, 10*time.Second); !ok {
		t.Error("a client with another address cannot connect")
	}
	if m := n.Stats().Memory; m > memory+memory/8+8*leastDatagrams+2*leastConns {
		t.Errorf("Stats.Memory is %d bytes, want at most nine eighths of %d and the guaranteed minimums", m, memory)
	}
}
