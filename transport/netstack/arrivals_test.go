package netstack

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// TestDatagramsBound floods sockets that nobody reads, with empty datagrams too. It checks that Stats say how many bytes wait, that
// the heap grows by no more than that, and that another socket still receives its datagrams.
func TestDatagramsBound(t *testing.T) {
	const memory, sockets, flood = 8 << 20, 40, 50_000
	for _, size := range []int{0, 1, 1300} {
		n, h := smallNet(t, memory)
		before := heapInUse()
		var unread []*UDPConn
		for i := range sockets {
			c, err := n.ListenUDP(netip.AddrPortFrom(a4, uint16(1000+i)))
			if err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadBuffer(64 << 20); err != nil {
				t.Fatal(err)
			}
			unread = append(unread, c)
			p := udpPacket(netip.AddrPortFrom(b4, 5), netip.AddrPortFrom(a4, uint16(1000+i)), strings.Repeat("x", size))
			for range flood / sockets {
				h.write(t, p)
			}
		}
		grown, s := heapInUse()-before, n.Stats()
		t.Logf("%d bytes each: Stats count %d KiB, the heap has %d KiB more", size, s.Memory>>10, grown>>10)
		if s.Memory < memory/4-memory/64 || s.Memory > memory/4+sockets*leastDatagrams {
			t.Errorf("%d bytes each: Stats say that %d bytes are held", size, s.Memory)
		}
		if grown > int64(s.Memory)+1<<20 && !testkit.Race {
			t.Errorf("%d bytes each: the heap grew by %d bytes, and Stats say %d", size, grown, s.Memory)
		}
		if s.DatagramsDropped == 0 {
			t.Error("no drop was counted")
		}
		other, err := n.ListenUDP(netip.AddrPortFrom(a4, 9))
		if err != nil {
			t.Fatal(err)
		}
		for range 8 {
			h.write(t, udpPacket(netip.AddrPortFrom(b4, 5), netip.AddrPortFrom(a4, 9), strings.Repeat("y", 1300)))
		}
		_ = other.SetReadDeadline(time.Now().Add(10 * time.Second))
		for i := range 8 {
			if _, _, err := other.ReadFrom(make([]byte, 2000)); err != nil {
				t.Fatalf("%d bytes each: datagram %d to another socket: %v", size, i, err)
			}
		}
		for _, c := range append(unread, other) {
			_ = c.Close()
		}
		if m := n.Stats().Memory; m != 0 {
			t.Errorf("%d bytes are counted after all sockets were closed", m)
		}
	}
}

// TestReadBufferCountsOverhead checks that the read buffer bounds the memory of empty datagrams, and that the datagrams that fit
// are read in order.
func TestReadBufferCountsOverhead(t *testing.T) {
	n, h := smallNet(t, 0)
	c, err := n.ListenUDP(netip.AddrPortFrom(a4, 9))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		h.write(t, udpPacket(netip.AddrPortFrom(b4, uint16(i+1)), netip.AddrPortFrom(a4, 9), ""))
	}
	got := 0
	for _ = c.SetReadDeadline(time.Now().Add(10 * time.Second)); c.arrivals.isReadable(); got++ {
		if _, from, err := c.ReadFromUDPAddrPort(nil); err != nil || from.Port() != uint16(got+1) {
			t.Fatalf("datagram %d came from %v, %v", got, from, err)
		}
	}
	if most := stack.DefaultBufferSize/datagramCost + 1; got < most/2 || got > most {
		t.Errorf("%d empty datagrams waited, want at most %d", got, most)
	}
	if s := n.Stats(); s.DatagramsDropped != uint64(5000-got) || s.Memory != 0 {
		t.Errorf("%d drops were counted of %d, and %d bytes", s.DatagramsDropped, 5000-got, s.Memory)
	}
}
