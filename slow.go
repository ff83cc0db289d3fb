package wireguard

import (
	"runtime"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard/internal/backlog"
	"github.com/seed-86b749af/wireguard/internal/errorlimit"
)

// The slow path does the work that needs X25519, or that must not happen on the goroutine that asks for it. It has a bounded
// queue for each kind of work, and the kinds take turns. Workers start when there is work, and end when there is none.
//
//	receivers: initiations ────────────┐
//	receivers: responses and cookies ──┼─▶ work ─▶ exchange.go
//	peers that want to be visited ─────┤        └▶ Tunnel
//	ICMP errors for the sink ──────────┘
const (
	// A core answers about 5,000 initiations per second, and a sender waits 5 s for the answer to its own. So the queue has
	// room for what all cores answer in 5 s, or for maxInitiations if that is more.
	answersPerCore        = 5000
	maxInitiations        = 1 << 16
	maxInitiationsPerCore = answersPerCore * int(rekeyTimeout/second)

	maxAnswers      = 8 // responses and cookie replies that may wait, for each peer
	maxUnreachables = 256

	queueAtOnce = 64   // messages that a receiver queues, so that it takes the lock once for all of them
	takeAtOnce  = 16   // initiations that a worker takes under load, when most of them cost it only a MAC and a cookie reply
	spareMax    = 1024 // messages that are kept for reuse while there are workers

	// While all processors run goroutines, the Go runtime looks only every 10 ms for sockets that have become readable, even if
	// the goroutines yield. So each worker sleeps for a moment from time to time, and a processor that finds nothing to run looks
	// at the sockets. The moment takes up to 1 ms if the processor has nothing else to do.
	restEvery = second / 500
	restFor   = time.Microsecond
)

// A slowPath is the queues of the slow path. The zero value is ready.
type slowPath struct {
	mu           sync.Mutex           // guards all below; taken after a peer's
	initiations  messages             // at most maxInitiations, or maxInitiationsPerCore for each core if that is more
	answers      messages             // responses and cookie replies: at most maxAnswers of each peer
	peers        backlog.Queue[*peer] // peers that want an initiation, were handed over by a sender, or were supplied by Lookup
	unreachables backlog.Queue[[]byte]
	spare        []*handshakeMessage // kept for reuse, so that a flood makes no garbage; see spareMax
	rotation     int
	workers      int
	cores        int // GOMAXPROCS when work was last queued
	closed       bool

	errors errorlimit.Limit // of unreachables; has its own lock
}

// messages are handshake messages in the order of their arrival.
type messages = backlog.Watched[*handshakeMessage]

// A handshakeMessage is a copy of a message as it arrived.
type handshakeMessage struct {
	from Endpoint
	to   *peer // the peer that the receiver index of a response or a cookie reply belongs to; nil for an initiation
	at   int64 // when it arrived
	size uint8
	b    [initiationSize]byte // initiations are the longest messages
}

func (m *handshakeMessage) bytes() []byte { return m.b[:m.size] }

// An arrival is a handshake message in the memory of its socket.
type arrival struct {
	b    []byte
	from Endpoint
	to   *peer             // as in handshakeMessage
	m    *handshakeMessage // the copy of b
}

// arrive notes that the handshake message b has arrived. It drops an answer that no peer waits for, or too many of which wait.
func (d *Device) arrive(in *inbound, b []byte, from Endpoint) {
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
	if len(in.arrivals) == queueAtOnce {
		d.slow.queue(d, in)
	}
	in.arrivals = append(in.arrivals, arrival{b: b, from: from, to: to})
}

// queue queues copies of the handshake messages that arrived together, and forgets the arrivals. Answers have a queue apart from
// initiations, and a limit for each peer, so that neither initiations nor the answers to another peer take their places. Copying is
// most of the work, because other cores used the memory last, so the lock is not held meanwhile.
func (s *slowPath) queue(d *Device, in *inbound) {
	as := in.arrivals
	if len(as) == 0 {
		return
	}
	s.mu.Lock()
	for i := range min(len(as), len(s.spare)) {
		last := len(s.spare) - 1
		as[i].m, s.spare = s.spare[last], s.spare[:last]
	}
	s.mu.Unlock()
	for i := range as {
		a := &as[i]
		if a.m == nil {
			a.m = new(handshakeMessage)
		}
		a.m.from, a.m.to, a.m.at, a.m.size = a.from, a.to, in.now, uint8(copy(a.m.b[:], a.b))
	}
	s.mu.Lock()
	s.start(d, len(as))
	room := max(maxInitiations, maxInitiationsPerCore*s.cores) - len(s.initiations.Queue)
	for _, a := range as {
		switch {
		case s.closed, a.to == nil && room <= 0:
			d.drops.add(DropQueueFull, 1)
			if *a.m = (handshakeMessage{}); !s.closed {
				s.keep(a.m)
			}
		case a.to == nil:
			s.initiations.Push(a.m)
			room--
		default:
			s.answers.Push(a.m)
		}
	}
	s.mu.Unlock()
	clear(as) // the memory is the socket's
	in.arrivals = as[:0]
}

// keep keeps messages for reuse, as far as there is room. mu is held.
func (s *slowPath) keep(ms ...*handshakeMessage) {
	s.spare = append(s.spare, ms[:min(len(ms), spareMax-len(s.spare))]...)
}

// expectAnswer reports whether one more response or cookie reply for p may wait, and counts it if so.
func (p *peer) expectAnswer() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	ok := p.answers < maxAnswers
	if ok {
		p.answers++
	}
	return ok
}

// enterSlow notes that p is in the slow path's queue of peers, and reports whether the caller is to put p there: false
// means that p is there already. p.mu is held.
func (p *peer) enterSlow() bool {
	queued := p.inSlow
	p.inSlow = true
	return !queued
}

// peer queues p, for which enterSlow returned true.
func (s *slowPath) peer(d *Device, p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.peers.Push(p)
		s.start(d, 1)
	}
}

// unreachable queues an ICMP error for the sender of a packet that has no destination.
func (s *slowPath) unreachable(d *Device, p []byte, now int64) { s.answer(d, p, 0, now) }

// answer queues an ICMP error for the sender of the packet p, which is larger than mtu or, if mtu is 0, has no destination.
// s.errors limits how many errors each sender gets.
func (s *slowPath) answer(d *Device, p []byte, mtu int, now int64) {
	reply := s.errors.Answer(p, mtu, now)
	if reply == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed && len(s.unreachables) < maxUnreachables {
		s.unreachables.Push(reply)
		s.start(d, 1)
	}
}

// start starts workers for n pieces of work that were queued, unless there are enough. mu is held.
func (s *slowPath) start(d *Device, n int) {
	for s.cores = runtime.GOMAXPROCS(0); n > 0 && s.workers < s.cores && !s.closed; n-- {
		s.workers++
		d.wg.Go(d.work)
	}
}

// A slowJob is a piece of work that a worker has taken, of one of the four kinds.
type slowJob struct {
	message *handshakeMessage
	loaded  bool // whether messages of its kind put the device under load
	peer    *peer
	icmp    []byte

	more backlog.Queue[*handshakeMessage] // initiations taken together with message under load; they follow it
	used []*handshakeMessage              // messages to keep for reuse
}

// next replaces the message by one that was taken with it, if there is one.
func (j *slowJob) next() bool {
	j.discard()
	j.message = j.more.Pop()
	return j.message != nil
}

// discard puts the message aside for reuse.
func (j *slowJob) discard() {
	if j.message != nil {
		*j.message = handshakeMessage{}
		j.used = append(j.used, j.message)
		j.message = nil
	}
}

// take takes the next piece of work. It never waits: if there is no work, it returns false and the worker ends. The
// kinds of work take turns, so that a flood of initiations delays other work by at most one initiation per worker that
// costs an X25519.
func (s *slowPath) take(d *Device, j *slowJob, now int64) bool {
	j.discard()
	j.loaded, j.peer, j.icmp = false, nil, nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(j.used...)
	clear(j.used)
	j.used = j.used[:0]
	for range 4 {
		s.rotation = (s.rotation + 1) % 4
		switch s.rotation {
		case 0:
			s.takeInitiations(d, j, now)
		case 1:
			j.peer = s.peers.Pop()
		case 2:
			j.icmp = s.unreachables.Pop()
		case 3:
			j.loaded = s.answers.UnderLoad(false, 0, 1, now)
			j.message = s.answers.Pop()
		}
		if j.message != nil || j.peer != nil || j.icmp != nil {
			return true
		}
	}
	if s.workers--; s.workers == 0 {
		s.spare = nil
	}
	return false
}

// takeInitiations gives j the next initiation. Under load it takes up to takeAtOnce initiations out of the queue, and keeps all but
// the first in j.more for the next calls. mu is held.
func (s *slowPath) takeInitiations(d *Device, j *slowJob, now int64) {
	if j.loaded = len(j.more) > 0; !j.loaded {
		j.loaded = s.flooded(d, now)
		for n := takeAtOnce; j.loaded && n > 0 && len(s.initiations.Queue) > 0; n-- {
			j.more.Push(s.initiations.Pop())
		}
	}
	if j.message = j.more.Pop(); j.message == nil {
		j.message = s.initiations.Pop()
	}
}

// flooded reports whether initiations put the device under load. They still do if the device answers so many with cookies per
// second that an X25519 for each would keep half of the cores busy. mu is held.
func (s *slowPath) flooded(d *Device, now int64) bool {
	many := uint64(max(s.cores*answersPerCore/2, 1))
	return s.initiations.UnderLoad(d.lookups.Crowded(), d.drops[DropCookieRequired].Load(), many, now)
}

// loaded reports whether the device is under load.
func (s *slowPath) loaded(d *Device, now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	initiations, answers := s.flooded(d, now), s.answers.UnderLoad(false, 0, 1, now) // cookies do not prolong the load of answers
	return initiations || answers
}

// close drops the queued work, and no more is queued afterwards.
func (s *slowPath) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.initiations, s.answers, s.peers, s.unreachables = messages{}, messages{}, nil, nil
}

// A worker is the memory that a goroutine of the slow path keeps from one message to the next. The zero value is ready.
type worker struct {
	checker cookieChecker
	replies cookieReplies
	rested  int64 // when the worker slept last, or began
}

// work is the body of a worker's goroutine.
func (d *Device) work() {
	var j slowJob
	w := worker{rested: d.now()}
	for now := w.rested; d.slow.take(d, &j, now); now = d.now() {
		switch {
		case j.message != nil:
			for !d.receiveHandshake(j.message, now, j.loaded, &w) && j.next() {
			}
			d.sendReplies(&w.replies)
		case j.peer != nil:
			d.visit(j.peer)
		case j.icmp != nil:
			d.tunnel.WritePackets([][]byte{j.icmp})
		}
		if now-w.rested >= restEvery {
			w.rested = now
			time.Sleep(restFor)
		}
		runtime.Gosched() // to a receiver that woke meanwhile, so that packets do not wait for the whole queue
	}
}

// visit does the work that p was queued for.
func (d *Device) visit(p *peer) {
	p.mu.Lock()
	initiate, handed, found := p.initiating, p.handed, p.found
	// From here on p may be queued again, even while it is initiating, so that later requests are not forgotten.
	p.handed, p.found, p.inSlow = false, false, false
	p.mu.Unlock()
	if found {
		d.acceptInitiation(p, d.lookups.End(p.key))
	}
	if initiate {
		d.sendInitiation(p)
	}
	if handed {
		d.resume(p)
	}
}
