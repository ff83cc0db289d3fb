package wireguard

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/backlog"
)

// newSlowDevice returns a device whose slow path starts no workers. Work stays in its queues until the test takes it.
func newSlowDevice() *Device {
	d := &Device{clock: new(handClock)}
	d.slow.workers = runtime.GOMAXPROCS(0)
	return d
}

// arrived queues the handshake message m, as if it had just arrived.
func (d *Device) arrived(m []byte) {
	in := inbound{now: d.now()}
	d.arrive(&in, m, coreEndpoint)
	d.slow.queue(d, &in)
}

func (d *Device) queue(n int) {
	m := make([]byte, initiationSize)
	m[0] = typeInitiation
	for i := range n {
		binary.LittleEndian.PutUint32(m[4:], uint32(i))
		d.arrived(m)
	}
}

// TestInitiationQueue checks that the queue of initiations is long enough for the number of initiations that the workers can
// answer in 5 s, and for at least 65,536. The queue keeps their order.
func TestInitiationQueue(t *testing.T) {
	d := newSlowDevice()
	room := max(65536, 25000*runtime.GOMAXPROCS(0))
	d.queue(room)
	if n := d.drops[DropQueueFull].Load(); n != 0 {
		t.Fatalf("the queue refused %d of %d initiations, want none", n, room)
	}
	d.queue(7)
	if n := d.drops[DropQueueFull].Load(); n != 7 {
		t.Errorf("the queue refused %d of 7 more initiations, want all", n)
	}
	var j slowJob
	for i := range room {
		if !d.slow.take(d, &j, d.now()) || binary.LittleEndian.Uint32(j.message.b[4:]) != uint32(i) || j.message.from != coreEndpoint {
			t.Fatalf("the message taken from the queue is not initiation %d", i)
		}
		if i%1000 == 0 {
			d.queue(1)
		}
	}
	if n := d.drops[DropQueueFull].Load(); n != 7 {
		t.Error("initiations are refused although there is room again")
	}
	for d.slow.take(d, &j, d.now()) {
	}
	if s := &d.slow; s.initiations.Queue != nil {
		t.Error("an empty queue keeps its memory")
	}
	if d.slow.workers != runtime.GOMAXPROCS(0)-1 {
		t.Error("a worker that finds no work is still counted")
	}
}

// TestAnswersHaveTheirOwnQueue checks that the device handles a peer's response soon, even if the queue of initiations is full
// and another peer has sent many responses.
func TestAnswersHaveTheirOwnQueue(t *testing.T) {
	d := newSlowDevice()
	d.queue(max(65536, 25000*runtime.GOMAXPROCS(0)) + 1)
	if n := d.drops[DropQueueFull].Load(); n != 1 {
		t.Fatalf("the queue refused %d initiations, want 1", n)
	}
	greedy, modest := new(peer), new(peer)
	for i, p := range []*peer{greedy, modest} {
		d.sessions.reserve(p, func(b []byte) { binary.LittleEndian.PutUint32(b, uint32(i+1)) })
	}
	response := func(index byte) []byte {
		return append([]byte{typeResponse, responseReceiver: index}, make([]byte, responseSize-responseReceiver-1)...)
	}
	for range 100 {
		d.arrived(response(1))
	}
	if n := d.drops[DropQueueFull].Load(); n != 1+100-8 {
		t.Fatalf("the queue refused %d of 100 responses from one peer, want all but 8", n-1)
	}
	d.arrived(response(2))
	d.arrived(response(3))
	if n := d.drops[DropUnknownIndex].Load(); n != 1 {
		t.Errorf("a response with an unknown index is counted %d times, want 1", n)
	}
	var j slowJob
	for taken := 1; j.message == nil || j.message.to != modest; taken++ {
		if !d.slow.take(d, &j, d.now()) || taken > 4*9 {
			t.Fatal("the other peer's response was not taken in its turn")
		}
		if j.loaded == (j.message.to != nil) {
			t.Fatal("a response is marked as under load, or an initiation is not")
		}
	}
	d.receiveHandshake(&handshakeMessage{to: greedy}, d.now(), false, nil)
	d.arrived(response(1))
	if n := d.drops[DropQueueFull].Load(); n != 1+100-8 {
		t.Error("a response is refused although there is room again")
	}
}

// TestStaleInitiation checks that the device drops an initiation that has been in the queue for 5 s, because its sender has sent
// another initiation by then. The device computes no X25519 for the dropped initiation.
func TestStaleInitiation(t *testing.T) {
	e := newEnd(t, testKey(1))
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	r := newRemote(2, e.identity.Load().public)
	for _, c := range []struct {
		age  int64
		want DropReason
	}{{5*second - 1, DropUnknownPeer}, {5 * second, DropSuperseded}} {
		m := handshakeMessage{at: e.now() - c.age, size: initiationSize}
		copy(m.b[:], r.initiation())
		before := e.drops[c.want].Load()
		if e.receiveHandshake(&m, e.now(), false, new(worker)); e.drops[c.want].Load() != before+1 {
			t.Errorf("an initiation that waited for %d ns is not dropped as %q", c.age, c.want)
		}
	}
}

// TestUnderLoad checks that the device is under load when at least 512 initiations are queued, and that it stays under load for a
// second after that.
func TestUnderLoad(t *testing.T) {
	d := newSlowDevice()
	s, now := &d.slow, 100*second
	d.queue(511)
	if s.loaded(d, now) {
		t.Error("the device is under load with 511 initiations")
	}
	d.queue(1)
	if !s.loaded(d, now) {
		t.Error("the device is not under load with 512 initiations")
	}
	var j slowJob
	s.take(d, &j, now)
	if !j.loaded {
		t.Error("the job that the worker took is not marked as under load")
	}
	if !s.loaded(d, now+second-1) {
		t.Error("the device is under load for less than a second")
	}
	if s.loaded(d, now+second) {
		t.Error("the device is under load for more than a second")
	}
	if s.loaded(d, now+second-1) {
		t.Error("the device is under load again without new initiations")
	}
}

// TestTakeUnderLoad checks that under load a worker takes 16 initiations from the queue at a time, and handles them in order.
// After an initiation for which it computed an X25519, the worker does work of other kinds before it handles the next initiation.
// The memory of handled messages is reused, and is freed when the last worker ends.
func TestTakeUnderLoad(t *testing.T) {
	d := newSlowDevice()
	s := &d.slow
	s.workers = max(s.workers, 2)
	d.queue(2 * backlog.Long)
	p := new(peer)
	var j slowJob
	want := func(i int) {
		t.Helper()
		if j.message == nil || binary.LittleEndian.Uint32(j.message.b[4:]) != uint32(i) || !j.loaded {
			t.Fatalf("want initiation %d next, marked as under load; the message is %+v", i, j.message)
		}
	}
	s.take(d, &j, d.now())
	for i := range takeAtOnce - 1 {
		want(i)
		if !j.next() {
			t.Fatalf("the worker took only %d initiations at a time", i+1)
		}
	}
	want(takeAtOnce - 1)
	if j.next() {
		t.Error("the worker took more than 16 initiations at a time")
	}
	if n := len(s.initiations.Queue); n != 2*backlog.Long-takeAtOnce {
		t.Errorf("%d initiations are queued, want %d", n, 2*backlog.Long-takeAtOnce)
	}
	s.take(d, &j, d.now())
	want(takeAtOnce)
	s.peer(d, p) // as if the last initiation had cost an X25519, after which the worker calls take and not next
	if s.take(d, &j, d.now()); j.peer != p {
		t.Fatal("the worker handles all initiations that it took before the peer")
	}
	s.take(d, &j, d.now())
	want(takeAtOnce + 1)
	if n := len(s.spare); n != takeAtOnce+1 {
		t.Errorf("%d spare messages are kept, want %d", n, takeAtOnce+1)
	}
	d.queue(1)
	if n := len(s.spare); n != takeAtOnce {
		t.Errorf("the new initiation did not use a spare message: %d are left, want %d", n, takeAtOnce)
	}
	for s.take(d, &j, d.now()) {
		for j.next() {
		}
		if len(s.spare) > spareMax {
			t.Fatalf("%d spare messages are kept, want at most %d", len(s.spare), spareMax)
		}
	}
	if s.workers == 0 || s.spare == nil {
		t.Fatal("the spare messages were freed before the last worker ended")
	}
	for s.workers > 0 {
		s.take(d, &j, d.now())
	}
	if s.spare != nil {
		t.Error("the spare messages were not freed when the last worker ended")
	}
}

// TestSlowPathTakesTurns checks that during a flood of handshake messages the device still makes its own initiations and ICMP
// errors.
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
			if kinds["peer"]++; j.peer != ps[initiated] {
				t.Errorf("peer %d was taken out of order", initiated)
			}
			initiated++
		case j.icmp != nil:
			kinds["icmp"]++
		default:
			kinds["message"]++
		}
	}
	if kinds["peer"] != 3 || kinds["icmp"] != 2 || kinds["message"] != 4 {
		t.Errorf("the nine jobs were %v, want 3 peers, 2 ICMP errors and 4 messages", kinds)
	}
	if d.slow.peers != nil {
		t.Error("the queue of peers is not empty")
	}
}

// TestUnreachableRate checks that for each sender of packets the device queues at most 100 ICMP errors per second, and at most 20
// at once. Packets that do not get an ICMP error do not count. The queue has at most maxUnreachables errors.
func TestUnreachableRate(t *testing.T) {
	d := newSlowDevice()
	now := d.now()
	for range 100 {
		d.slow.unreachable(d, packet4(100, here, here.Next()), now)
		d.slow.unreachable(d, []byte("no packet"), now)
	}
	if n := len(d.slow.unreachables); n != 20 {
		t.Errorf("%d ICMP errors are queued at once, want 20", n)
	}
	d.slow.unreachables = nil
	sent := 0
	for ms := range int64(1000) {
		d.slow.unreachable(d, packet4(100, here, nowhere), now+(ms+1)*second/1000)
		sent += len(d.slow.unreachables)
		d.slow.unreachables = nil
	}
	if sent != 100 {
		t.Errorf("%d ICMP errors are queued in a second, want 100", sent)
	}
	now += 10 * second
	for i := range int64(1000) {
		d.slow.unreachable(d, packet4(100, here, nowhere), now+i*second)
	}
	if n := len(d.slow.unreachables); n != maxUnreachables {
		t.Errorf("%d ICMP errors are queued, want %d", n, maxUnreachables)
	}
}

// TestHandOverAmidVisit is about a worker of the slow path that is making an initiation to a peer. If a sender hands its queue
// for the peer over to the slow path at that moment, a worker must visit the peer again. Otherwise the peer would stay marked as
// queued forever, and the device would never make another initiation to the peer.
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
	d.visit(p) // the worker makes no initiation, because the device has no private key
	if amid.call != nil {
		t.Fatal("the visit did not begin to make an initiation")
	}
	handOver() // hand over again, while the peer is queued
	for range 2 {
		if !d.slow.take(d, &j, d.now()) || j.peer != p {
			t.Fatal("the peer is not queued for the queue that was handed over")
		}
		d.visit(p)
		if p.initiating || p.handed || p.queue.led || p.inSlow || d.slow.peers != nil {
			t.Fatal("after the visit, the peer is still initiating, handed over, led or queued")
		}
		p.mu.Lock()
		out = outbox{}
		p.initiate(d.now(), false, &out)
		d.release(p, &out)
	}
}

// An amidClock calls its function (call) when the device calls Wall for the first time. The device calls Wall when it begins to
// make an initiation.
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
		t.Error("take returned work after close")
	}
	if d.drops[DropQueueFull].Load() != 1 {
		t.Error("a message that arrived after close is not counted as dropped")
	}
}

func TestSessionTable(t *testing.T) {
	var s sessionTable
	if s.find(7) != (session{}) {
		t.Error("the zero value of the table finds a session")
	}
	// The random generator repeats values. If a drawn index is in use, reserve draws another one.
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
		t.Errorf("reserve returned the index %d, want 7", got)
	}
	if got := reserve(b); got != 0 {
		t.Errorf("reserve returned the index %d, want 0: the index 7 is in use", got)
	}
	if got := reserve(b); got != 1<<31 {
		t.Errorf("reserve returned the index %d, want 2^31", got)
	}
	k := new(keypair)
	if s.set(7, a, k); s.find(7) != (session{a, k}) || s.find(0) != (session{b, nil}) {
		t.Error("find returned the wrong session for an index")
	}
	s.free(7, 1<<31)
	s.free()
	if s.find(7) != (session{}) || s.find(0).p != b {
		t.Error("free did not free the index 7, or freed another index")
	}
	if s.free(0, 0, 99); s.m.Len() != 0 {
		t.Error("the table is not empty after all indices were freed")
	}
}

// TestCookieRepliesLeaveTogether checks that a worker under load takes several initiations at a time, and sends the cookie
// replies to them in one call of Socket.Send. Each initiator must receive its own reply, and be able to decrypt it. If the device
// went down and up between two initiations, their replies are sent in separate calls.
func TestCookieRepliesLeaveTogether(t *testing.T) {
	e := newEnd(t, testKey(1))
	e.headroom = 8 // as if the Bind needed this many bytes of headroom
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	var calls []int
	jars := make(map[Endpoint]*cookieJar)
	e.line.send = func(ts []Train) {
		calls = append(calls, len(ts))
		for _, train := range ts {
			for m := range train.Datagrams() {
				if len(m) != cookieSize || train.Headroom != 8 || jars[train.Endpoint] == nil ||
					!jars[train.Endpoint].consume(m, e.identity.Load().public, 1) {
					t.Errorf("the cookie reply to %v is not expected, or its receiver cannot decrypt it: %x", train.Endpoint, m)
				}
				delete(jars, train.Endpoint)
			}
		}
	}
	var w worker
	id, r := e.identity.Load(), e.running.Load()
	port := uint16(1000)
	ask := func(r *running, n int) {
		for range n {
			port++
			m := handshakeMessage{size: initiationSize, b: [initiationSize]byte{typeInitiation}}
			m.from = EndpointOf(netip.AddrPortFrom(here, port))
			jars[m.from] = new(cookieJar)
			jars[m.from].sign(m.bytes(), id.public, 1)
			if e.checkMACs(&m, id, r, e.now(), true, &w) {
				t.Fatal("an initiation without a valid mac2 was accepted under load")
			}
		}
	}
	want := func(why string, n ...int) {
		t.Helper()
		if !slices.Equal(calls, n) {
			t.Errorf("%s: the calls of Socket.Send had %v replies, want %v", why, calls, n)
		}
		calls = nil
	}
	ask(r, takeAtOnce)
	want("the worker may have more initiations")
	ask(r, 1)
	want("one more reply than one call has room for", takeAtOnce)
	again := new(running)
	again.socket.Store(r.socket.Load())
	ask(again, 2)
	want("the device was taken down and up", 1)
	e.sendReplies(&w.replies)
	want("the worker has no more messages", 2)
	e.sendReplies(&w.replies)
	want("nothing is left")
	if len(jars) != 0 {
		t.Errorf("%d initiations were not answered", len(jars))
	}
}
