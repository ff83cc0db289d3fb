package wireguard

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/layout"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

// These tests are about the queue that each peer has for the case that several goroutines send to the peer at the same time. The
// elements of the queue are runs. A run has the packets of one batch that go to the same peer.

// waiting returns the number of runs in p's queue.
func waiting(p *peer) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for r := p.queue.head; r != nil; r = r.next {
		n++
	}
	return n
}

// occupy starts a goroutine that sends a packet to r, and blocks in Socket.Send until leave is called. Until then, this goroutine
// leads the peer: other goroutines only queue their packets for it. The function own gets the trains of the first call of
// Socket.Send, and take gets the trains of all other calls.
func (e *end) occupy(t *testing.T, r *remote, own, take func(ts []Train)) (leave func()) {
	t.Helper()
	there, left := make(chan struct{}), make(chan struct{})
	var once, leaveOnce sync.Once
	e.line.send = func(ts []Train) {
		first := false
		once.Do(func() { first = true })
		if first {
			close(there)
			<-left
			own(ts)
			return
		}
		take(ts)
	}
	leave = func() { leaveOnce.Do(func() { close(left) }) }
	t.Cleanup(leave)
	b := e.NewBatch()
	b.Append(packetOf(99, 0, 100, r))
	go e.Device.Send(b)
	<-there
	return leave
}

func ignore([]Train) {}

// collect returns a function that sends copies of the datagrams in trains to the channel sent.
func collect(sent chan datagram) func(ts []Train) {
	return func(ts []Train) {
		for i := range ts {
			for m := range ts[i].Datagrams() {
				sent <- datagram{to: ts[i].Endpoint, b: bytes.Clone(m)}
			}
		}
	}
}

// wantSent fails unless the next packets that the device sends to r have these numbers, in this order.
func (e *end) wantSent(t *testing.T, r *remote, why string, numbers ...int) {
	t.Helper()
	for _, n := range numbers {
		if p, _, ok := packet.Unpad(r.open(t, e.line.next(t, why).b)); !ok || !bytes.Equal(p, r.numbered(n)) {
			t.Errorf("the device did not send packet %d, but another one: %s", n, why)
		}
	}
}

// TestQueue checks that if another goroutine is sending to the peer, Send queues its packets for that goroutine. That goroutine
// then sends the queued packets in order, in one call of Socket.Send.
func TestQueue(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	e.connect(t, r)
	sent, calls := e.line.sent, 0
	e.line.send = func(ts []Train) {
		collect(sent)(ts)
		if calls++; calls == 2 && len(ts) != 1 {
			t.Errorf("packets of one size are sent in %d trains, want 1", len(ts))
		}
		if calls == 1 {
			for i := 1; i < 4; i++ {
				e.send(t, r.numbered(2*i), r.numbered(2*i+1))
			}
			if n := waiting(e.peer(r)); n != 1 || len(sent) != 2 {
				t.Errorf("%d runs are queued, want one joint run; %d packets were sent, want 2", n, len(sent))
			}
		}
	}
	e.send(t, r.numbered(0), r.numbered(1))
	if calls != 2 {
		t.Errorf("Socket.Send was called %d times, want 2", calls)
	}
	e.wantSent(t, r, "all are sent", 0, 1, 2, 3, 4, 5, 6, 7)
	if p := e.peer(r); p.queue.led || p.queue.head != nil || p.queue.n != 0 {
		t.Errorf("a goroutine leads the peer: %t, want false; the queue counts %d runs, want an empty queue", p.queue.led, p.queue.n)
	}
}

// TestQueueSealedOutOfOrder checks that a run that is not yet sealed delays the runs behind it, but that no goroutine waits for
// it. The goroutine that seals this run also sends the runs behind it.
func TestQueueSealedOutOfOrder(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	e.connect(t, r)
	batchFull := 0 // number of packets in a batch besides the first one
	claim := func(n int) *load {
		b := e.NewBatch()
		b.Append(r.numbered(n))
		for b.Append(packetOf(99, 0, 1400, r)) { // the run becomes larger than maxCollected
		}
		batchFull = b.Len() - 1
		l := b.takeLoad()
		if err := e.claimAll(l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	seal := func(l *load) { l.seal(e.helpers); e.finish(l); l.release() }
	first, second := claim(0), claim(1)
	e.send(t, r.numbered(2))
	rest := func() {
		for range batchFull {
			r.open(t, e.line.next(t, "the rest of the batch").b)
		}
	}
	seal(first)
	e.wantSent(t, r, "the first run is encrypted", 0)
	rest()
	e.line.nothing(t, "the second run is not encrypted")
	if p := e.peer(r); p.queue.led || waiting(p) != 2 {
		t.Errorf("a goroutine leads the peer: %t, want false; %d runs are queued, want 2", p.queue.led, waiting(p))
	}
	seal(second)
	e.wantSent(t, r, "the goroutine that encrypts the run at the head sends it", 1)
	rest()
	e.wantSent(t, r, "that goroutine also sends the run behind", 2)
	e.send(t, r.numbered(3))
	e.wantSent(t, r, "the queue is empty", 3)
}

// TestQueueBound checks that if senders continue while the socket is blocked, the queue fills up, and further packets are dropped
// and counted. Small packets share memory in the queue. Packets to another peer are still sent. Later the queued packets are sent
// in order.
func TestQueueBound(t *testing.T) {
	a, b := newRemote(1, testKey(1).Public()), newRemote(2, testKey(1).Public())
	e := up(t, testKey(1), a.config(), b.config())
	e.connect(t, a)
	e.connect(t, b)
	e.line.sent = make(chan datagram, 8192)
	before := e.drops.load()
	leave := e.occupy(t, a, ignore, collect(e.line.sent))
	const most = maxQueued * layout.MaxPackets
	for i := range most + 10 {
		e.send(t, a.numbered(i))
	}
	e.wantDrops(t, before, DropSendQueueFull, 10, "the queue is full")
	if n := waiting(e.peer(a)); n != maxQueued {
		t.Errorf("%d runs are queued, want %d", n, maxQueued)
	}
	e.send(t, b.numbered(7))
	e.wantSent(t, b, "packets to another peer are sent", 7)
	leave()
	for i := range most {
		e.wantSent(t, a, "the queued packets are sent in order", i)
	}
	leave = e.occupy(t, a, ignore, collect(e.line.sent))
	full := e.NewBatch()
	for range maxQueued + 3 {
		for full.Append(packetOf(99, 0, 1400, a)) {
		}
		e.Device.Send(full)
	}
	if n := waiting(e.peer(a)); n != maxQueued {
		t.Errorf("%d full batches are queued, want %d", n, maxQueued)
	}
	leave()
}

// TestQueueHandsOver checks that a goroutine that leads a peer does not send the packets of other goroutines forever. After
// maxRounds rounds, a goroutine of the slow path takes over.
func TestQueueHandsOver(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	e.connect(t, r)
	const packets = 3 * maxRounds
	returned, sent, calls := make(chan struct{}), e.line.sent, 0
	e.line.send = func(ts []Train) {
		if calls++; calls > maxRounds {
			<-returned
		}
		collect(sent)(ts)
		if calls < packets {
			e.send(t, r.numbered(calls))
		}
	}
	e.send(t, r.numbered(0))
	close(returned)
	e.wantSent(t, r, "all are sent", slices.Collect(func(yield func(int) bool) {
		for i := range packets {
			if !yield(i) {
				return
			}
		}
	})...)
	eventually(t, "the slow path stops leading the peer", func() bool {
		p := e.peer(r)
		p.mu.Lock()
		defer p.mu.Unlock()
		return !p.queue.led && !p.handed
	})
}

// TestQueueEnds checks that if the device goes down or the peer is removed, all packets in the queue are dropped and counted,
// whether they are sealed or not. They are never sent through a later socket. After that, packets can be sent to the peer again.
func TestQueueEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end    func(e *end, r *remote)
		reason DropReason
	}{
		"Down":   {func(e *end, r *remote) { e.Down() }, DropDown},
		"remove": {func(e *end, r *remote) { e.RemovePeer(r.id.public) }, DropNoSession},
		"Close":  {func(e *end, r *remote) { e.Close() }, DropDown},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRemote(1, testKey(1).Public())
			e := up(t, testKey(1), r.config())
			e.connect(t, r)
			p := e.peer(r)
			var late []datagram
			leave := e.occupy(t, r, ignore, func(ts []Train) {
				for i := range ts {
					late = append(late, datagram{b: bytes.Clone(ts[i].Data)})
					ts[i].Err = net.ErrClosed
				}
			})
			b := e.NewBatch()
			b.Append(r.numbered(0))
			unsealed := b.takeLoad()
			if err := e.claimAll(unsealed); err != nil {
				t.Fatal(err)
			}
			e.send(t, r.numbered(1), r.numbered(2))
			before := e.drops.load()
			ended := make(chan struct{})
			go func() { c.end(e, r); close(ended) }()
			eventually(t, "the queue becomes empty", func() bool { return waiting(p) == 0 })
			e.wantDrops(t, before, c.reason, 3, "the queued packets are counted as dropped")
			unsealed.seal(e.helpers)
			e.finish(unsealed)
			unsealed.release()
			leave()
			<-ended
			eventually(t, "no goroutine leads the peer", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return !p.queue.led })
			if len(late) != 0 {
				t.Errorf("%d datagrams of queued packets were sent, want 0", len(late))
			}
			if name == "Close" {
				return
			}
			e.line.send = nil
			if err := e.Up(); err != nil {
				t.Fatal(err)
			}
			if err := e.SetPeer(r.config()); err != nil {
				t.Fatal(err)
			}
			e.send(t, r.numbered(3))
			m := e.line.next(t, "an initiation for a new session")
			if binary.LittleEndian.Uint32(m.b) != typeInitiation {
				t.Fatalf("the device sent a message of type %d, want an initiation", m.b[0])
			}
			e.line.receive(r.train(r.response(t, m.b)))
			e.wantSent(t, r, "packets can be sent to the peer again", 3)
		})
	}
}

// TestQueueOldGeneration checks a goroutine that is inside Socket.Send while the device goes down and up again. Afterwards, the
// goroutine must send the packets that were queued after Up, through the new socket. It must not send the packets that were queued
// before Down.
func TestQueueOldGeneration(t *testing.T) {
	r := newRemote(1, testKey(1).Public())
	e := up(t, testKey(1), r.config())
	e.connect(t, r)
	leave := e.occupy(t, r, ignore, collect(e.line.sent))
	e.send(t, r.numbered(0))
	down := make(chan struct{})
	go func() { e.Down(); close(down) }()
	<-down
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	e.advance(t, time.Second)
	e.line.receive(r.train(r.initiation()))
	r.takeResponse(t, e.line.next(t, "a response").b)
	e.line.receive(r.train(r.data(nil)))
	e.send(t, r.numbered(1))
	time.Sleep(5 * time.Millisecond)
	e.line.nothing(t, "another goroutine leads the peer")
	leave()
	e.wantSent(t, r, "the goroutine sends the packet that was queued after Up", 1)
	e.settle(t)
	e.line.nothing(t, "the packet that was queued before Down is dropped")
}
