package wireguard

import (
	"runtime"
	"sync"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// The slow path does the work that needs X25519, or that must not happen on the goroutine that asks for it. It has a bounded
// queue for each kind of work, and the kinds take turns. Workers start when there is work, and end when there is none.
//
//	receivers: initiations ────────────┐
//	receivers: responses and cookies ──┤
//	peers that want a handshake ───────┼─▶ work ─▶ exchange.go
//	peers that Lookup supplied ────────┤        └▶ Tunnel
//	ICMP errors for the sink ──────────┘
const (
	// Initiations may wait for as long as their senders wait for the answer: a core answers about 5,000 a second.
	maxInitiations        = 1 << 16
	maxInitiationsPerCore = 5000 * int(rekeyTimeout/second)

	loadMessages    = 512 // with so many of a queue waiting, the device is under load: about 0.1 s of a core's work
	maxAnswers      = 8   // responses and cookie replies to one peer's messages that wait
	maxUnreachables = 64
)

// A slowPath is the queues of the slow path. The zero value is ready.
type slowPath struct {
	mu           sync.Mutex   // guards all below; taken after a peer's
	initiations  messageQueue // at most maxInitiations, or more cores' work
	answers      messageQueue // responses and cookie replies: at most maxAnswers of each peer
	first, last  *peer        // peers that want a handshake, or are handed over; linked by nextSlow
	found        []PublicKey  // peers that Lookup supplied and whose initiation waits: at most Config.MaxLookups
	unreachables [][]byte
	errorLimit   bucket // rate limit of unreachables
	rotation     int
	workers      int
	closed       bool
}

// A handshakeMessage is a copy of a message as it arrived.
type handshakeMessage struct {
	next *handshakeMessage
	from Endpoint
	to   *peer // for a response or a cookie reply, whose receiver index it has
	at   int64 // when it arrived
	size uint8
	b    [initiationSize]byte // initiations are the longest messages
}

func (m *handshakeMessage) bytes() []byte { return m.b[:m.size] }

// messages are handshakeMessages that are not in use, so that a flood makes no garbage.
var messages = sync.Pool{New: func() any { return new(handshakeMessage) }}

// A messageQueue is messages in the order of their arrival. Its memory is that of the messages in it.
type messageQueue struct {
	first, last *handshakeMessage
	n           int
	loadedAt    int64 // when too much last waited; 0 means not lately
}

func (q *messageQueue) push(m *handshakeMessage) {
	if q.last == nil {
		q.first = m
	} else {
		q.last.next = m
	}
	q.last = m
	q.n++
}

// pop takes the oldest message out of the queue, or nil.
func (q *messageQueue) pop() *handshakeMessage {
	m := q.first
	if m == nil {
		return nil
	}
	if q.first, m.next = m.next, nil; q.first == nil {
		q.last = nil
	}
	q.n--
	return m
}

// underLoad reports whether too many messages wait, or did within the last second. crowded says that there is load beside them.
func (q *messageQueue) underLoad(crowded bool, now int64) bool {
	if crowded || q.n >= loadMessages {
		q.loadedAt = now
	}
	if q.loadedAt != 0 && now-q.loadedAt >= underLoadHold {
		q.loadedAt = 0
	}
	return q.loadedAt != 0
}

// message queues a copy of the handshake message b. A response or a cookie reply waits with those to the same peer, so that
// neither initiations nor messages to another peer take its place.
func (s *slowPath) message(d *Device, b []byte, from Endpoint, now int64) {
	var to *peer
	if b[0] != typeInitiation {
		if to = d.sessions.find(receiverOf(b)).p; to == nil {
			d.drops.add(DropUnknownIndex, 1)
			return
		}
		if !to.expectAnswer() {
			d.drops.add(DropQueueFull, 1)
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := &s.initiations
	switch {
	case s.closed, to == nil && q.n >= maxInitiations && q.n >= maxInitiationsPerCore*runtime.GOMAXPROCS(0):
		d.drops.add(DropQueueFull, 1)
		return
	case to != nil:
		q = &s.answers
	}
	m := messages.Get().(*handshakeMessage)
	m.from, m.to, m.at, m.size = from, to, now, uint8(copy(m.b[:], b))
	q.push(m)
	s.start(d)
}

// expectAnswer reports whether another response or cookie reply to p's messages may wait.
func (p *peer) expectAnswer() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ok := p.answers < maxAnswers
	if ok {
		p.answers++
	}
	return ok
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

// A slowJob is one of the five kinds of work.
type slowJob struct {
	message *handshakeMessage
	loaded  bool // whether messages of its kind put the device under load
	peer    *peer
	found   PublicKey
	icmp    []byte
}

// take never waits. If there is no work, it returns false and the worker ends. The kinds of work take turns, so that a
// flood of initiations delays no other kind by more than one of them per worker.
func (s *slowPath) take(d *Device, j *slowJob, now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	*j = slowJob{}
	for range 5 {
		s.rotation = (s.rotation + 1) % 5
		switch {
		case s.rotation == 0 && s.initiations.n > 0:
			j.loaded = s.initiations.underLoad(d.lookups.crowded(), now)
			j.message = s.initiations.pop()
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
		case s.rotation == 4 && s.answers.n > 0:
			j.loaded = s.answers.underLoad(false, now)
			j.message = s.answers.pop()
			return true
		}
	}
	s.workers--
	return false
}

// loaded reports whether the device is under load.
func (s *slowPath) loaded(d *Device, now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	initiations, answers := s.initiations.underLoad(d.lookups.crowded(), now), s.answers.underLoad(false, now)
	return initiations || answers
}

// close forgets the queued work and takes no more.
func (s *slowPath) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.initiations, s.answers, s.first, s.last, s.unreachables = messageQueue{}, messageQueue{}, nil, nil, nil
}

// work is the body of a worker.
func (d *Device) work() {
	defer d.wg.Done()
	var j slowJob
	var c cookieChecker
	for d.slow.take(d, &j, d.now()) {
		switch {
		case j.message != nil:
			d.receiveHandshake(j.message, j.loaded, &c)
			*j.message = handshakeMessage{}
			messages.Put(j.message)
		case j.peer != nil:
			d.visit(j.peer)
		case j.found != PublicKey{}:
			d.answerLookedUp(j.found)
		case j.icmp != nil:
			d.tunnel.WritePackets([][]byte{j.icmp})
		}
		runtime.Gosched() // to a receiver that woke meanwhile: packets do not wait for the whole queue
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
