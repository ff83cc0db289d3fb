package netstack

import (
	"encoding/binary"
	"errors"
	"math/rand"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// A gate is an outlet whose Send waits until the test sends to leave. It records the first two bytes of each packet's payload.
type gate struct {
	entered, leave chan struct{} // each Send sends one element to entered, and receives one from leave
	mu             sync.Mutex
	numbers        []int
	batches        []int
}

func newGate() *gate {
	return &gate{entered: make(chan struct{}, 100), leave: make(chan struct{}, 100)}
}

func (g *gate) NewBatch() *wireguard.Batch { return new(wireguard.Batch) }

func (g *gate) Send(b *wireguard.Batch) error {
	g.entered <- struct{}{}
	<-g.leave
	g.mu.Lock()
	defer g.mu.Unlock()
	g.batches = append(g.batches, b.Len())
	for i := range b.Len() {
		if p := b.Packet(i); len(p) > 42 {
			g.numbers = append(g.numbers, int(binary.BigEndian.Uint16(p[40:])))
		}
	}
	b.Reset()
	return nil
}

// numbered returns a TCP segment with n bytes of payload. The first two bytes contain number.
func numbered(number, n int) *stack.PacketBuffer {
	p, l3, l4 := tcpPacket(rand.New(rand.NewSource(1)), false, 0, n)
	if n >= 2 {
		binary.BigEndian.PutUint16(p[l4:], uint16(number))
	}
	return gsoPacket(p, l3, l4, 65000, 65000)
}

func (l *link) write(t testing.TB, p *stack.PacketBuffer) tcpip.Error {
	defer p.DecRef()
	return l.WritePacket(p)
}

// TestTurn checks that packets of other senders wait while one goroutine is in Send, and that the link then sends them in order
// and in one batch.
func TestTurn(t *testing.T) {
	g, l := newGate(), newLink(1420, nil)
	l.attach(g)
	var wg sync.WaitGroup
	wg.Go(func() { l.write(t, numbered(0, 1000)) })
	<-g.entered
	for i := range 100 {
		if err := l.write(t, numbered(1+i, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		g.leave <- struct{}{}
	}
	wg.Wait()
	l.running.Wait()
	want := make([]int, 101)
	for i := range want {
		want[i] = i
	}
	if !slices.Equal(g.numbers, want) {
		t.Errorf("the link sent the packets in the order %v, want 0 to 100", g.numbers)
	}
	if !slices.Equal(g.batches, []int{1, 100}) {
		t.Errorf("the link sent batches of %v packets, want a batch of 1 and then one of all 100 queued packets", g.batches)
	}
	if l.busy || l.queued != 0 {
		t.Errorf("at the end, a goroutine still has the turn: %v, and the link counts %d queued bytes; want false and 0", l.busy, l.queued)
	}
}

// TestRoom fills the queue. It checks that senders of data then wait. The link still queues packets whose sender must not wait, and
// drops them only when the queue reaches a higher limit.
func TestRoom(t *testing.T) {
	g, l := newGate(), newLink(1420, nil)
	l.attach(g)
	var wg sync.WaitGroup
	wg.Go(func() { l.write(t, numbered(0, 1000)) })
	<-g.entered
	sent := 1
	for l.queued < maxQueued {
		if err := l.write(t, numbered(sent, 60000)); err != nil {
			t.Fatal(err)
		}
		sent++
	}
	returned := make(chan int, 10)
	for i := range 3 {
		wg.Go(func() {
			l.write(t, numbered(sent+i, 1000))
			returned <- i
		})
	}
	wg.Go(func() {
		waitForRoom(l)
		returned <- 3
	})
	urgent := 0
	for l.write(t, numbered(0, 0)) == nil {
		urgent++
	}
	if bytes := urgent * (40 + queuedOverhead); bytes < 200<<10 || bytes > 400<<10 {
		t.Errorf("the full queue took %d more acknowledgements, want between 200 and 400 KiB of them", urgent)
	}
	if _, ok := l.write(t, numbered(0, 0)).(*tcpip.ErrNoBufferSpace); !ok || l.drops.full.Load() != 2 {
		t.Errorf("after an acknowledgement beyond the higher limit, %v packets are counted as dropped, want 2 and ErrNoBufferSpace", l.drops.full.Load())
	}
	if len(returned) != 0 {
		t.Error("a sender of data did not wait although the queue was full")
	}
	close(g.leave)
	wg.Wait()
	l.running.Wait()
	if len(returned) != 4 || len(g.numbers) != sent+3 || l.drops.full.Load() != 2 {
		t.Errorf("%d of 4 waiting senders returned, %d of %d data packets were sent, and %d packets were dropped, want 2", len(returned), len(g.numbers), sent+3, l.drops.full.Load())
	}
	if !slices.IsSorted(g.numbers[:sent]) {
		t.Errorf("the link sent the data packets in the order %v, want those that did not wait in ascending order", g.numbers)
	}
}

// TestRoomInOrder fills the queue and starts senders one after another, so that each of them waits. It checks that the link sends
// their data in the order in which they began to wait.
func TestRoomInOrder(t *testing.T) {
	if oneThread {
		t.Skip("in WebAssembly, WritePacket never waits for space in the queue")
	}
	const senders = 50 // fewer than the buffer of gate.entered holds
	g, l := newGate(), newLink(1420, nil)
	l.attach(g)
	var wg sync.WaitGroup
	wg.Go(func() { l.write(t, numbered(0, 1000)) })
	<-g.entered
	sent := 1
	for l.queued < maxQueued {
		l.write(t, numbered(sent, 60000))
		sent++
	}
	waiting := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.waiters) - l.waiter
	}
	for i := range senders {
		wg.Go(func() { l.write(t, numbered(sent+i, 60000)) })
		for waiting() <= i {
			time.Sleep(10 * time.Microsecond)
		}
	}
	close(g.leave)
	wg.Wait()
	l.running.Wait()
	if len(g.numbers) != sent+senders || !slices.IsSorted(g.numbers) {
		t.Errorf("the link sent %d of %d packets in the order %v, want all in ascending order", len(g.numbers), sent+senders, g.numbers)
	}
	if l.waits() || l.placing || l.busy {
		t.Errorf("at the end, %d senders wait, a woken sender has not run: %v, a goroutine has the turn: %v; want 0, false, false", len(l.waiters)-l.waiter, l.placing, l.busy)
	}
}

// TestRoomClosed closes the link while senders wait because the queue is full, and another goroutine is in Send. It checks that the
// senders return, and that the closed link takes no packets and sends none of the queued ones.
func TestRoomClosed(t *testing.T) {
	g, l := newGate(), newLink(1420, nil)
	l.attach(g)
	var first, waiting sync.WaitGroup
	first.Go(func() { l.write(t, numbered(0, 1000)) })
	<-g.entered
	for l.queued < maxQueued {
		l.write(t, numbered(0, 60000))
	}
	for range 3 {
		waiting.Go(func() { l.write(t, numbered(0, 1000)) })
		waiting.Go(func() { waitForRoom(l) })
	}
	l.refuseData()
	waiting.Wait()
	l.close()
	if _, ok := l.write(t, numbered(0, 1000)).(*tcpip.ErrClosedForSend); !ok {
		t.Error("WritePacket on a closed link did not return ErrClosedForSend")
	}
	g.leave <- struct{}{}
	first.Wait()
	l.running.Wait()
	if len(g.numbers) != 1 {
		t.Errorf("the link sent %d packets after it was closed, want 0", len(g.numbers)-1)
	}
}

// waitForRoom waits for space in the queue, like UDPConn.waitForRoom without a deadline.
func waitForRoom(l *link) {
	for full := l.full(); full != nil; full = l.full() {
		<-full
	}
}

// TestWriteWaits checks that UDPConn.Write waits while the queue is full, and that a deadline, UDPConn.Close and Net.Close end
// the wait.
func TestWriteWaits(t *testing.T) {
	n, err := New(Config{Addresses: []netip.Addr{a4}})
	if err != nil {
		t.Fatal(err)
	}
	g := newGate()
	n.link.attach(g)
	var all sync.WaitGroup
	all.Go(func() { n.link.write(t, numbered(0, 1000)) })
	<-g.entered
	for n.link.queued < maxQueued {
		n.link.write(t, numbered(0, 60000))
	}
	for _, tc := range []struct {
		name string
		end  func(c *UDPConn) // the test calls end before Write; it takes effect while Write waits
		want error
	}{
		{"deadline", func(c *UDPConn) { _ = c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)) }, os.ErrDeadlineExceeded},
		{"deadline, set later", func(c *UDPConn) {
			time.AfterFunc(20*time.Millisecond, func() { _ = c.SetWriteDeadline(time.Now()) })
		}, os.ErrDeadlineExceeded},
		{"closed", func(c *UDPConn) { time.AfterFunc(20*time.Millisecond, func() { _ = c.Close() }) }, net.ErrClosed},
		{"all closed", func(*UDPConn) { time.AfterFunc(20*time.Millisecond, func() { all.Go(func() { _ = n.Close() }) }) }, net.ErrClosed},
	} {
		c, err := n.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(b4, 1))
		if err != nil {
			t.Fatal(err)
		}
		written := make(chan error, 1)
		tc.end(c)
		go func() {
			_, err := c.Write([]byte("x"))
			written <- err
		}()
		var op *net.OpError
		if err := testkit.Next(t, written, tc.name+": Write ends"); !errors.Is(err, tc.want) || !errors.As(err, &op) || op.Op != "write" {
			t.Errorf("%s: Write returned %v, want an OpError of write that wraps %v", tc.name, err, tc.want)
		}
		_ = c.Close()
	}
	close(g.leave)
	all.Wait()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// TestReceiveDoesNotWait checks that WritePackets does not wait while another goroutine is in Send and the queue is full. Some
// of the received packets cause answers. The others are ICMP errors about a connection whose lock that goroutine holds.
func TestReceiveDoesNotWait(t *testing.T) {
	n, err := New(Config{Addresses: []netip.Addr{a4}})
	if err != nil {
		t.Fatal(err)
	}
	g := newGate()
	n.link.attach(g)
	dialed := make(chan error)
	go func() {
		_, err := n.DialTCP(t.Context(), netip.AddrPortFrom(a4, 4321), netip.AddrPortFrom(b4, 80))
		dialed <- err
	}()
	<-g.entered // the SYN is in Send, and its connection is locked
	for n.link.write(t, numbered(0, 0)) == nil {
	}
	syn, l3, _ := tcpPacket(rand.New(rand.NewSource(1)), false, 0, 0)
	copy(syn[12:], b4.AsSlice())
	copy(syn[16:], a4.AsSlice())
	syn[l3+13] = 2
	mendSums(syn, l3)
	for range 10 {
		_, _ = n.WritePackets([][]byte{syn}) // nothing listens on the port, so gVisor answers with a reset
	}
	if n.Stats().Full < 10 {
		t.Error("fewer than 10 packets were dropped, want one reset per SYN, because the queue is full")
	}
	ours, _, _ := tcpPacket(rand.New(rand.NewSource(1)), false, 0, 0)
	copy(ours[12:], a4.AsSlice())
	copy(ours[16:], b4.AsSlice())
	binary.BigEndian.PutUint16(ours[l3:], 4321)
	binary.BigEndian.PutUint16(ours[l3+2:], 80)
	for i := range n.link.windows.heard.syns { // believes accepts only an ICMP error that quotes the SYN's number
		if noted := n.link.windows.heard.syns[i].Load(); noted != 0 {
			binary.BigEndian.PutUint32(ours[l3+4:], uint32(noted))
		}
	}
	mendSums(ours, l3)
	_, _ = n.WritePackets(fragments(hostUnreachable(ours), 24))
	for range 2 * maxErrors {
		_, _ = n.WritePackets([][]byte{hostUnreachable(ours)})
	}
	if n.Stats().Errors == 0 {
		t.Error("no ICMP error was dropped, although the first one cannot be delivered while its connection is locked")
	}
	close(g.leave)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-dialed; err == nil {
		t.Error("the dial succeeded, although the peer never answered")
	}
}

// fragments returns the IPv4 packet p as two fragments. The first has n bytes of data.
func fragments(p []byte, n int) [][]byte {
	first, second := slices.Clone(p[:20+n]), append(slices.Clone(p[:20]), p[20+n:]...)
	first[6] |= 0x20 // more fragments follow
	binary.BigEndian.PutUint16(second[6:], uint16(n/8))
	for _, f := range [][]byte{first, second} {
		binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
		f[10], f[11] = 0, 0
		binary.BigEndian.PutUint16(f[10:], checksum(f[:20]))
	}
	return [][]byte{first, second}
}

// TestDetached checks what writes and dials return before a device is attached.
func TestDetached(t *testing.T) {
	n, err := New(Config{Addresses: []netip.Addr{a4}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	c, err := n.ListenUDP(netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(b4, 1)); err == nil {
		t.Error("WriteToUDPAddrPort succeeded without a device, want an error")
	}
	if d := n.Stats(); d.Detached != 1 {
		t.Errorf("Stats are %+v, want 1 packet in Detached", d)
	}
	if _, err := n.Dial("tcp", "10.9.9.9:80"); !errors.Is(err, syscall.ENETUNREACH) || !strings.Contains(err.Error(), "Config.Tunnel") {
		t.Errorf("dial without a device: %v, want ENETUNREACH and a text that mentions Config.Tunnel", err)
	}
	if _, err := n.DialTCP(t.Context(), netip.AddrPort{}, netip.AddrPortFrom(a4, 80)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial of the Net's own address without a device: %v, want %v", err, syscall.ECONNREFUSED)
	}
}

// TestManySenders lets several goroutines write at the same time. It checks that the packets of each goroutine stay in order and
// that none is lost.
func TestManySenders(t *testing.T) {
	const senders, packets = 8, 500
	g, l := newGate(), newLink(1420, nil)
	close(g.leave)
	go func() {
		for range g.entered {
		}
	}()
	l.attach(g)
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range packets {
				if err := l.write(t, numbered(s*packets+i, 500)); err != nil {
					t.Error(err)
				}
				if i%50 == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	wg.Wait()
	l.running.Wait()
	close(g.entered)
	last := make(map[int]int)
	for _, n := range g.numbers {
		if s := n / packets; last[s] != n%packets {
			t.Fatalf("sender %d: the link sent packet %d, want packet %d next", s, n%packets, last[s])
		}
		last[n/packets]++
	}
	if len(g.numbers) != senders*packets {
		t.Errorf("the link sent %d packets, want %d", len(g.numbers), senders*packets)
	}
}
