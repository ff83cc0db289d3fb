package wireguard

import (
	"net/netip"
	"runtime"
	"sync"

	"github.com/seed-86b749af/wireguard/internal/layout"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

// The outbound path of a load, on the goroutine that has it:
//
//	carry or Send ─▶ route, by peer ─▶ claim: counters, the peer's queue ─▶ seal ─▶ lead: pack into trains, send, in order
//	                                     │ no session                          ▲
//	                                     ▼                                     │
//	                                   stage ─▶ flush, once there is a session ╯
//
// A run gets its counters and its place in its peer's order under the peer's mutex, in claim. The order depends on
// nothing else. Sealing needs no lock: several goroutines that send to one peer seal at the same time. One goroutine at
// a time leads a peer: it sends its own run, and then the runs at the head of the peer's queue that were sealed
// meanwhile. A goroutine that seals a run behind others leaves that run to the leader. If no goroutine leads when the
// head of the queue is sealed, the goroutine that sealed it leads.

// A sendQueue holds the runs of one peer that have their counters and wait behind others. The peer's mutex guards it.
type sendQueue struct {
	head, tail *run
	n          int32 // how many of the runs come from calls of Send; the others come from a source
	led        bool  // a goroutine or the slow path leads: it sends the runs, from the head on
}

const (
	// maxQueued is how many runs of senders may wait in one peer's queue. Each keeps a slab of at most 129 KiB, with up to
	// 128 packets. The runs of a source do not count: the source is held back instead; see feed.
	maxQueued    = 32
	maxCollected = 8 << 10 // a sender's run of up to this many bytes is copied to the end of the queue if it has to wait
	maxRounds    = 16      // rounds of sending by one leading goroutine before the slow path takes over
)

// number takes counters for a run of l from the peer's current session, and gives the run its place in the order. If no
// run is ahead of it, the caller's goroutine leads the peer from here on. p.mu is held.
func (p *peer) number(l *load, run *run) {
	q := &p.queue
	behind := q.led || q.head != nil
	if behind && l.feed == nil && run.Size <= maxCollected {
		p.collect(l, run)
		return
	}
	run.k, run.endpoint, run.heard = p.current, p.endpoint, p.heard
	run.counter = run.k.number(run.N)
	if run.leads = !behind; behind {
		q.push(run)
		l.refs.Add(1)
	} else {
		q.led = true
	}
}

// collect copies a small run that is behind others to the end of the queue. The leading goroutine seals it together with
// other small runs, and sends them as a train. That costs less than a slab and a train for each run. p.mu is held.
func (p *peer) collect(l *load, small *run) {
	r := p.queue.tail
	if p.queue.head == nil || !r.collects || r.k != p.current || r.endpoint != p.endpoint ||
		!r.load.Takes(&small.Run) {
		c := newLoad(l.Headroom)
		c.r = l.r
		r = c.newRun(p)
		r.k, r.endpoint, r.counter, r.collects, r.sealed = p.current, p.endpoint, p.current.counter, true, true
		p.queue.push(r)
	}
	r.heard = p.heard
	p.current.number(small.N)
	for i := small.First; i != layout.None; i = l.Messages[i].Next {
		r.load.Put(&r.Run, l.Packet(int(i)), int(l.Messages[i].Padded), l.Messages[i].TOS)
	}
}

// isFull reports whether the queue has no room for a sender's run.
func (q *sendQueue) isFull(r *run) bool {
	return q.n >= maxQueued && !(q.tail.collects && r.Size <= maxCollected && q.tail.load.Takes(&r.Run))
}

func (q *sendQueue) push(r *run) {
	if q.head == nil {
		q.head = r
	} else {
		q.tail.next = r
	}
	q.tail = r
	if r.queued = true; r.load.feed == nil {
		q.n++
	}
}

// pop takes the head out of the queue. The caller gets the run's reference to its load.
func (q *sendQueue) pop() *run {
	r := q.head
	if q.head, r.next, r.queued = r.next, nil, false; r.load.feed == nil {
		q.n--
	}
	return r
}

// popSealed takes the sealed runs at the head of the queue, which can be sent, and appends them to lot.
func (q *sendQueue) popSealed(lot []*run) []*run {
	for q.head != nil && q.head.sealed {
		lot = append(lot, q.pop())
	}
	return lot
}

// dropQueue drops the runs in p's queue, because the device goes down or the peer is removed. A goroutine that still seals
// such a run finds that the run is no longer queued. p.mu is held.
func (d *Device) dropQueue(p *peer, why DropReason) {
	for p.queue.head != nil {
		r := p.queue.pop()
		d.drop(p, why, r.N)
		r.load.release()
	}
}

// NewBatch makes an empty batch for Send.
func (d *Device) NewBatch() *Batch {
	b := new(Batch)
	b.layFor(d)
	return b
}

// Send routes the packets of b, seals and sends them, and always empties b. A packet to a peer without a session waits
// for one. A packet that cannot be sent is dropped and counted, and its sender inside the tunnel is told with ICMP where
// that helps. Send never waits for a handshake or for another sender, and keeps the order of the packets to each peer.
// If another goroutine is sending to the same peer, that goroutine may send the packets after Send has returned.
//
// Any number of goroutines may send, each with its own batch. The only errors are ErrDown, and one that wraps
// net.ErrClosed once the device is closed.
func (d *Device) Send(b *Batch) error {
	if b.headroom != d.headroom {
		return d.sendForeign(b)
	}
	l := b.takeLoad()
	b.layFor(d)
	if l == nil {
		l = newLoad(d.headroom)
	}
	defer l.release()
	if err := d.claimAll(l); err != nil {
		return err
	}
	l.seal(d.helpers)
	d.finish(l)
	if l.full {
		runtime.Gosched() // a sender that loops should not keep the leading goroutine from running
	}
	return nil
}

// carry reads packets from f and sends them. It ends when f fails, or when other goroutines carry all that f reads.
func (d *Device) carry(f *feed) {
	b := batches.Get().(*Batch)
	defer batches.Put(b)
	for held := f.Take(); held; {
		f.Await(f.Most() + 1)
		b.layFor(d)
		err := f.ReadPackets(b)
		shared, number := false, f.reads.Add(1)
		if l := b.takeLoad(); l != nil {
			l.feed = f
			f.Begin()
			if d.claimAll(l) == nil {
				if shared = err == nil && l.isMuch() && f.Wanted(); shared && f.Offer() {
					d.wg.Go(f.carry)
				}
				l.seal(d.helpers)
				d.finish(l)
				if shared {
					f.Brought(f.reads.Load() != number) // whether another goroutine read meanwhile
				}
			}
			l.release()
		}
		switch {
		case shared:
			held = f.Take()
		case err != nil: // f stays taken, so that nobody reads it again
			f.Await(0)
			d.sourceEnded(err)
			return
		}
	}
}

// batches holds empty batches for sources.
var batches = sync.Pool{New: func() any { return new(Batch) }}

// claimAll routes the packets of l and numbers them. If the device is not up, it drops them.
func (d *Device) claimAll(l *load) error {
	if l.r = d.running.Load(); l.r == nil {
		d.drops.add(DropDown, len(l.Messages))
		if d.closing.Load() {
			return errClosed
		}
		return ErrDown
	}
	l.now = d.now()
	d.route(l)
	for i := range l.runs {
		d.claim(l, &l.runs[i])
	}
	if d.pool.Bytes() > d.maxStagedBytes {
		d.relieve()
	}
	l.layOut()
	return nil
}

// route groups the packets of l into one run per peer. A packet without a peer is dropped.
func (d *Device) route(l *load) {
	table := d.allowed.routes()
	var last netip.Addr
	var p *peer // the peer that last is routed to
	var to *run // the run of the previous packet
	for i := range l.Messages {
		pkt := l.Packet(i)
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
			d.slow.unreachable(d, pkt, l.now)
			continue
		}
		if mtu := p.mtu.Load(); mtu != 0 && !d.passes(l, i, int(mtu), p) {
			continue
		}
		l.Messages[i].TOS = packet.OuterTOS(ecn)
		if to == nil || to.p != p {
			to = l.runTo(p)
		}
		l.Add(&to.Run, i)
		if _, ok := packet.CarriedSession(pkt); ok {
			to.carries = true
		}
	}
}

// dropLoops drops each packet of a run that carries a WireGuard message from this device to the peer of the run. Such a packet
// shows that the path to the peer leads through the tunnel to the peer. If it were sealed again, it would return larger, and
// as two packets once it needs fragments. The lock of the run's peer is held.
func (d *Device) dropLoops(l *load, run *run) {
	l.Remove(&run.Run, func(pkt []byte) bool {
		index, ok := packet.CarriedSession(pkt)
		if ok = ok && run.p.sends(index); ok {
			d.drop(run.p, DropLoop, 1)
		}
		return ok
	})
}

// claim numbers the run and gives it its place in the order, or stages copies of its packets.
func (d *Device) claim(l *load, run *run) {
	p := run.p
	var out outbox
	p.mu.Lock()
	if run.carries {
		d.dropLoops(l, run)
	}
	switch {
	case run.N == 0:
	case p.removed:
		d.drop(p, DropNoSession, run.N)
	case d.running.Load() != l.r:
		d.drop(p, DropDown, run.N)
	case !p.endpoint.IsValid():
		d.drop(p, DropNoEndpoint, run.N)
		for i := run.First; i != layout.None; i = l.Messages[i].Next {
			d.slow.unreachable(d, l.Packet(int(i)), l.now)
		}
	case l.feed == nil && p.queue.isFull(run):
		l.full = true
		d.drop(p, DropSendQueueFull, run.N)
	case p.staged.N != 0:
		// Staged packets are sent first. The session is new, or does not exist yet.
		d.stageRun(l, run)
		p.flushOrInitiate(l.now, &out)
	case !p.sending(run.N, l.now, &out):
		d.stageRun(l, run)
	default:
		p.number(l, run)
	}
	d.release(p, &out)
}

// finish hands in the sealed runs of l, and sends the runs of the peers that this goroutine leads.
func (d *Device) finish(l *load) {
	for i := range l.runs {
		run := &l.runs[i]
		switch {
		case run.k == nil:
		case run.leads:
			l.lot = append(l.lot, run)
		default:
			l.lot = run.handIn(l.lot)
		}
	}
	d.lead(l)
}

// handIn marks a run in a queue as sealed. If the run is the head and no goroutine leads the peer, the caller leads the
// peer from here on: handIn appends to lot the runs that the caller is to send.
func (run *run) handIn(lot []*run) []*run {
	p := run.p
	p.mu.Lock()
	defer p.mu.Unlock()
	run.sealed = true
	if run.queued && !p.queue.led && p.queue.head == run {
		p.queue.led = true
		lot = p.queue.popSealed(lot)
	}
	return lot
}

// lead sends the runs of l.lot, whose peers this goroutine leads, and then the runs that were sealed behind them
// meanwhile.
func (d *Device) lead(l *load) {
	for round := 1; len(l.lot) > 0; round++ {
		for _, run := range l.lot {
			if run.collects {
				run.load.layOut()
				run.load.seal(d.helpers)
			}
		}
		d.sendLot(l)
		if round > 1 {
			l.now = d.now()
		}
		for i, j := 0, 0; i < len(l.lot); i = j {
			for j = i + 1; j < len(l.lot) && l.lot[j].p == l.lot[i].p; j++ {
			}
			d.account(l, l.lot[i:j], round == maxRounds)
		}
		clear(l.lot)
		l.lot, l.more = l.more, l.lot[:0]
	}
}

// sendLot sends the trains of l.lot in one call. A run is sent on a socket of the running device for which it was routed:
// after Down and Up, old runs are given to the closed socket, which refuses them.
func (d *Device) sendLot(l *load) {
	for lot := l.lot; len(lot) > 0; {
		r, n := lot[0].load.r, 0
		for ; n < len(lot) && lot[n].load.r == r; n++ {
			l.trains = lot[n].pack(l.trains)
		}
		d.transmit(r, l.trains)
		trains := l.trains
		for _, run := range lot[:n] {
			for i := range trains[:run.trains] {
				run.tally(&trains[i])
			}
			trains = trains[run.trains:]
		}
		clear(l.trains)
		l.trains, lot = l.trains[:0], lot[n:]
	}
}

// transmit sends trains. If the socket is closed meanwhile because another one has replaced it, the new socket sends the
// trains that the old one refused.
func (d *Device) transmit(r *running, trains []Train) {
	if len(trains) == 0 {
		return
	}
	s := r.socket.Load()
	s.Send(trains)
	for now := r.socket.Load(); now != s; now = r.socket.Load() {
		if s = now; !s.sendRefused(trains) {
			return
		}
	}
}

// account tells a peer what was sent of its runs, and appends to l.more the runs that were sealed behind them meanwhile.
// If enough is set, the slow path sends these instead, so that runs of others do not keep this goroutine any longer.
func (d *Device) account(l *load, runs []*run, enough bool) {
	p, last := runs[0].p, runs[len(runs)-1]
	var out outbox
	data := false
	p.mu.Lock()
	for _, run := range runs {
		p.sent.Bytes += run.bytes
		p.sent.Packets += run.packets
		p.noteSend(run.err)
		data = data || run.packets > 0
		d.drop(p, DropSendFailed, run.failed)
		if run.sourceGone && p.endpoint == run.endpoint {
			p.endpoint.forgetSource()
		}
	}
	if d.running.Load() == last.load.r { // otherwise the peer's timers were stopped, and stay stopped
		p.sentOn(data, last.heard, l.now, &out)
	}
	more := len(l.more)
	p.handed = enough && p.queue.head != nil && p.queue.head.sealed
	if !p.handed {
		l.more = p.queue.popSealed(l.more)
		p.queue.led = len(l.more) > more
	}
	d.release(p, &out)
	for _, run := range runs {
		if d.sendTrouble(p, &run.endpoint, run.err); !run.leads {
			run.load.release()
		}
	}
}

// resume continues to lead p where another goroutine stopped.
func (d *Device) resume(p *peer) {
	l := newLoad(d.headroom)
	defer l.release()
	l.now = d.now()
	p.mu.Lock()
	l.lot = p.queue.popSealed(l.lot)
	p.queue.led = len(l.lot) > 0
	p.mu.Unlock()
	d.lead(l)
}
