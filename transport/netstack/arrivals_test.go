package netstack

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// TestDatagramsBound floods sockets that nobody reads with empty, small and large datagrams. It checks that Stats.Memory counts the
// datagrams that wait, that the heap hardly grows by more, and that another socket still receives its datagrams.
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
		t.Logf("datagrams of %d bytes: Stats.Memory is %d KiB, and the heap grew by %d KiB", size, s.Memory>>10, grown>>10)
		if s.Memory < memory/4-memory/64 || s.Memory > memory/4+sockets*leastDatagrams {
			t.Errorf("datagrams of %d bytes: Stats.Memory is %d bytes, want about a quarter of Config.Memory", size, s.Memory)
		}
		if grown > int64(s.Memory)+1<<20 && !testkit.Race {
			t.Errorf("datagrams of %d bytes: the heap grew by %d bytes, but Stats.Memory is only %d", size, grown, s.Memory)
		}
		if s.DatagramsDropped == 0 {
			t.Error("Stats.DatagramsDropped is 0, want more")
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
				t.Fatalf("datagrams of %d bytes: another socket did not receive datagram %d: %v", size, i, err)
			}
		}
		for _, c := range append(unread, other) {
			_ = c.Close()
		}
		if m := n.Stats().Memory; m != 0 {
			t.Errorf("Stats.Memory is %d bytes after all sockets were closed, want 0", m)
		}
	}
}

// TestReadBufferCountsOverhead checks that the read buffer bounds the memory of empty datagrams, and that the program reads
// the datagrams that fit in order.
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
			t.Fatalf("reading datagram %d returned the source %v and the error %v", got, from, err)
		}
	}
	if most := stack.DefaultBufferSize/datagramCost + 1; got < most/2 || got > most {
		t.Errorf("%d empty datagrams waited, want at most %d and at least half of that", got, most)
	}
	if s := n.Stats(); s.DatagramsDropped != uint64(5000-got) || s.Memory != 0 {
		t.Errorf("Stats.DatagramsDropped is %d, want %d; Stats.Memory is %d, want 0", s.DatagramsDropped, 5000-got, s.Memory)
	}
}
