package wireguard

import (
	"runtime"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard/internal/backlog"
	"github.com/seed-86b749af/wireguard/internal/errorlimit"
)

// The slow path does the work that needs X25519, and other work that must not run on the goroutine that causes it. It has a
// bounded queue for each kind of work. Its goroutines, the workers, take work of each kind in turn. A worker starts when there is
// work, and ends when there is none.
//
//	receivers: initiations ────────────┐
//	receivers: responses and cookies ──┼─▶ work ─▶ exchange.go
//	peers that want to be visited ─────┤        └▶ Tunnel
//	ICMP errors for the sink ──────────┘
const (
	// A core answers about 5,000 initiations per second, and an initiator waits 5 s for its response. So the queue has room for
	// as many initiations as all cores answer in 5 s, or for maxInitiations if that is more.
	answersPerCore        = 5000
	maxInitiations        = 1 << 16
	maxInitiationsPerCore = answersPerCore * int(rekeyTimeout/second)

	maxAnswers      = 8 // responses and cookie replies that may wait for each peer
	maxUnreachables = 256

	queueAtOnce = 64   // the messages that a receiver collects and then queues together, to take the slow path's lock once for all
	takeAtOnce  = 16   // initiations that a worker takes together under load, when most cost only a MAC and a cookie reply
	spareMax    = 1024 // the most messages whose memory is kept for reuse while there are workers

	// While all processors run goroutines, the Go runtime checks only every 10 ms which sockets have become readable, even if the
	// goroutines yield. A processor that finds no goroutine to run checks the sockets at once. So each worker sleeps for restFor
	// once per restEvery. The sleep takes up to 1 ms if the processor has nothing else to do.
	restEvery = second / 500
	restFor   = time.Microsecond
)

// A slowPath holds the queues of the slow path. The zero value is ready.
type slowPath struct {
	mu           sync.Mutex           // guards all fields below but errors; taken after a peer's mutex
	initiations  messages             // at most maxInitiations, or maxInitiationsPerCore for each core if that is more
	answers      messages             // responses and cookie replies: at most maxAnswers of each peer
	peers        backlog.Queue[*peer] // each needs an initiation, has runs to send, or was supplied by Lookup; see visit
	unreachables backlog.Queue[[]byte]
	spare        []*handshakeMessage // at most spareMax messages, kept for reuse so that a flood makes no garbage
	rotation     int
	workers      int
	cores        int // the value of GOMAXPROCS when work was last queued
	closed       bool

	errors errorlimit.Limit // limits the ICMP errors in unreachables; has its own lock
}

// messages are handshake messages in the order of their arrival.
type messages = backlog.Watched[*handshakeMessage]

// A handshakeMessage is a copy of a handshake message that arrived.
type handshakeMessage struct {
	from Endpoint
	to   *peer // the peer to which the receiver index of a response or a cookie reply belongs; nil for an initiation
	at   int64 // when the message arrived
	size uint8
	b    [initiationSize]byte // initiations are the longest messages
}

func (m *handshakeMessage) bytes() []byte { return m.b[:m.size] }

// An arrival is a handshake message that is still in the memory of the socket.
type arrival struct {
	b    []byte
	from Endpoint
	to   *peer             // as in handshakeMessage
	m    *handshakeMessage // the copy of b; nil until queue makes it
}

// arrive adds the handshake message b to in.arrivals. It drops a response or a cookie reply with an unknown receiver index. It also
// drops a response or a cookie reply if 8 of these (maxAnswers) already wait for the same peer.
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

// queue queues copies of the handshake messages in in.arrivals, and empties in.arrivals. Responses and cookie replies have a
// separate queue, and a limit for each peer. So a peer's answers find room in their queue, however many initiations or answers for
// other peers wait. queue does not hold the lock while it copies, because copying is most of the work: the memory is not in this
// core's cache, since other cores used it last.
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
	clear(as) // the arrivals refer to the memory of the socket
	in.arrivals = as[:0]
}

// keep keeps the memory of messages for reuse, up to spareMax messages in all. The caller holds mu.
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

// enterSlow marks p as queued in the slow path. It reports whether the caller has to queue p; false means that p is queued
// already. The caller holds p.mu.
func (p *peer) enterSlow() bool {
	queued := p.inSlow
	p.inSlow = true
	return !queued
}

// peer adds p to the queue. Call it only after p.enterSlow has returned true.
func (s *slowPath) peer(d *Device, p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.peers.Push(p)
		s.start(d, 1)
	}
}

// unreachable queues an ICMP error for the sender of p, a packet whose destination cannot be reached.
func (s *slowPath) unreachable(d *Device, p []byte, now int64) { s.answer(d, p, 0, now) }

// answer queues an ICMP error for the sender of the packet p. The error says that p is larger than mtu or, if mtu is 0, that the
// destination cannot be reached. s.errors limits how many errors each sender gets.
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

// start starts a worker for each of n pieces of work, until there is one worker per core. The caller holds mu.
func (s *slowPath) start(d *Device, n int) {
	for s.cores = runtime.GOMAXPROCS(0); n > 0 && s.workers < s.cores && !s.closed; n-- {
		s.workers++
		d.wg.Go(d.work)
	}
}

// A slowJob is a piece of work that a worker has taken: a handshake message, a peer to visit, or an ICMP error.
type slowJob struct {
	message *handshakeMessage
	loaded  bool // whether message's kind, initiation or answer, puts the device under load
	peer    *peer
	icmp    []byte

	more backlog.Queue[*handshakeMessage] // initiations that were taken together with message, under load; handled after it
	used []*handshakeMessage              // messages whose memory is to be kept for reuse
}

// next replaces the message by the next one in j.more, and reports whether there is one.
func (j *slowJob) next() bool {
	j.discard()
	j.message = j.more.Pop()
	return j.message != nil
}

// discard removes the message from j, and puts its memory aside for reuse.
func (j *slowJob) discard() {
	if j.message != nil {
		*j.message = handshakeMessage{}
		j.used = append(j.used, j.message)
		j.message = nil
	}
}

// take gives j the next piece of work. It never waits: if there is no work, it returns false, and the worker ends. The workers
// together take work of the four kinds in turn. So, during a flood of initiations, other work waits until each worker has handled
// at most one initiation that costs an X25519.
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

// takeInitiations gives j the next initiation. Under load, it removes up to takeAtOnce initiations from the queue, and keeps all
// but the first in j.more for later. The caller holds mu.
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

// flooded reports whether initiations put the device under load. The load also continues for as long as the device sends so many
// cookie replies per second that half of the cores would be busy if each of these replies cost an X25519. The caller holds mu.
func (s *slowPath) flooded(d *Device, now int64) bool {
	many := uint64(max(s.cores*answersPerCore/2, 1))
	return s.initiations.UnderLoad(d.lookups.Crowded(), d.drops[DropCookieRequired].Load(), many, now)
}

// loaded reports whether the device is under load.
func (s *slowPath) loaded(d *Device, now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The number of cookie replies prolongs only the load from initiations, not the load from answers.
	initiations, answers := s.flooded(d, now), s.answers.UnderLoad(false, 0, 1, now)
	return initiations || answers
}

// close drops the queued work. Afterwards no work is queued any more.
func (s *slowPath) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.initiations, s.answers, s.peers, s.unreachables = messages{}, messages{}, nil, nil
}

// A worker is the state that a worker's goroutine keeps from one message to the next. The zero value is ready.
type worker struct {
	checker cookieChecker
	replies cookieReplies
	rested  int64 // when the worker last slept, or when it started
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
		runtime.Gosched() // lets ready receivers run, so that their packets do not wait until the slow path's queues are empty
	}
}

// visit does the work for which p was queued.
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
