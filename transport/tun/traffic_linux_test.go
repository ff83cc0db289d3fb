//go:build linux && !android

package tun

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"golang.org/x/sys/unix"
)

// transfer sends n bytes over a TCP connection from x to y, and checks that the same bytes arrive.
func (l link) transfer(t testing.TB, v6 bool, n int) {
	t.Helper()
	var listener net.Listener
	l.y.do(t, func() {
		var err error
		if listener, err = net.Listen("tcp", net.JoinHostPort(l.address(v6), "0")); err != nil {
			t.Fatal(err)
		}
	})
	defer listener.Close()
	want := make(chan [32]byte, 1)
	go func() {
		defer close(want)
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		h := sha256.New()
		_, _ = io.Copy(h, c)
		want <- [32]byte(h.Sum(nil))
	}()
	var conn net.Conn
	l.x.do(t, func() {
		var err error
		if conn, err = net.DialTimeout("tcp", listener.Addr().String(), 10*time.Second); err != nil {
			t.Fatal(err)
		}
	})
	defer conn.Close()
	data := make([]byte, n)
	rand.New(rand.NewSource(1)).Read(data)
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := <-want; got != sha256.Sum256(data) {
		t.Fatal("the data that arrived differs from the data that was sent")
	}
}

// TestTCP checks that TCP connections of the kernel work over two interfaces between which this process forwards packets. It
// also checks that large packets from one interface are divided into segments, and that the segments are merged for the other
// interface.
func TestTCP(t *testing.T) {
	l := newLink(t, Config{})
	join(t, l.a, l.b, nil)
	for _, v6 := range []bool{false, true} {
		l.transfer(t, v6, 8<<20)
	}
	a, b := l.a.Stats(), l.b.Stats()
	if a.ReadCalls*4 > a.ReadPackets {
		t.Errorf("%d packets were read in %d calls, want at least 4 packets per call", a.ReadPackets, a.ReadCalls)
	}
	if b.Merged*2 < b.WrittenPackets {
		t.Errorf("of %d written packets, %d were merged, want at least half", b.WrittenPackets, b.Merged)
	}
	for _, s := range []Stats{a, b} {
		if s.Malformed+s.Full+s.Down+s.Invalid+s.Refused > 0 {
			t.Errorf("packets were dropped or refused: %+v", s)
		}
	}
}

// TestDevices checks that a TCP connection works through two devices of this library.
//
//	x: wg0 ══ device ── 127.0.0.1 ── device ══ wg0 :y
func TestDevices(t *testing.T) {
	l := newLink(t, Config{})
	l.devices(t)
	for _, v6 := range []bool{false, true} {
		l.transfer(t, v6, 16<<20)
	}
	if s := l.b.Stats(); s.Merged*2 < s.WrittenPackets {
		t.Errorf("of %d written packets, %d were merged, want at least half", s.WrittenPackets, s.Merged)
	}
}

// TestUSO checks that a train of datagrams is read from the kernel as one large packet, and is merged into one large packet
// again for the other kernel.
func TestUSO(t *testing.T) {
	l := newLink(t, Config{})
	if l.a.merges[udp4].Load() == mergeRefused {
		t.Skip("this kernel does not support UDP segmentation offload for TUN; Linux 6.2 does")
	}
	join(t, l.a, l.b, nil)
	for _, v6 := range []bool{false, true} {
		from, to := l.datagrams(t, v6)
		raw, err := from.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000) })
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 30*1000+7)
		rand.New(rand.NewSource(1)).Read(data)
		before, after := l.a.Stats(), l.b.Stats()
		if _, err := from.Write(data); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 2000)
		to.SetReadDeadline(time.Now().Add(10 * time.Second))
		for rest := data; len(rest) > 0; {
			n, err := to.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			if want := rest[:min(1000, len(rest))]; !bytes.Equal(b[:n], want) {
				t.Fatalf("%d bytes before the end: the datagram that arrived differs from the one that was sent", len(rest))
			}
			rest = rest[n:]
		}
		if n := l.a.Stats().ReadCalls - before.ReadCalls; n != 1 {
			t.Errorf("the train was read from the kernel in %d calls, want 1", n)
		}
		// WritePackets counts the packets only after the kernel has received them.
		testkit.Eventually(t, "WritePackets has counted 31 merged packets", func() bool { return l.b.Stats().Merged-after.Merged == 31 })
	}
}

// datagrams returns a UDP socket in x (from) that is connected to a UDP socket in y (to).
func (l link) datagrams(t testing.TB, v6 bool) (from, to *net.UDPConn) {
	t.Helper()
	l.y.do(t, func() {
		c, err := net.ListenPacket("udp", net.JoinHostPort(l.address(v6), "0"))
		if err != nil {
			t.Fatal(err)
		}
		to = c.(*net.UDPConn)
	})
	l.x.do(t, func() {
		c, err := net.Dial("udp", to.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		from = c.(*net.UDPConn)
	})
	t.Cleanup(func() {
		from.Close()
		to.Close()
	})
	return from, to
}

// TestNoOffload checks that with NoOffload each system call reads or writes a single packet.
func TestNoOffload(t *testing.T) {
	l := newLink(t, Config{NoOffload: true})
	join(t, l.a, l.b, nil)
	for _, v6 := range []bool{false, true} {
		l.transfer(t, v6, 1<<20)
	}
	a, b := l.a.Stats(), l.b.Stats()
	if a.ReadCalls != a.ReadPackets || b.Merged != 0 || b.WriteCalls != b.WrittenPackets || a.Malformed+b.Invalid > 0 {
		t.Errorf("with NoOffload, want one packet per call, none merged and none malformed:\n%+v\n%+v", a, b)
	}
}

// TestCounters checks that the counters of Stats fit those of "ip -s link". The kernel counts a large packet as one packet, and
// counts the bytes of its headers once.
func TestCounters(t *testing.T) {
	for name, c := range map[string]Config{"offload": {}, "no offload": {NoOffload: true}} {
		t.Run(name, func(t *testing.T) {
			l := newLink(t, c)
			join(t, l.a, l.b, nil)
			l.transfer(t, false, 1<<20)
			type counters struct{ Packets, Bytes, Errors, Dropped uint64 }
			for _, x := range []struct {
				n *namespace
				d *Interface
			}{{l.x, l.a}, {l.y, l.b}} {
				kernel := func() (tx, rx counters) {
					var out []struct {
						Stats64 struct{ Tx, Rx counters }
					}
					if err := json.Unmarshal([]byte(x.n.ip(t, "-s -j link show wg0")), &out); err != nil || len(out) != 1 {
						t.Fatal(err)
					}
					return out[0].Stats64.Tx, out[0].Stats64.Rx
				}
				// The TCP connection may still send packets for its closing, and Stats counts a packet a little later than the
				// kernel does.
				var tx, rx counters
				var s Stats
				testkit.Eventually(t, "Stats and the kernel count the same number of packets", func() bool {
					tx, rx = kernel()
					s = x.d.Stats()
					return tx.Packets == s.ReadCalls && rx.Packets == s.WriteCalls && (!c.NoOffload || s.ReadBytes == tx.Bytes && s.WrittenBytes == rx.Bytes)
				})
				if tx.Bytes > s.ReadBytes || rx.Bytes > s.WrittenBytes || tx.Errors+rx.Errors+rx.Dropped > 0 {
					t.Errorf("the kernel counts %+v sent and %+v received; Stats counts %+v, want at least as many bytes and no errors", tx, rx, s)
				}
				// With offloads, the kernel counts the headers once per call. So the kernel's number of bytes is smaller than
				// that of Stats, by at least 40 for each packet of a call after the first.
				if saved := s.WrittenBytes - rx.Bytes; saved < 40*(s.WrittenPackets-s.WriteCalls) {
					t.Errorf("%d packets in %d calls: the kernel counts only %d bytes less than Stats", s.WrittenPackets, s.WriteCalls, saved)
				}
			}
		})
	}
}

// TestDown checks that packets are dropped and counted while the interface is down.
func TestDown(t *testing.T) {
	n := newNamespace(t)
	d := n.open(t, Config{Name: "wg0"})
	ps := append(train(false, false, 1, 10, 100), train(true, true, 1, 1, 100)...)
	if got, err := d.WritePackets(ps); got != 0 || err == nil {
		t.Errorf("while the interface is down, WritePackets wrote %d packets, error %v; want 0 and an error", got, err)
	}
	if s := d.Stats(); s.Down != 11 {
		t.Errorf("%+v, want 11 packets counted as Down", s)
	}
	n.up(t, d)
	if got, err := d.WritePackets(ps); got != 11 || err != nil {
		t.Errorf("after up, WritePackets wrote %d packets, error %v; want 11 and no error", got, err)
	}
}

// TestMovedTraffic checks that packets still pass after an interface has moved to another namespace while its reader
// waits.
func TestMovedTraffic(t *testing.T) {
	l := newLink(t, Config{})
	join(t, l.a, l.b, nil)
	l.transfer(t, false, 1<<20)
	there := newNamespace(t)
	l.x.ip(t, "link set wg0 netns /proc/self/fd/3", there)
	l.x = there
	there.up(t, l.a, "10.9.0.1/24")
	l.transfer(t, false, 1<<20)
}

// TestMTU checks that a change of the MTU of both interfaces changes the result of Interface.MTU and the size of the packets.
func TestMTU(t *testing.T) {
	l := newLink(t, Config{MTU: 1280})
	largest := make(chan int, 1)
	largest <- 0
	join(t, l.a, l.b, func(_ wireguard.PacketSource, b *wireguard.Batch) {
		n := <-largest
		for i := range b.Len() {
			n = max(n, len(b.Packet(i)))
		}
		largest <- n
	})
	for _, mtu := range []int{1280, 9000, 65535, 1420} {
		for _, n := range []*namespace{l.x, l.y} {
			n.ip(t, fmt.Sprintf("link set wg0 mtu %d", mtu))
		}
		testkit.Eventually(t, "both interfaces have the new MTU", func() bool { return l.a.MTU() == mtu && l.b.MTU() == mtu })
		<-largest
		largest <- 0
		l.transfer(t, false, 4<<20)
		if n := <-largest; n > mtu || n < mtu-40 && mtu < 10000 {
			t.Errorf("with an MTU of %d, the largest packet has %d bytes, want at most the MTU, and close to it", mtu, n)
			largest <- n
		} else {
			largest <- n
		}
	}
}

// TestQueues checks that packets of a flow stay in order on an interface with four queues. In each flow, one socket sends
// numbered datagrams, and the other socket sends them back. The datagrams must arrive in order at both sockets.
func TestQueues(t *testing.T) {
	l := newLink(t, Config{Queues: 4})
	if n := len(l.a.Queues()); n != 4 {
		t.Fatalf("the interface has %d queues, want 4", n)
	}
	join(t, l.a, l.b, nil)
	// Each flow has at most 64 datagrams under way. All 6 flows together have at most 384. The kernel stores 500 packets for each
	// queue of a TUN, so no packet is lost.
	const flows, packets, window = 6, 3000, 64
	done := make(chan error)
	for flow := range flows {
		from, to := l.datagrams(t, flow%2 == 1)
		client := from.LocalAddr().(*net.UDPAddr)
		room := make(chan struct{}, window)
		receive := func(c *net.UDPConn, each func(number []byte)) {
			b := make([]byte, 100)
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			for i := range packets {
				n, err := c.Read(b)
				if err == nil && (n != 4 || int(binary.BigEndian.Uint32(b)) != i) {
					err = fmt.Errorf("flow %d: %v received %x, want datagram %d", flow, c.LocalAddr(), b[:n], i)
				}
				if err != nil {
					done <- err
					return
				}
				each(b[:n])
			}
			done <- nil
		}
		go receive(to, func(number []byte) { _, _ = to.WriteTo(number, client) })
		go receive(from, func([]byte) { <-room })
		go func() {
			for i := range packets {
				select {
				case room <- struct{}{}:
				case <-t.Context().Done():
					return
				}
				if _, err := from.Write(binary.BigEndian.AppendUint32(nil, uint32(i))); err != nil {
					done <- err
					return
				}
			}
		}()
	}
	for range 2 * flows {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	used := 0
	for i := range l.a.flows.slots {
		if l.a.flows.slots[i].Load() != 0 {
			used++
		}
	}
	if used < flows/2 {
		t.Errorf("the interface knows %d flows, want at least half of them", used)
	}
}

// TestAllocates checks that reading packets from the kernel and writing them to the kernel allocates nothing.
func TestAllocates(t *testing.T) {
	if testkit.Race {
		t.Skip("under the race detector, sync.Pool drops objects at random")
	}
	l := newLink(t, Config{})
	from, to := l.datagrams(t, false)
	queue, b, data := l.a.Queues()[0], new(wireguard.Batch), make([]byte, 2000)
	if n := testing.AllocsPerRun(200, func() {
		if _, err := from.Write(data[:1200]); err != nil {
			t.Fatal(err)
		}
		if err := queue.ReadPackets(b); err != nil {
			t.Fatal(err)
		}
		var pkts [1][]byte
		pkts[0] = b.Packet(0)
		if n, err := l.b.WritePackets(pkts[:]); n != 1 {
			t.Fatal(err)
		}
		b.Reset()
		if n, err := to.Read(data); n != 1200 {
			t.Fatal(err)
		}
	}); n > 1 { // the array pkts is allocated
		t.Errorf("sending, reading and writing a packet takes %v allocations, want at most 1", n)
	}
}

// TestIdle checks that an idle interface holds no packet memory while a goroutine waits in ReadPackets.
func TestIdle(t *testing.T) {
	n := newNamespace(t)
	heap := func() uint64 {
		var m runtime.MemStats
		for range 2 { // a sync.Pool is only empty after the second collection
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const devices = 8
	before, goroutines := heap(), runtime.NumGoroutine()
	read := make(chan error)
	ds := make([]*Interface, devices)
	for i := range ds {
		ds[i] = n.open(t, Config{Name: fmt.Sprintf("wg%d", i)})
		n.up(t, ds[i], fmt.Sprintf("10.9.%d.1/24", i))
		ping(t, n, ds[i], fmt.Sprintf("10.9.%d.2", i))
		go func() {
			b := new(wireguard.Batch)
			for {
				if err := ds[i].Queues()[0].ReadPackets(b); err != nil {
					read <- err
					return
				}
				b.Reset()
			}
		}()
	}
	testkit.Eventually(t, "the heap grows by less than 16 KiB per idle interface", func() bool { return int64(heap()-before) < devices*16<<10 })
	if n := runtime.NumGoroutine() - goroutines; n > 2*devices { // each interface has a follower and a reader
		t.Errorf("%d goroutines run for %d interfaces, want at most 2 per interface", n, devices)
	}
	for _, d := range ds {
		d.Close()
		<-read
	}
}
