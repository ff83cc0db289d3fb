package wireguard

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"weak"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// atSink returns a device in the following state: a receiver of its first socket is inside WritePackets until leave is closed. A
// call of Configure has opened another socket, and waits for this receiver. After Configure has returned, configured is closed.
func atSink(t *testing.T) (e *end, leave, configured chan struct{}) {
	r := newRemote(1, testKey(1).Public())
	e = up(t, testKey(1), r.config())
	e.connect(t, r)
	there := make(chan struct{})
	leave, configured = make(chan struct{}), make(chan struct{})
	e.tunnel.write = func(pkts [][]byte) int {
		close(there)
		<-leave
		return len(pkts)
	}
	go e.line.receive(r.train(r.data(packet4(100, r.addr, here))))
	<-there
	go func() {
		defer close(configured)
		port := uint16(41000)
		e.Configure(Change{ListenPort: &port})
	}()
	eventually(t, "Configure opens the new socket", func() bool { return e.Status().ListenPort == 41000 })
	return e, leave, configured
}

// TestReceiversOfReplacedSocket checks that Down and Close also wait for the receivers of a replaced socket, even if a call of
// Configure is waiting for the same receivers. Close also waits for the receivers if a concurrent call of Down is waiting for
// them.
func TestReceiversOfReplacedSocket(t *testing.T) {
	for name, ending := range map[string]func(e *end){
		"Down":  func(e *end) { e.Down() },
		"Close": func(e *end) { e.Close() },
		"Close, Down too": func(e *end) {
			go e.Down()
			eventually(t, "the device goes down", func() bool { return !e.Status().Up })
			e.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			e, leave, configured := atSink(t)
			ended := make(chan struct{})
			go func() { ending(e); close(ended) }()
			eventually(t, "the device goes down", func() bool { return !e.Status().Up })
			select {
			case <-ended:
				t.Error("Down or Close returned while a receiver was inside WritePackets")
			case <-configured:
				t.Error("Configure returned while a receiver was inside WritePackets")
			case <-time.After(20 * time.Millisecond): // calls that do not wait would have returned by now
			}
			close(leave)
			<-ended
			<-configured
		})
	}
}

// If a receiver ends although the device has not closed its socket, the device publishes EventBindTrouble, and Wake opens a new
// socket. If the device itself has closed the socket, it does not publish this event.
func TestSocketClosedByItself(t *testing.T) {
	e := up(t, testKey(1))
	events := e.Subscribe()
	defer events.Close()
	e.Wake()
	e.Down()
	e.Up()
	if got := unreadEvents(t, events); len(got) != 0 {
		t.Fatalf("the device published the events %+v about sockets that it closed itself", got)
	}
	e.line.socket.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ev, err := events.Next(ctx)
	if err != nil {
		t.Fatal("the device published no event when its socket stopped receiving")
	}
	if ev.Kind != EventBindTrouble || !errors.Is(ev.Err, net.ErrClosed) {
		t.Fatalf("the event is %+v, want EventBindTrouble with net.ErrClosed", ev)
	}
	if err := e.Wake(); err != nil {
		t.Fatal(err)
	}
	r := newRemote(1, testKey(1).Public())
	if err := e.SetPeer(r.config()); err != nil {
		t.Fatal(err)
	}
	e.connect(t, r)
}

// TestWakeKeepsPort checks that Wake opens the new socket on the same port, even if the Port method of the old, closed socket
// returns 0.
func TestWakeKeepsPort(t *testing.T) {
	e := newEnd(t, testKey(1))
	port := uint16(41000)
	if err := errors.Join(e.Configure(Change{ListenPort: &port}), e.Up()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := e.Wake(); err != nil || e.Status().ListenPort != port {
			t.Fatalf("after Wake, the port is %d (error %v), want %d", e.Status().ListenPort, err, port)
		}
	}
}

// TestSinkReturnsAnyNumber checks that the device counts the packets that WritePackets did not accept, even if WritePackets
// returns a negative number or a number that is too large.
func TestSinkReturnsAnyNumber(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	e.connect(t, r)
	for n, want := range map[int]uint64{-7: 3, -1: 3, 0: 3, 2: 1, 3: 0, 4: 0, 1 << 30: 0} {
		e.tunnel.write = func([][]byte) int { return n }
		before := e.drops.load()
		var ts []Train
		for range 3 {
			ts = append(ts, r.train(r.data(packet4(100, r.addr, here))))
		}
		e.line.receive(ts...)
		e.wantDrops(t, before, DropSinkFull, want, "WritePackets returned an arbitrary number")
	}
}

// TestIdleDeviceKeepsNoOldTable checks that a receiver that waits for messages does not keep an old table of allowed IPs in
// memory. A Batch that the program uses again must not keep a removed peer in memory.
func TestIdleDeviceKeepsNoOldTable(t *testing.T) {
	r, other := newRemote(1, testKey(1).Public()), newRemote(2, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	e.connect(t, r)
	old := weak.Make(e.allowed.table.Load())
	if err := e.SetPeer(other.config()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old table of allowed IPs is freed", func() bool { runtime.GC(); return old.Value() == nil })

	b, nested := e.NewBatch(), false
	e.line.send = func([]Train) {
		if !nested { // the outer Send leads the peer, so the inner Send queues the packet of b and returns
			nested = true
			b.Append(packet4(100, here, r.addr))
			e.Device.Send(b)
		}
	}
	e.send(t, packet4(100, here, r.addr))
	gone := weak.Make(e.peer(r))
	if err := e.RemovePeer(r.id.public); err != nil {
		t.Fatal(err)
	}
	b.Append(packet4(100, here, here)) // no peer has this address
	e.Device.Send(b)
	eventually(t, "the removed peer is freed", func() bool { runtime.GC(); return gone.Value() == nil })
	runtime.KeepAlive(b)
}

// TestStatusFromInsideSink checks that WritePackets may read the device's status, even while the device is being closed.
func TestStatusFromInsideSink(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	e.connect(t, r)
	there := make(chan struct{})
	e.tunnel.write = func(pkts [][]byte) int {
		close(there)
		eventually(t, "the device goes down", func() bool { return !e.Status().Up })
		if _, ok := e.Peer(r.id.public); !ok {
			t.Error("the status does not have the peer while the device is being closed")
		}
		return len(pkts)
	}
	go e.line.receive(r.train(r.data(packet4(100, r.addr, here))))
	<-there
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestReceiveAlternatingPeers receives messages of two peers that alternate, within a train and between the trains of one call of
// Receive. The device must deliver all packets in one call of WritePackets, in order for each peer, and update each peer's state
// once. A peer's endpoint must become the source of the peer's last authentic message.
func TestReceiveAlternatingPeers(t *testing.T) {
	a, b := newRemote(1, testKey(1).Public()), newRemote(2, testKey(1).Public())
	e := up(t, testKey(1), a.config(), b.config())
	e.connect(t, a)
	e.connect(t, b)
	var calls, got = 0, map[netip.Addr][]uint32{}
	e.tunnel.write = func(pkts [][]byte) int {
		calls++
		for _, p := range pkts {
			src := netip.AddrFrom4([4]byte(p[12:]))
			got[src] = append(got[src], binary.BigEndian.Uint32(p[packet.IP4Header:]))
		}
		return len(pkts)
	}
	from := func(r *remote, n int) []byte {
		p := packet4(100, r.addr, here)
		binary.BigEndian.PutUint32(p[packet.IP4Header:], uint32(n))
		return r.data(p)
	}
	heard := func(r *remote) uint32 { p := e.peer(r); p.mu.Lock(); defer p.mu.Unlock(); return p.heard }
	heardA, heardB := heard(a), heard(b)

	relayed := a.train(slices.Concat(from(a, 0), from(b, 0), from(a, 1), from(b, 1))) // as a relay sends the messages of two peers
	relayed.Size = len(relayed.Data) / 4
	moved := a.train(from(a, 2))
	moved.Endpoint.Addr = netip.MustParseAddrPort("192.0.2.77:7")
	forged := b.train(from(b, 2))
	forged.Endpoint.Addr = netip.MustParseAddrPort("192.0.2.78:8")
	forged.Data[20] ^= 1
	before := e.drops.load()
	e.line.receive(relayed, moved, forged)

	for _, r := range []*remote{a, b} {
		want := []uint32{0, 1, 2}
		if r == b {
			want = want[:2]
		}
		if !slices.Equal(got[r.addr], want) {
			t.Errorf("packets %v of %v arrived, want %v", got[r.addr], r.addr, want)
		}
	}
	if calls != 1 {
		t.Errorf("WritePackets was called %d times, want 1", calls)
	}
	if heard(a) != heardA+1 || heard(b) != heardB+1 {
		t.Errorf("the states of the peers were updated %d and %d times, want once each", heard(a)-heardA, heard(b)-heardB)
	}
	e.wantDrops(t, before, DropForged, 1, "one message is not authentic")
	if !e.peer(a).endpoint.SamePlace(moved.Endpoint) || !e.peer(b).endpoint.SamePlace(relayed.Endpoint) {
		t.Errorf("the endpoints are %v and %v, want the sources of the last authentic messages", e.peer(a).endpoint, e.peer(b).endpoint)
	}
}

// TestReceiveManySessions checks that the device handles all messages if one call of Receive returns more messages, with more
// session indices, than the device opens at a time. Most of the indices are unknown.
func TestReceiveManySessions(t *testing.T) {
	a := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), a.config())
	e.connect(t, a)
	n := 0
	e.tunnel.write = func(pkts [][]byte) int { n += len(pkts); return len(pkts) }
	var ts []Train
	var unknown uint64
	for i := range 3 * inboundMessages {
		m := a.data(packet4(100, a.addr, here))
		if i%3 != 0 {
			binary.LittleEndian.PutUint32(m[4:], uint32(i)*inboundPlaces) // so that all indices share one slot of the hash table
			unknown++
		}
		ts = append(ts, a.train(m))
	}
	before := e.drops.load()
	e.line.receive(ts...)
	if n != len(ts)-int(unknown) {
		t.Errorf("%d packets of %d arrived", n, len(ts)-int(unknown))
	}
	e.wantDrops(t, before, DropUnknownIndex, unknown, "the other messages have the index of no session")
}

// TestHandshakesDoNotWaitForTheSink checks that the device answers an initiation while its receiver waits in the sink. One call of
// Receive returned that initiation, and after it more data messages than the device opens at a time.
func TestHandshakesDoNotWaitForTheSink(t *testing.T) {
	a, b := newRemote(1, testKey(1).Public()), newRemote(2, testKey(1).Public())
	e := up(t, testKey(1), a.config(), b.config())
	e.connect(t, a)
	there, leave := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(leave) })
	defer goOn() // Close waits for the receiver
	var once sync.Once
	e.tunnel.write = func(pkts [][]byte) int {
		once.Do(func() { close(there); <-leave })
		return len(pkts)
	}
	ts := []Train{b.train(b.initiation())}
	for range enoughMessages + 1 {
		ts = append(ts, a.train(a.data(packet4(100, a.addr, here))))
	}
	received := make(chan struct{})
	go func() { defer close(received); e.line.receive(ts...) }()
	<-there
	b.takeResponse(t, e.line.next(t, "the response is sent while WritePackets blocks").b)
	goOn()
	<-received
}
