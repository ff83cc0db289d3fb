package wireguard

import (
	"errors"
	"net"
	"net/netip"
	"sync"
)

// The way out of a batch, on the goroutine that has it:
//
//	carry or Send ─▶ route ─▶ claim: the peer's turn, counters ─▶ seal, in place ─▶ pack into trains ─▶ transmit
//	                            │ no session, or the turn is another's                                     │
//	                            ▼                                                                          ▼
//	                          stage ─▶ flush, when the turn is free and a session stands ◀────────────── account
//
// A peer's mutex is held in claim and account alone, once a batch each.

// A run is packets of one batch, one after the other in it, to one peer.
type run struct {
	p        *peer
	first, n int // messages of the batch

	k        *keypair // nil: not claimed, there is nothing to send
	counter  uint64   // of the first message
	endpoint Endpoint
	heard    uint32 // the peer's, when the send began

	// The outcome.
	packets, bytes uint64 // keepalives are no packets
	failed         int
	err            error // why; the first one
	sourceGone     bool
}

// A sending is what is known of a batch that is under way.
type sending struct {
	runs    []run
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
func (d *Device) NewBatch() *Batch { return &Batch{mtu: d.tunnel.MTU()} }

// Send routes the packets of b, seals and sends them, and empties b, whatever happens. A packet without a session
// waits for one; a packet that cannot be sent is dropped and counted, and its inner sender told by ICMP where that
// helps. Send never waits for a handshake or for another sender, and keeps the order of the packets to each peer.
//
// Any number of goroutines may send, each with a batch of its own. The only errors are that the device is down or
// closed; the latter wraps net.ErrClosed.
func (d *Device) Send(b *Batch) error {
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
	b.mtu = d.tunnel.MTU()
}

// route makes runs of b's packets. What has no place in one is dropped.
func (d *Device) route(b *Batch, now int64) {
	table := d.allowed.routes()
	var last netip.Addr
	var p *peer
	for i := range b.msgs {
		packet := b.Packet(i)
		dst, ecn, ok := destination(packet)
		if !ok {
			d.drops.add(DropMalformed, 1)
			continue
		}
		if dst != last {
			last, p = dst, table.peer(dst)
		}
		if p == nil {
			d.drops.add(DropNoRoute, 1)
			d.slow.unreachable(d, packet, now)
			continue
		}
		if index, ok := carriedSession(packet); ok && d.loops(p, index) {
			continue
		}
		b.msgs[i].tos = outerTOS(ecn)
		b.addToRun(p, i)
	}
}

// loops drops a packet that carries a message of the session with that index, if it is one of p's: the way to p leads
// through p. Sealed again it would come back larger, and as two once it needs fragments.
func (d *Device) loops(p *peer, index uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.sends(index) {
		return false
	}
	d.drop(p, DropLoop, 1)
	return true
}

// addToRun puts message i, which goes to p, into the last run or a new one.
func (b *Batch) addToRun(p *peer, i int) {
	if n := len(b.out.runs); n > 0 {
		if last := &b.out.runs[n-1]; last.p == p && last.first+last.n == i {
			last.n++
			return
		}
	}
	b.out.runs = append(b.out.runs, run{p: p, first: i, n: 1})
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
	switch {
	case p.removed:
		d.drop(p, DropNoSession, run.n)
	case d.running.Load() != r:
		d.drop(p, DropDown, run.n)
	case p.endpoint.IsZero():
		d.drop(p, DropNoEndpoint, run.n)
		for i := run.first; i < run.first+run.n; i++ {
			d.slow.unreachable(d, b.Packet(i), now)
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

// isMuch reports whether what is to be sealed of b is worth an idle core's help.
func (b *Batch) isMuch() bool {
	cost := 0
	for i := range b.out.runs {
		if run := &b.out.runs[i]; run.k != nil {
			first, last := b.msgs[run.first], b.msgs[run.first+run.n-1]
			cost += sealCost(run.n, int(last.at-first.at)+last.size())
		}
	}
	return cost >= shareCost
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

// sealSome seals messages from to to-1, as far as there are.
func (b *Batch) sealSome(from, to int) {
	for i := range b.out.runs {
		run := &b.out.runs[i]
		if run.k == nil {
			continue
		}
		for j := max(from, run.first); j < min(to, run.first+run.n); j++ {
			m := b.msgs[j]
			at, end := int(m.at), int(m.at)+m.size()
			clear(b.slab[at+messageHeader+int(m.n) : end-messageTag])
			run.k.seal(b.slab[at:end:end], run.counter+uint64(j-run.first))
		}
	}
}

// Limits of one train: those of UDP segmentation offload.
const (
	maxTrainBytes    = 65507 // the largest IPv4 UDP payload
	maxTrainMessages = 64
)

// pack makes trains of the sealed messages. A train's messages lie next to each other, and are of the same size but
// for the last one, which may be smaller.
func (b *Batch) pack() {
	s := &b.out
	for i := range s.runs {
		run := &s.runs[i]
		if run.k == nil {
			continue
		}
		for j := run.first; j < run.first+run.n; {
			head := b.msgs[j]
			size, end, n := head.size(), int(head.at)+head.size(), 1
			for j++; j < run.first+run.n && n < maxTrainMessages; j++ {
				m := b.msgs[j]
				if m.size() > size || m.tos != head.tos || end+m.size()-int(head.at) > maxTrainBytes {
					break
				}
				end += m.size()
				n++
				if m.size() < size {
					j++
					break
				}
			}
			s.trains = append(s.trains, Train{
				Data: b.slab[head.at:end:end], Size: size, Endpoint: run.endpoint, TOS: head.tos,
			})
			s.trainOf = append(s.trainOf, i)
		}
	}
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

// tally adds up for each run what became of its trains.
func (b *Batch) tally() {
	for i := range b.out.trains {
		t := &b.out.trains[i]
		run := &b.out.runs[b.out.trainOf[i]]
		n := t.Len()
		if t.Err != nil {
			run.failed += n
			if run.err == nil {
				run.err = t.Err
			}
		} else {
			if t.Size > messageOverhead {
				run.packets += uint64(n)
			}
			run.bytes += uint64(len(t.Data))
		}
		if run.endpoint.Source.IsValid() && !t.Endpoint.Source.IsValid() {
			run.sourceGone = true
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
	b.mtu = d.tunnel.MTU()
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
		d.unstage(p.popStaged())
	}
	b.out.runs = append(b.out.runs, run{p: p, n: len(b.msgs)})
	b.number(&b.out.runs[0])
	d.release(p, &out)

	b.sealSome(0, len(b.msgs)) // alone: it is seldom much
	b.pack()
	d.transmit(r, b.out.trains)
	b.tally()
	more = d.account(b, &b.out.runs[0], r, now)
	b.out.reset()
	b.Reset()
	return more
}
