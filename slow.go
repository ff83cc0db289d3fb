package wireguard

import (
	"runtime"
	"sync"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// The slow path does the work that needs X25519, or that must not happen on the goroutine that asks for it. It has a bounded
// queue for each kind of work. Workers start when there is work, and end when there is none.
//
//	receivers: handshake messages ─────┐
//	peers that want a handshake ───────┼─▶ work ─▶ exchange.go
//	peers that Lookup supplied ────────┤        │
//	ICMP errors for the sink ──────────┘        └▶ Tunnel
const (
	maxMessages     = 4096
	refuseMessages  = maxMessages / 2 // with so many waiting, a new message would wait for longer than its sender does
	loadMessages    = maxMessages / 8 // with so many waiting, the device is under load
	maxUnreachables = 64
)

// A slowPath is the queues of the slow path. The zero value is ready.
type slowPath struct {
	mu           sync.Mutex         // guards all below; taken after a peer's
	messages     []handshakeMessage // from read on
	read         int
	first, last  *peer       // peers that want a handshake, or are handed over; linked by nextSlow
	found        []PublicKey // peers that Lookup supplied and whose initiation waits: at most Config.MaxLookups
	unreachables [][]byte
	errorLimit   bucket // rate limit of unreachables
	loadedAt     int64  // when too many messages or lookups last waited; 0 means not lately
	rotation     int
	workers      int
	closed       bool
}

// A handshakeMessage is a copy of a message as it arrived.
type handshakeMessage struct {
	from Endpoint
	size uint8
	b    [initiationSize]byte // initiations are the longest messages
}

func (m *handshakeMessage) bytes() []byte { return m.b[:m.size] }

// message queues a copy of the handshake message m.
func (s *slowPath) message(d *Device, m []byte, from Endpoint) {
	hm := handshakeMessage{from: from, size: uint8(len(m))}
	copy(hm.b[:], m)
	s.enqueue(d, &hm)
}

func (s *slowPath) enqueue(d *Device, m *handshakeMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.messages)-s.read >= refuseMessages {
		d.drops.add(DropQueueFull, 1)
		return
	}
	if s.read >= refuseMessages {
		s.messages = s.messages[:copy(s.messages, s.messages[s.read:])]
		s.read = 0
	}
	s.messages = append(s.messages, *m)
	s.start(d)
}

// enterSlow reports whether the caller is to queue p, whose initiating or handed is set: p is not in the queue yet. p.mu is
// held.
func (p *peer) enterSlow() bool {
	queued := p.inSlow
	p.inSlow = true
	return !queued
}

// peer queues p, for which enterSlow returned true.
func (s *slowPath) peer(d *Device, p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if s.last == nil {
		s.first = p
	} else {
		s.last.nextSlow = p
	}
	s.last = p
	s.start(d)
}

// lookedUp queues the answer to the initiation of a peer that Lookup supplied. A closed device takes it too, so that the
// initiation is wiped.
func (s *slowPath) lookedUp(d *Device, key PublicKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found = append(s.found, key)
	s.start(d)
}

// unreachable queues an ICMP error for the sender of a packet that has no destination.
func (s *slowPath) unreachable(d *Device, p []byte, now int64) { s.answer(d, p, 0, now) }

// answer queues an ICMP error for the sender of p: p is larger than mtu or, if mtu is 0, has no destination. ICMP errors
// are limited as in a router: a hundred per second, twenty at once.
func (s *slowPath) answer(d *Device, p []byte, mtu int, now int64) {
	const cost, burst = second / 100, 20 * (second / 100)
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &s.errorLimit
	b.tokens = min(burst, b.tokens+now-b.last)
	b.last = now
	if s.closed || b.tokens < cost || len(s.unreachables) >= maxUnreachables {
		return
	}
	reply := packet.Unreachable(p)
	if mtu > 0 {
		reply = packet.TooBig(p, mtu)
	}
	if reply == nil {
		return
	}
	b.tokens -= cost
	s.unreachables = append(s.unreachables, reply)
	s.start(d)
}

// start starts a worker, unless there are enough. mu is held.
func (s *slowPath) start(d *Device) {
	if s.workers < runtime.GOMAXPROCS(0) {
		s.workers++
		d.wg.Add(1)
		go d.work()
	}
}

// A slowJob is one of the four kinds of work.
type slowJob struct {
	message handshakeMessage // valid if size is not 0
	loaded  bool             // whether the device is under load
	peer    *peer
	found   PublicKey
	icmp    []byte
}

// take never waits. If there is no work, it returns false and the worker ends. The kinds of work take turns, so that a
// flood of messages does not keep this device from initiating handshakes.
func (s *slowPath) take(d *Device, j *slowJob, now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	*j = slowJob{}
	for range 4 {
		s.rotation = (s.rotation + 1) % 4
		switch {
		case s.rotation == 0 && s.read < len(s.messages):
			j.loaded = s.underLoad(d, now)
			j.message = s.messages[s.read]
			s.read++
			if s.read == len(s.messages) {
				s.messages, s.read = nil, 0
			}
			return true
		case s.rotation == 1 && s.first != nil:
			j.peer = s.first
			s.first, j.peer.nextSlow = j.peer.nextSlow, nil
			if s.first == nil {
				s.last = nil
			}
			return true
		case s.rotation == 2 && len(s.found) > 0:
			j.found = s.found[0]
			if s.found = s.found[1:]; len(s.found) == 0 {
				s.found = nil
			}
			return true
		case s.rotation == 3 && len(s.unreachables) > 0:
			j.icmp = s.unreachables[0]
			s.unreachables = s.unreachables[1:]
			return true
		}
	}
	s.workers--
	return false
}

// underLoad reports whether an eighth of the queue or of the lookups is taken, or was taken within the last second. mu is
// held.
func (s *slowPath) underLoad(d *Device, now int64) bool {
	if len(s.messages)-s.read >= loadMessages || d.lookups.crowded() {
		s.loadedAt = now
	}
	if s.loadedAt != 0 && now-s.loadedAt >= underLoadHold {
		s.loadedAt = 0
	}
	return s.loadedAt != 0
}

// loaded reports whether the device is under load.
func (s *slowPath) loaded(d *Device, now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.underLoad(d, now)
}

// close forgets the queued work and takes no more.
func (s *slowPath) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.messages, s.read, s.first, s.last, s.unreachables = nil, 0, nil, nil, nil
}

// work is the body of a worker.
func (d *Device) work() {
	defer d.wg.Done()
	var j slowJob
	var c cookieChecker
	for d.slow.take(d, &j, d.now()) {
		switch {
		case j.message.size != 0:
			d.receiveHandshake(&j.message, j.loaded, &c)
		case j.peer != nil:
			d.visit(j.peer)
		case j.found != PublicKey{}:
			d.answerLookedUp(j.found)
		case j.icmp != nil:
			d.tunnel.WritePackets([][]byte{j.icmp})
		}
	}
}

// visit does the work that p was queued for.
func (d *Device) visit(p *peer) {
	p.mu.Lock()
	initiate, handed := p.initiating, p.handed
	// From here on p may be queued again, even while it is initiating, so that later requests are not forgotten.
	p.handed, p.inSlow = false, false
	p.mu.Unlock()
	if initiate {
		d.sendInitiation(p)
	}
	if handed {
		d.resume(p)
	}
}
