package wireguard

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"
)

// newSlowDevice is a device whose slow path has no workers: what is queued stays until it is taken.
func newSlowDevice() *Device {
	d := &Device{clock: new(handClock)}
	d.slow.workers = runtime.GOMAXPROCS(0)
	return d
}

func (d *Device) queue(n int) {
	m := make([]byte, initiationSize)
	for i := range n {
		binary.LittleEndian.PutUint32(m[4:], uint32(i))
		d.slow.message(d, m, coreEndpoint)
	}
}

// TestHandshakeQueue: "4096 messages; refused above half".
func TestHandshakeQueue(t *testing.T) {
	d := newSlowDevice()
	d.queue(2048)
	if n := d.drops[DropQueueFull].Load(); n != 0 {
		t.Fatalf("%d of 2048 messages are refused", n)
	}
	d.queue(7)
	if n := d.drops[DropQueueFull].Load(); n != 7 {
		t.Errorf("%d of 7 more messages are refused", n)
	}
	var j slowJob
	for i := range 2048 {
		if !d.slow.take(d, &j, d.now()) || binary.LittleEndian.Uint32(j.message.b[4:]) != uint32(i) || j.message.from != coreEndpoint {
			t.Fatalf("message %d is another, or out of order", i)
		}
		if i%3 == 0 { // one in for three out: the ones taken must not use up the room
			d.slow.message(d, make([]byte, responseSize), coreEndpoint)
		}
	}
	if n := d.drops[DropQueueFull].Load(); n != 7 {
		t.Error("messages are refused although there is room")
	}
	for d.slow.take(d, &j, d.now()) {
		if len(j.message.bytes()) != responseSize {
			t.Fatalf("a message of %d bytes", len(j.message.bytes()))
		}
	}
	if d.slow.messages != nil {
		t.Error("an empty queue keeps its memory")
	}
	if d.slow.workers != runtime.GOMAXPROCS(0)-1 {
		t.Error("a worker that finds no work is still counted")
	}
}

// TestHandshakeQueueIsBounded keeps it half full for long: what was read must not pile up.
func TestHandshakeQueueIsBounded(t *testing.T) {
	d := newSlowDevice()
	d.queue(2000)
	var j slowJob
	for range 20000 {
		d.queue(1)
		if !d.slow.take(d, &j, d.now()) {
			t.Fatal("there is work")
		}
	}
	if c := cap(d.slow.messages); c > 2*maxMessages {
		t.Errorf("the queue grew to %d messages", c)
	}
	if d.drops[DropQueueFull].Load() != 0 {
		t.Error("messages are refused although there is room")
	}
}

// TestUnderLoad: "under load from one eighth, held for 1 s".
func TestUnderLoad(t *testing.T) {
	d := newSlowDevice()
	s, now := &d.slow, 100*second
	d.queue(511)
	if s.loaded(d, now) {
		t.Error("under load below an eighth")
	}
	d.queue(1)
	if !s.loaded(d, now) {
		t.Error("not under load at an eighth")
	}
	var j slowJob
	s.take(d, &j, now)
	if !j.loaded {
		t.Error("the worker does not know of the load")
	}
	for s.read < 512 && s.messages != nil {
		s.take(d, &j, now)
	}
	if !s.loaded(d, now+second-1) {
		t.Error("load is not held for a second")
	}
	if s.loaded(d, now+second) {
		t.Error("load is held for more than a second")
	}
	if s.loaded(d, now+second-1) {
		t.Error("load comes back by itself")
	}
}

// TestSlowPathTakesTurns: a flood of messages does not keep this device from making handshakes of its own.
func TestSlowPathTakesTurns(t *testing.T) {
	d := newSlowDevice()
	d.queue(100)
	ps := []*peer{new(peer), new(peer), new(peer)}
	for _, p := range ps {
		d.slow.peer(d, p)
	}
	for range 2 {
		d.slow.unreachable(d, packet4(100, here, nowhere), d.now())
	}
	var j slowJob
	kinds := map[string]int{}
	initiated := 0
	for range 3 * 3 {
		d.slow.take(d, &j, d.now())
		switch {
		case j.peer != nil:
			if kinds["peer"]++; j.peer != ps[initiated] || j.peer.nextSlow != nil {
				t.Errorf("peer %d is another, or still linked", initiated)
			}
			initiated++
		case j.icmp != nil:
			kinds["icmp"]++
		default:
			kinds["message"]++
		}
	}
	if kinds["peer"] != 3 || kinds["icmp"] != 2 || kinds["message"] != 4 {
		t.Errorf("of nine jobs, %v", kinds)
	}
	if d.slow.first != nil || d.slow.last != nil {
		t.Error("the queue of peers is not empty")
	}
}

// TestUnreachableRate: a hundred errors a second, twenty at once, and what is not answered costs nothing.
func TestUnreachableRate(t *testing.T) {
	d := newSlowDevice()
	now := d.now()
	for range 100 {
		d.slow.unreachable(d, packet4(100, here, here.Next()), now)
		d.slow.unreachable(d, []byte("no packet"), now)
	}
	if n := len(d.slow.unreachables); n != 20 {
		t.Errorf("%d errors at once, want 20", n)
	}
	d.slow.unreachables = nil
	sent := 0
	for ms := range int64(1000) {
		d.slow.unreachable(d, packet4(100, here, nowhere), now+(ms+1)*second/1000)
		sent += len(d.slow.unreachables)
		d.slow.unreachables = nil
	}
	if sent != 100 {
		t.Errorf("%d errors in a second, want 100", sent)
	}
	now += 10 * second
	for i := range int64(1000) {
		d.slow.unreachable(d, packet4(100, here, nowhere), now+i*second)
	}
	if n := len(d.slow.unreachables); n != maxUnreachables {
		t.Errorf("%d errors wait, want %d", n, maxUnreachables)
	}
}

// TestHandOverAmidVisit: a peer that is handed over while a worker has just come to make its initiation is visited again. Forgotten then, it would count as queued for ever, and never initiate again either.
func TestHandOverAmidVisit(t *testing.T) {
	d := newSlowDevice()
	p := &peer{peerState: peerState{endpoint: coreEndpoint}}
	var out outbox
	handOver := func() {
		p.mu.Lock()
		p.queue.led, p.handed = true, true
		d.release(p, new(outbox))
	}
	p.mu.Lock()
	p.initiate(d.now(), false, &out)
	d.release(p, &out)
	var j slowJob
	if !d.slow.take(d, &j, d.now()) || j.peer != p {
		t.Fatal("the peer is not queued for its initiation")
	}
	amid := &amidClock{Clock: d.clock, call: handOver}
	d.clock = amid
	d.visit(p) // without an identity: no initiation is made
	if amid.call != nil {
		t.Fatal("the visit did not come to making an initiation")
	}
	handOver() // and once more, while it is queued
	for range 2 {
		if !d.slow.take(d, &j, d.now()) || j.peer != p {
			t.Fatal("what was handed over is forgotten")
		}
		d.visit(p)
		if p.initiating || p.handed || p.queue.led || p.inSlow || d.slow.first != nil {
			t.Fatal("the visit leaves something behind")
		}
		p.mu.Lock()
		out = outbox{}
		p.initiate(d.now(), false, &out)
		d.release(p, &out)
	}
}

// An amidClock calls call the first time that it is asked for the calendar's time, which is what the making of an
// initiation begins with.
type amidClock struct {
	Clock
	call func()
}

func (c *amidClock) Wall() time.Time {
	if call := c.call; call != nil {
		c.call = nil
		call()
	}
	return c.Clock.Wall()
}

func TestSlowPathClosed(t *testing.T) {
	d := newSlowDevice()
	d.queue(3)
	d.slow.peer(d, new(peer))
	d.slow.unreachable(d, packet4(100, here, nowhere), d.now())
	d.slow.close()
	d.queue(1)
	d.slow.peer(d, new(peer))
	d.slow.unreachable(d, packet4(100, here, nowhere), d.now()+second)
	var j slowJob
	if d.slow.take(d, &j, d.now()) {
		t.Error("there is work after close")
	}
	if d.drops[DropQueueFull].Load() != 1 {
		t.Error("a message that came too late is not counted")
	}
}

func TestSessionTable(t *testing.T) {
	var s sessionTable
	if s.find(7) != (session{}) {
		t.Error("the zero value finds something")
	}
	// A source of randomness that repeats itself: an index that is taken is drawn again.
	draws := []uint32{7, 7, 7, 0, 0, 7, 1 << 31}
	random := func(b []byte) {
		binary.LittleEndian.PutUint32(b, draws[0])
		draws = draws[1:]
	}
	a, b := new(peer), new(peer)
	reserve := func(p *peer) uint32 {
		index, err := s.reserve(p, random)
		if err != nil {
			t.Fatal(err)
		}
		return index
	}
	if got := reserve(a); got != 7 {
		t.Errorf("index %d, want 7", got)
	}
	if got := reserve(b); got != 0 {
		t.Errorf("index %d, want 0: 7 is taken", got)
	}
	if got := reserve(b); got != 1<<31 {
		t.Errorf("index %d, want 2^31", got)
	}
	k := new(keypair)
	if s.set(7, a, k); s.find(7) != (session{a, k}) || s.find(0) != (session{b, nil}) {
		t.Error("an index names something else")
	}
	s.free(7, 1<<31)
	s.free()
	if s.find(7) != (session{}) || s.find(0).p != b {
		t.Error("free frees something else")
	}
	if s.free(0, 0, 99); s.m != nil {
		t.Error("an empty table keeps its memory")
	}
}
