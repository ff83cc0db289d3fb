package wireguard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/layout"
	"github.com/seed-86b749af/wireguard/internal/packet"
	"github.com/seed-86b749af/wireguard/internal/staged"
)

// A run is the list of a batch's packets to one peer. If packets of other runs are between the packets of a run, seal still puts
// the sealed messages of the run back to back. A run to a peer without a keypair is not changed, because its packets wait for a
// session.
func TestSealedBackToBack(t *testing.T) {
	b, a, waits, c := &Batch{headroom: 8}, new(peer), new(peer), new(peer)
	for i, to := range []*peer{a, waits, c, a, c, a} {
		b.Append(packet4(65+i, here, here))
		b.load.Add(&b.load.runTo(to).Run, i)
	}
	defer b.Reset()
	k := newKeypair(new([32]byte), new([32]byte), 1, 2, true, 0)
	l := b.load
	l.runs[0].k, l.runs[2].k = k, k
	l.runs[2].counter, l.runs[2].endpoint = 100, coreEndpoint
	l.layOut()
	l.seal(0)
	for i, want := range []struct {
		sizes   []int
		counter uint64
	}{{[]int{65, 68, 70}, 0}, {}, {[]int{67, 69}, 100}} {
		if want.sizes == nil {
			continue
		}
		trains := l.runs[i].pack(nil)
		if l.runs[i].trains != len(trains) {
			t.Errorf("run %d counts %d trains, want %d", i, l.runs[i].trains, len(trains))
		}
		var n int
		for j := range trains {
			if train := &trains[j]; train.Endpoint != l.runs[i].endpoint || train.Headroom != 8 || train.Err != nil {
				t.Errorf("run %d, train %d is %+v, want the endpoint and headroom of the run, and no error", i, j, train)
			}
			for m := range trains[j].Datagrams() {
				pkt, ok := k.open(m)
				if got := binary.LittleEndian.Uint64(m[8:]); !ok || got != want.counter+uint64(n) || !bytes.Equal(pkt[:want.sizes[n]], packet4(want.sizes[n], here, here)) {
					t.Errorf("run %d, message %d is wrong: authentic %t, counter %d", i, n, ok, got)
				}
				n++
			}
		}
		if n != len(want.sizes) {
			t.Errorf("run %d has %d messages, want one for each packet", i, n)
		}
		if i == 0 && len(trains) != 1 {
			t.Errorf("three messages of one size are in %d trains, want 1", len(trains))
		}
	}
}

func TestTally(t *testing.T) {
	sticky := coreEndpoint
	sticky.Source = netip.MustParseAddr("192.0.2.99")
	got := run{endpoint: sticky, load: &load{Load: layout.Load{Headroom: 10}}}
	for _, train := range []Train{
		{Data: make([]byte, 3*106), Size: 106, Headroom: 10, Endpoint: sticky},
		// The Bind has cleared Source.
		{Data: make([]byte, 2*106-16), Size: 106, Headroom: 10, Endpoint: coreEndpoint, Err: net.ErrClosed},
		// This train is a keepalive. The Bind has changed Headroom.
		{Data: make([]byte, 42), Size: 42, Endpoint: sticky},
	} {
		got.tally(&train)
	}
	if want := (run{endpoint: sticky, load: got.load, packets: 3, bytes: 3*96 + 32, failed: 2, err: net.ErrClosed, sourceGone: true}); got != want {
		t.Errorf("the run is %+v, want %+v", got, want)
	}
}

// numbered returns a packet to r that has the number n in its payload.
func (r *remote) numbered(n int) []byte {
	p := packet4(100, here, r.addr)
	binary.BigEndian.PutUint32(p[packet.IP4Header:], uint32(n))
	return p
}

// TestStageBounds checks that a device stages at most 128 packets per peer and drops the oldest ones, and that the staged packets
// of all peers occupy a limited number of bytes.
func TestStageBounds(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	before := e.drops.load()
	for i := range 130 {
		e.send(t, r.numbered(i))
	}
	e.wantDrops(t, before, DropStagedOverflow, 2, "the two oldest packets are dropped")
	if s, _ := e.Peer(r.id.public); s.Staged != 128 || s.Drops[DropStagedOverflow] != 2 || e.pool.Bytes() != 128*(staged.Small+staged.Overhead) {
		t.Errorf("%d packets that use %d bytes are staged, want 128 packets", s.Staged, e.pool.Bytes())
	}
	e.line.receive(r.train(r.response(t, e.line.next(t, "an initiation").b)))
	for i := 2; i < 130; i++ {
		p, _, ok := packet.Unpad(r.open(t, e.line.next(t, "a staged packet").b))
		if !ok || !bytes.Equal(p, r.numbered(i)) {
			t.Fatalf("the device did not send packet %d, but another one", i)
		}
	}
	e.settle(t)
	e.line.nothing(t, "the staged packets were sent, and confirm the session")
	if n := e.pool.Bytes(); n != 0 {
		t.Errorf("%d bytes count as staged, want 0", n)
	}
}

func TestStagedBytesBound(t *testing.T) {
	a, b := newRemote(1, testKey(1).Public()), newRemote(2, testKey(1).Public())
	e := up(t, testKey(1), a.config(), b.config())
	e.maxStagedBytes = 2*(staged.Small+staged.Overhead) + 50
	before := e.drops.load()
	e.send(t, a.numbered(0))
	e.send(t, b.numbered(0), a.numbered(1), b.numbered(1))
	e.wantDrops(t, before, DropStagedBytes, 2, "the device's memory for staged packets is used up")
	before = e.drops.load()
	if err := e.RemovePeer(a.id.public); err != nil {
		t.Fatal(err)
	}
	e.wantDrops(t, before, DropNoSession, 1, "the staged packet of the removed peer is dropped")
	before = e.drops.load()
	e.send(t, b.numbered(2))
	e.wantDrops(t, before, 0, 0, "the memory of the removed peer is free again")
	if n := e.pool.Bytes(); n != 2*(staged.Small+staged.Overhead) {
		t.Errorf("%d bytes count as staged, want those of two packets", n)
	}
}

// TestStagedPerPeer checks that if a peer's staged packets exceed the limit per peer (Config.StagedPerPeer), the device drops the
// oldest packets of this peer. A packet that is larger than the limit is staged alone.
func TestStagedPerPeer(t *testing.T) {
	a, b := newRemote(1, testKey(1).Public()), newRemote(2, testKey(1).Public())
	e := newEndOf(t, Config{PrivateKey: testKey(1), Peers: []PeerConfig{a.config(), b.config()}, StagedPerPeer: 3*(staged.Small+staged.Overhead) + 50})
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	before := e.drops.load()
	for i := range 5 {
		e.send(t, a.numbered(i), b.numbered(i))
	}
	e.wantDrops(t, before, DropStagedOverflow, 4, "the two oldest packets of each peer are dropped")
	e.send(t, packet4(9000, here, a.addr))
	e.wantDrops(t, before, DropStagedOverflow, 7, "the three packets that were staged before the large one are dropped")
	for _, c := range []struct {
		r     *remote
		n     int32
		bytes int32
	}{{a, 1, 9000 + 32}, {b, 3, 3 * (staged.Small + staged.Overhead)}} {
		if s := &e.peer(c.r).staged; s.N != c.n || s.Bytes != c.bytes {
			t.Errorf("%d packets with %d bytes are staged, want %d packets with %d bytes", s.N, s.Bytes, c.n, c.bytes)
		}
	}
	e.line.receive(b.train(b.response(t, e.initiationTo(t, b))))
	e.settle(t)
	if s := &e.peer(b).staged; s.N != 0 || s.Bytes != 0 {
		t.Errorf("%d packets with %d bytes are staged, want none: all were sent", s.N, s.Bytes)
	}
}

// initiationTo returns the next initiation that the device sends to r.
func (e *end) initiationTo(t *testing.T, r *remote) []byte {
	t.Helper()
	for {
		if d := e.line.next(t, "an initiation"); d.to.SamePlace(r.from) {
			return d.b
		}
	}
}

// TestSendReasons checks that the device drops a packet that it cannot send, and counts the drop with the correct reason.
func TestSendReasons(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	config := r.config()
	config.Endpoint = Endpoint{}
	e := up(t, testKey(1), config)
	for _, c := range []struct {
		name   string
		packet []byte
		reason DropReason
	}{
		{"no IP", []byte{0x50, 1, 2, 3}, DropMalformed},
		{"half an IPv4 header", packet4(20, here, r.addr)[:19], DropMalformed},
		{"half an IPv6 header", packet6(40, here6, here6)[:39], DropMalformed},
		{"the address of no peer", packet4(100, here, netip.MustParseAddr("172.16.0.1")), DropNoRoute},
		{"the IPv6 address of no peer", packet6(100, here6, netip.MustParseAddr("fd00::99")), DropNoRoute},
		{"peer without endpoint", packet4(100, here, r.addr), DropNoEndpoint},
	} {
		before := e.drops.load()
		e.send(t, c.packet)
		e.wantDrops(t, before, c.reason, 1, c.name)
	}
	for range 3 {
		if reply := e.tunnel.next(t, "an ICMP error to the inner sender"); !bytes.Contains(reply, here.AsSlice()) && !bytes.Contains(reply, here6.AsSlice()) {
			t.Errorf("the ICMP error %x is not addressed to the sender", reply)
		}
	}
	e.settle(t)
	e.line.nothing(t, "a peer without an endpoint gets no initiation")
}

// TestSendTwoPeersInTurn checks that if a batch has packets to two peers in alternation, the device sends one train per peer,
// with the packets in order.
func TestSendTwoPeersInTurn(t *testing.T) {
	a, b := newRemote(1, testKey(1).Public()), newRemote(2, testKey(1).Public())
	e := up(t, testKey(1), a.config(), b.config())
	e.connect(t, a)
	e.connect(t, b)
	sent, trains := e.line.sent, 0
	e.line.send = func(ts []Train) {
		trains += len(ts)
		for i := range ts {
			for m := range ts[i].Datagrams() {
				sent <- datagram{to: ts[i].Endpoint, b: bytes.Clone(m)}
			}
		}
	}
	e.send(t, a.numbered(0), b.numbered(0), a.numbered(1), a.numbered(2), b.numbered(1))
	if trains != 2 {
		t.Errorf("packets to two peers are sent in %d trains, want 2", trains)
	}
	next := map[*remote]int{}
	for range 5 {
		d := e.line.next(t, "all are sent")
		r := a
		if d.to == b.from {
			r = b
		}
		if p, _, ok := packet.Unpad(r.open(t, d.b)); !ok || !bytes.Equal(p, r.numbered(next[r])) {
			t.Errorf("the device did not send packet %d to %v, but another one", next[r], d.to)
		}
		next[r]++
	}
	if e.peer(a).queue.led || e.peer(b).queue.led {
		t.Error("a goroutine still leads a peer")
	}
}

// TestSendFailures checks that a train that the socket could not send is counted as a failed send, is not counted as sent, and
// starts no timer.
func TestSendFailures(t *testing.T) {
	a, b := newRemote(1, testKey(1).Public()), newRemote(2, testKey(1).Public())
	e := up(t, testKey(1), a.config(), b.config())
	e.connect(t, a)
	e.connect(t, b)
	gone := a.from
	gone.Source = netip.MustParseAddr("192.0.2.99")
	e.peer(a).endpoint = gone
	e.line.send = func(ts []Train) {
		for i := range ts {
			if ts[i].Endpoint.SamePlace(a.from) {
				ts[i].Err = errors.New("no buffer space")
				ts[i].Endpoint.Source = netip.Addr{}
			}
		}
	}
	sentA, sentB := e.peer(a).sent, e.peer(b).sent
	before := e.drops.load()
	e.send(t, a.numbered(0), b.numbered(0), b.numbered(1))
	e.wantDrops(t, before, DropSendFailed, 1, "one train of two failed")
	if p := e.peer(a); p.sent != sentA || p.drops[DropSendFailed] != 1 || p.timers.pending(timerUnanswered) {
		t.Errorf("the packet that failed counts as sent, does not count as failed, or starts a timer: %+v", p.sent)
	}
	if e.peer(a).endpoint != a.from {
		t.Error("the peer keeps the source address that the socket removed")
	}
	if p := e.peer(b); p.sent.Packets != sentB.Packets+2 || p.sent.Bytes != sentB.Bytes+2*(112+32) || !p.timers.pending(timerUnanswered) {
		t.Errorf("the packets that were sent are not counted, or start no timer: %+v", p.sent)
	}
}

// TestSendECN checks the TOS of outer packets. A data message has the ECN bits of its inner packet, except that CE is sent as
// ECT(0), and the DSCP 0. Handshake messages have the TOS 0x88.
func TestSendECN(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	e.line.receive(r.train(r.initiation()))
	d := e.line.next(t, "a response")
	if d.tos != 0x88 {
		t.Errorf("a response has TOS %#x, want 0x88", d.tos)
	}
	r.takeResponse(t, d.b)
	e.line.receive(r.train(r.data(nil)))
	var all [][]byte
	for tos := range 256 {
		p := r.numbered(tos)
		p[1] = byte(tos)
		if all = append(all, p); len(all) == 64 {
			e.send(t, all...)
			all = nil
		}
	}
	for tos := range 256 {
		want := byte(tos & 3)
		if want == 3 {
			want = 2
		}
		if d := e.line.next(t, "all are sent"); d.tos != want {
			t.Fatalf("a packet with TOS %#x is sent with the outer TOS %#x, want %#x", tos, d.tos, want)
		}
	}
}

// TestStagedKeepsECN checks that a packet that was staged is also sent with its own ECN bits in the outer header, and that the
// ECN bits of a keepalive are zero.
func TestStagedKeepsECN(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	p := r.numbered(0)
	p[1] = 1
	e.send(t, p)
	e.line.receive(r.train(r.response(t, e.line.next(t, "an initiation").b)))
	if d := e.line.next(t, "the staged packet"); d.tos != 1 {
		t.Errorf("a staged packet with ECT(1) is sent with the outer TOS %#x, want 0x1", d.tos)
	}
	e.advance(t, 11*time.Second)
	e.line.receive(r.train(r.data(packet4(100, r.addr, here))))
	e.tunnel.next(t, "data")
	e.advance(t, 10*time.Second)
	if d := e.line.next(t, "a keepalive"); d.tos != 0 || len(d.b) != messageOverhead {
		t.Errorf("a keepalive has %d bytes and TOS %#x, want an empty data message with TOS 0", len(d.b), d.tos)
	}
}

func TestSealClearsPadding(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	e.connect(t, r)
	for _, n := range []int{21, 36, 1415, 1420} {
		b := e.NewBatch()
		room := b.Next(maxPacket)
		for i := range room {
			room[i] = 0xee // as if the memory had been used before
		}
		b.Commit(copy(room, packet4(n, here, r.addr)))
		e.Send(b)
		p := r.open(t, e.line.next(t, "sent").b)
		if len(p) != layout.Pad(n, 1420) || !bytes.Equal(p[n:], make([]byte, len(p)-n)) {
			t.Errorf("a packet of %d bytes is padded with %x, want zeros up to the padded size", n, p[n:])
		}
	}
}

func TestTransmitAfterPortChange(t *testing.T) {
	e := up(t, testKey(1))
	r := e.running.Load()
	old, err := e.listen(new(running), 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	now := r.socket.Swap(old)
	calls := 0
	e.line.send = func(ts []Train) {
		if calls++; calls == 1 { // as if the port changed during the first call
			r.socket.Store(now)
			for i := range ts {
				ts[i].Err = fmt.Errorf("closed: %w", net.ErrClosed)
			}
		}
	}
	ts := []Train{{Data: []byte{1}, Size: 1}, {Data: []byte{2}, Size: 1}}
	e.transmit(r, ts)
	if calls != 2 || ts[0].Err != nil || ts[1].Err != nil {
		t.Errorf("Send was called %d times, with the errors %v and %v; want 2 calls, and that the new socket sends both trains", calls, ts[0].Err, ts[1].Err)
	}
	e.transmit(r, nil)
	if calls != 2 {
		t.Error("transmit called Send without trains")
	}

	// A Bind may have a socket for each family, and close them one after the other. So some trains may be sent, and others not.
	tooBig := errors.New("message too long")
	fails := []error{nil, net.ErrClosed, net.ErrClosed, nil, tooBig, net.ErrClosed}
	var again []byte
	calls = 0
	e.line.send = func(ts []Train) {
		if calls++; calls == 1 {
			r.socket.Store(now)
			for i := range ts {
				ts[i].Err = fails[i]
			}
			return
		}
		for i := range ts {
			again = append(again, ts[i].Data...)
		}
	}
	r.socket.Store(old)
	ts = nil
	for i := range fails {
		ts = append(ts, Train{Data: []byte{byte(i)}, Size: 1})
	}
	e.transmit(r, ts)
	if !bytes.Equal(again, []byte{1, 2, 5}) {
		t.Errorf("trains %v were sent again, want those that the closed socket did not send", again)
	}
	for i := range ts {
		if want := fails[i]; want == tooBig && ts[i].Err != want || want != tooBig && ts[i].Err != nil {
			t.Errorf("train %d has the wrong error: %v", i, ts[i].Err)
		}
	}
	old.Close()
}
