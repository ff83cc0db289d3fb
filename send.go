package wireguard

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// The way out of a batch, on the goroutine that has it:
//
//	carry or Send ─▶ route, by peer ─▶ claim: the peer's turn, counters ─▶ seal ─▶ pack into trains ─▶ transmit
//	                            │ no session, or the turn is another's                                     │
//	                            ▼                                                                          ▼
//	                          stage ─▶ flush, when the turn is free and a session stands ◀────────────── account
//
// A peer's mutex is held in claim and account alone, once per batch each.

// A sending is what is known of a batch that is under way.
type sending struct {
	runs    []run
	second  *slab // where runs that stand apart are sealed; nil: none does
	trains  []Train
	trainOf []int // the run of each train

	lane    *lane
	own     lane   // the lane of a batch that comes from no source
	number  uint32 // in its lane
	follows bool   // a batch of its lane that is not done yet

	r         *running
	now       int64
	contended *peer // whose turn was another's

	fork *fork // of seal; nil: no batch was large enough yet
	part int   // messages in each of its parts
}

// reset drops all references and keeps the memory.
func (s *sending) reset() {
	clear(s.runs)
	clear(s.trains)
	s.r = nil
	s.runs, s.trains, s.trainOf = s.runs[:0], s.trains[:0], s.trainOf[:0]
	if s.second != nil {
		slabs.Put(s.second)
		s.second = nil
	}
}

var errDown = errors.New("wireguard: the device is down")

// awaitTurn holds a source back while another goroutine sends what the last batch left with a peer: a source that went on
// would only push its own packets out of the queue. It waits for what is staged now, not for what others go on staging:
// other peers' packets may come from the same source. Nothing is held meanwhile, and who has the turn waits for nobody.
//
// Only who has the turn takes packets out to send them, and it always ends with endTurn: no wakeup is missed.
func (d *Device) awaitTurn(b *Batch) {
	p := b.out.contended
	if p == nil {
		return
	}
	b.out.contended = nil
	p.mu.Lock()
	defer p.mu.Unlock()
	before, ahead := p.unstaged, uint32(p.staged.n)
	for p.turn != nil && p.unstaged-before < ahead {
		if p.turnFree == nil {
			p.turnFree = sync.NewCond(&p.mu)
		}
		p.turnFree.Wait()
	}
}

// endTurn gives p's turn back. p.mu is held.
func (p *peer) endTurn() {
	p.turn = nil
	if p.turnFree != nil {
		p.turnFree.Broadcast()
	}
}

// NewBatch makes an empty batch for Send.
func (d *Device) NewBatch() *Batch {
	b := new(Batch)
	d.lay(b)
	return b
}

// Send routes the packets of b, seals and sends them, and empties b, whatever happens. A packet without a session
// waits for one; a packet that cannot be sent is dropped and counted, and its inner sender told by ICMP where that
// helps. Send never waits for a handshake or for another sender, and keeps the order of the packets to each peer.
//
// Any number of goroutines may send, each with a batch of its own. The only errors are that the device is down or
// closed; the latter wraps net.ErrClosed.
func (d *Device) Send(b *Batch) error {
	if b.head != d.headroom {
		return d.sendForeign(b)
	}
	b.out.lane = &b.out.own
	if err := d.begin(b); err != nil {
		return err
	}
	b.seal()
	b.pack()
	d.finish(b)
	return nil
}

// begin routes the packets of b and claims counters for them, in its lane's order. Where the device is not up it drops them.
func (d *Device) begin(b *Batch) error {
	out := &b.out
	out.contended = nil
	if out.r = d.running.Load(); out.r == nil {
		d.drops.add(DropDown, b.Len())
		d.empty(b)
		if d.closing.Load() {
			return errClosed
		}
		return errDown
	}
	out.number = out.lane.next.Add(1) - 1
	out.follows = out.lane.done.Load() != out.number
	out.now = d.now()
	d.route(b, out.now)
	for i := range out.runs {
		d.claim(b, &out.runs[i], out.r, out.now)
	}
	b.layOut()
	return nil
}

// finish sends the trains of b and empties it.
func (d *Device) finish(b *Batch) {
	out := &b.out
	d.transmit(out.r, out.trains)
	b.tally()
	for i := range out.runs {
		if run := &out.runs[i]; run.k != nil && d.account(b, run, out.r, out.now) {
			d.flush(run.p, false)
		}
	}
	out.lane.advance()
	d.empty(b)
}

// empty makes b ready to be filled again.
func (d *Device) empty(b *Batch) {
	b.out.reset()
	b.Reset()
	d.lay(b)
}

// route makes a run of b's packets to each peer. A packet without a peer is dropped.
func (d *Device) route(b *Batch, now int64) {
	table := d.allowed.routes()
	var last netip.Addr
	var p *peer
	for i := range b.msgs {
		pkt := b.Packet(i)
		dst, ecn, ok := packet.Destination(pkt)
		if !ok {
			d.drops.add(DropMalformed, 1)
			continue
		}
		if dst != last {
			last, p = dst, table.peer(dst)
		}
		if p == nil {
			d.drops.add(DropNoRoute, 1)
			d.slow.unreachable(d, pkt, now)
			continue
		}
		b.msgs[i].tos = packet.OuterTOS(ecn)
		run := b.addToRun(p, i)
		if _, ok := packet.CarriedSession(pkt); ok {
			run.carries = true
		}
	}
}

// dropLoops drops the packets of a run that carry a message of a session with its peer: the path to the peer leads
// through the peer. Sealed again, such a packet would return larger, and as two once it needs fragments. The lock of the
// run's peer is held.
func (d *Device) dropLoops(b *Batch, run *run) {
	before := int16(none)
	for i := run.first; i != none; i = b.msgs[i].next {
		index, ok := packet.CarriedSession(b.Packet(int(i)))
		if !ok || !run.p.sends(index) {
			before = i
			continue
		}
		m := &b.msgs[i]
		m.run = none
		if before == none {
			run.first = m.next
		} else {
			b.msgs[before].next = m.next
		}
		run.n--
		run.size -= m.size()
		run.apart = true
		d.drop(run.p, DropLoop, 1)
	}
	run.last = before
}

// claim takes the turn of the run's peer and counters for its messages, or stages copies of its packets.
func (d *Device) claim(b *Batch, run *run, r *running, now int64) {
	p := run.p
	var out outbox
	p.mu.Lock()
	if b.out.follows && p.turn == b.out.lane && p.staged.n != 0 {
		// Others left packets meanwhile. Those go first, by who ends the turn; to copy this run behind them would be more work.
		p.mu.Unlock()
		b.out.lane.await(b.out.number)
		b.out.follows = false
		p.mu.Lock()
	}
	if run.carries {
		d.dropLoops(b, run)
	}
	switch {
	case run.n == 0:
	case p.removed:
		d.drop(p, DropNoSession, run.n)
	case d.running.Load() != r:
		d.drop(p, DropDown, run.n)
	case p.endpoint.IsZero():
		d.drop(p, DropNoEndpoint, run.n)
		for i := run.first; i != none; i = b.msgs[i].next {
			d.slow.unreachable(d, b.Packet(int(i)), now)
		}
	case p.turn != nil && (p.turn != b.out.lane || p.staged.n != 0):
		d.stageRun(b, run, now)
		b.out.contended = p
	case p.staged.n != 0:
		// What waits goes first. The session is new, or there is none.
		d.stageRun(b, run, now)
		p.flushOrInitiate(now, &out)
	case !p.sending(run.n, now, &out):
		d.stageRun(b, run, now)
	default:
		p.turn = b.out.lane
		p.under++
		b.number(run)
	}
	d.release(p, &out)
}

// number takes counters for a run from its peer's current session.
func (b *Batch) number(run *run) {
	p := run.p
	run.k, run.endpoint, run.heard = p.current, p.endpoint, p.heard
	run.counter = run.k.number(run.n)
}

// seal makes messages of the claimed packets, in place; a sender's, if they are many, with the help of idle cores. Those help
// a source by the next batch.
func (b *Batch) seal() {
	n := parts(len(b.msgs), b.end)
	if b.out.lane != &b.out.own || n < 2 {
		b.sealSome(0, len(b.msgs))
		return
	}
	if b.out.fork == nil {
		b.out.fork = newFork(b.sealPart)
	}
	b.out.part = (len(b.msgs) + n - 1) / n
	b.out.fork.run(n)
}

func (b *Batch) sealPart(i int) {
	b.sealSome(i*b.out.part, (i+1)*b.out.part)
}

// transmit sends trains. A socket that was closed meanwhile, because the port changes, gives way to the new one, which
// sends what the old one did not.
func (d *Device) transmit(r *running, trains []Train) {
	if len(trains) == 0 {
		return
	}
	s := r.socket.Load()
	s.Send(trains)
	now := r.socket.Load()
	if now == s {
		return
	}
	for from := 0; from < len(trains); from++ {
		to := from
		for ; to < len(trains) && errors.Is(trains[to].Err, net.ErrClosed); to++ {
			trains[to].Err = nil
		}
		if to > from {
			now.Send(trains[from:to])
			from = to // whose error is another one, or none
		}
	}
}

// account tells the peer what was sent, and gives its turn back. It reports whether packets were staged meanwhile.
func (d *Device) account(b *Batch, run *run, r *running, now int64) (staged bool) {
	p := run.p
	var out outbox
	p.mu.Lock()
	p.sent.Bytes += run.bytes
	p.sent.Packets += run.packets
	if run.failed > 0 {
		d.drop(p, DropSendFailed, run.failed)
	}
	if run.sourceGone && p.endpoint == run.endpoint {
		p.endpoint.forgetSource()
	}
	if d.running.Load() == r { // else its timers were stopped, and stay so
		p.sentOn(run.packets > 0, run.heard, now, &out)
	}
	if p.under--; p.under == 0 {
		staged = p.staged.n != 0
		p.endTurn()
	}
	d.release(p, &out)
	d.sendTrouble(p, &run.endpoint, run.err)
	return staged
}

// maxFlush is how many batches flush sends, before it leaves the rest to the slow path: who came to send must not be
// kept by others that go on staging.
const maxFlush = 16

// flush sends what is staged with p or, if keepalive is set and nothing is, an empty packet. If another goroutine has
// the turn, that one will. Without a session, one is asked for.
func (d *Device) flush(p *peer, keepalive bool) {
	r := d.running.Load()
	if r == nil {
		return
	}
	b := batches.Get().(*Batch)
	d.lay(b)
	b.out.lane = &b.out.own
	more := true
	for range maxFlush {
		if more = d.flushSome(p, keepalive, b, r); !more {
			break
		}
		keepalive = false
	}
	batches.Put(b)
	if more {
		d.slow.flush(d, p)
	}
}

// batches are those of flush and of sources.
var batches = sync.Pool{New: func() any { return new(Batch) }}

// flushSome sends one batch of what is staged with p, and reports whether there is more.
func (d *Device) flushSome(p *peer, keepalive bool, b *Batch, r *running) (more bool) {
	now := d.now()
	var out outbox
	p.mu.Lock()
	if p.removed || p.endpoint.IsZero() || d.running.Load() != r {
		d.release(p, &out)
		return false
	}
	if keepalive && p.staged.n == 0 {
		d.stage(p, nil, maxStaged)
	}
	if p.staged.n == 0 || p.turn != nil || !p.sending(1, now, &out) {
		d.release(p, &out)
		return false
	}
	p.turn = b.out.lane
	p.under++
	for p.staged.n > 0 && p.current.sendable(now, len(b.msgs)+1) && b.appendStaged(p.staged.head.b) {
		b.addToRun(p, len(b.msgs)-1)
		d.unstage(p.popStaged())
	}
	b.number(&b.out.runs[0])
	d.release(p, &out)
	b.layOut()

	b.sealSome(0, len(b.msgs)) // alone: it is seldom much
	b.pack()
	d.transmit(r, b.out.trains)
	b.tally()
	more = d.account(b, &b.out.runs[0], r, now)
	b.out.reset()
	b.Reset()
	return more
}
