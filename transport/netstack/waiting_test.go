package netstack

import (
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// synFrom returns a SYN that begins a connection from own to the listener at to.
func synFrom(own, to netip.AddrPort) []byte {
	return segment{from: own, to: to, seq: 7, flags: flagSYN, window: 60000, options: []byte{2, 4, 1000 >> 8, 1000 & 255, 1, 3, 3, 0, 1, 1, 4, 2}}.packet()
}

// TestAcceptQueueBound lets one party open connections that the program does not accept, and fill their buffers with segments of
// one byte. It checks that the memory of these connections is bounded and counted, and that another party can still connect.
// After the program has accepted the connections, the first party can connect again.
func TestAcceptQueueBound(t *testing.T) {
	const memory = 16 << 20
	n, h := smallNet(t, memory)
	to := netip.AddrPortFrom(a4, 80)
	before := heapInUse()
	l, err := n.ListenTCP(to)
	if err != nil {
		t.Fatal(err)
	}
	reserved := n.Stats().Memory
	var conns []*handConn
	for i := range 1000 {
		c, ok := h.tryConnect(t, netip.AddrPortFrom(b4, uint16(1000+i)), to, 50*time.Millisecond)
		if !ok {
			break
		}
		conns = append(conns, c)
		for range 200 {
			h.write(t, c.segment(flagACK, []byte("x")).packet())
			c.next++
		}
		h.mu.Lock()
		h.sent = nil
		h.mu.Unlock()
	}
	half := memory / 4 / 2 / waitingCost
	if len(conns) < half || len(conns) > half+2 {
		t.Errorf("one party opened %d connections, want about %d", len(conns), half)
	}
	waitFor(t, func() bool { return n.Stats().Memory == reserved+uint64(len(conns)*waitingCost) })
	s, grown := n.Stats(), heapInUse()-before
	t.Logf("%d connections wait: Stats count %d KiB, the heap has %d KiB more", len(conns), s.Memory>>10, grown>>10)
	if grown > int64(s.Memory)+1<<20 && !testkit.Race {
		t.Errorf("the heap grew by %d bytes, want at most 1 MiB more than Stats.Memory, which is %d", grown, s.Memory)
	}
	if s.ConnectionsDropped == 0 {
		t.Error("Stats count no dropped connections")
	}
	other, ok := h.tryConnect(t, netip.AddrPortFrom(b4.Next(), 1000), to, 10*time.Second)
	if !ok {
		t.Fatal("a client with another address could not connect")
	}
	waiting := map[string]bool{other.own.String(): true} // gVisor may complete two handshakes in either order
	for _, c := range conns {
		waiting[c.own.String()] = true
	}
	for len(waiting) > 0 {
		c, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		from := c.RemoteAddr().String()
		if !waiting[from] {
			t.Fatalf("Accept returned a connection from %s, which was refused or has already been accepted", from)
		}
		delete(waiting, from)
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	h.connect(t, netip.AddrPortFrom(b4, 999), to)
	_ = l.Close()
	waitFor(t, func() bool { return n.Stats().Memory == 0 })
}

// TestAcceptQueueReset checks that half-open connections may still complete their handshakes after their party has reached its
// limit. Once the waiting connections exceed their common limit by an eighth of the budget, the listener must reset further
// connections.
func TestAcceptQueueReset(t *testing.T) {
	const memory = 4 << 20
	n, h := smallNet(t, memory)
	to := netip.AddrPortFrom(a4, 80)
	if _, err := n.ListenTCP(to); err != nil {
		t.Fatal(err)
	}
	const most = (memory/4+memory/8)/waitingCost + 1
	var half []segment
	for i := range most + 20 {
		own := netip.AddrPortFrom(b4, uint16(1000+i))
		h.write(t, synFrom(own, to))
		s := h.want(t, "a SYN-ACK", func(s segment) bool { return s.to == own && s.flags == flagSYN|flagACK })
		half = append(half, segment{from: own, to: to, seq: 8, ack: s.seq + 1, flags: flagACK, window: 60000})
	}
	for _, s := range half { // complete one handshake after another, so that gVisor's own queue does not overflow
		before := n.Stats()
		h.write(t, s.packet())
		waitFor(t, func() bool {
			now := n.Stats()
			return now.Memory > before.Memory || now.ConnectionsDropped > before.ConnectionsDropped
		})
	}
	resets := 0
	for _, ok := h.next(func(s segment) bool { return s.flags&flagRST != 0 }, 10*time.Second); ok; resets++ {
		_, ok = h.next(func(s segment) bool { return s.flags&flagRST != 0 }, time.Second)
	}
	if want := len(half) - most; resets < want || resets > want+2 || n.Stats().ConnectionsDropped != uint64(resets) {
		t.Errorf("the listener reset %d of %d connections, and Stats count %d drops, want about %d of both", resets, len(half), n.Stats().ConnectionsDropped, want)
	}
}

// TestHalfOpenBound lets one party send a flood of SYNs. It checks that the memory of half-open connections is bounded and
// counted, and that another party can still connect.
func TestHalfOpenBound(t *testing.T) {
	const memory, listeners = 16 << 20, 20
	n, h := smallNet(t, memory)
	before := heapInUse()
	for i := range listeners {
		l, err := n.ListenTCP(netip.AddrPortFrom(a4, uint16(80+i)))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	counted := n.Stats().Memory
	if most := uint64(memory/8 + listeners*leastHalfOpen*halfOpenCost); counted < memory/16 || counted > most {
		t.Errorf("the listeners reserved %d bytes, want %d to %d", counted, memory/16, most)
	}
	for i := range 2000 {
		for k := range listeners {
			h.write(t, synFrom(netip.AddrPortFrom(b4, uint16(1000+i)), netip.AddrPortFrom(a4, uint16(80+k))))
		}
		h.mu.Lock()
		h.sent = nil
		h.mu.Unlock()
	}
	// SYNs that gVisor has not handled yet also take memory, so the test waits until gVisor has handled all of them.
	waitFor(t, func() bool {
		sent := n.stack.Stats().TCP.ListenOverflowSynCookieSent
		before := sent.Value()
		time.Sleep(50 * time.Millisecond)
		return before > 30_000 && sent.Value() == before
	})
	h.mu.Lock()
	h.sent = nil
	h.mu.Unlock()
	grown := heapInUse() - before
	t.Logf("Stats count %d KiB, the heap has %d KiB more", counted>>10, grown>>10)
	if grown > int64(counted)+1<<20 && !testkit.Race {
		t.Errorf("the heap grew by %d bytes, want at most 1 MiB more than Stats.Memory, which is %d", grown, counted)
	}
	h.connect(t, netip.AddrPortFrom(b4.Next(), 1000), netip.AddrPortFrom(a4, 80))
}
