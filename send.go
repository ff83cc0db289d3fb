package wireguard

import (
	"net/netip"
	"runtime"
	"sync"

	"github.com/seed-86b749af/wireguard/internal/layout"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

// A load is the packets of one batch, and a run is those packets of a load that go to one peer. This is the path of a load from
// the tunnel to the socket, on the goroutine that has the load:
//
//	carry or Send ─▶ route, by peer ─▶ claim: counters, the peer's queue ─▶ seal ─▶ lead: pack into trains, send, in order
//	                                     │ no session                          ▲
//	                                     ▼                                     │
//	                                   stage ─▶ flush, once there is a session ╯
//
// The method claim locks the peer's mutex and gives a run its counters. The runs to a peer are sent in the order in which they got
// their counters. Sealing needs no lock: several goroutines that send to one peer can seal at the same time. One goroutine at a
// time leads a peer: it sends its own run, and then the runs at the head of the peer's queue that were sealed meanwhile. If a
// goroutine has sealed a run behind other runs, it does not send this run itself: the goroutine that leads sends it. If no
// goroutine leads when the run at the head of the queue is sealed, the goroutine that sealed this run leads from then on.

// A sendQueue holds the runs to one peer that have their counters, and that wait until the runs before them are sent. The peer's
// mutex guards the queue.
type sendQueue struct {
	head, tail *run
	n          int32 // the number of runs in the queue that do not come from a source
	led        bool  // whether a goroutine leads the peer, or the slow path is about to lead it
}

const (
	// maxQueued is how many runs from calls of Send may wait in one peer's queue. Each run keeps the memory of its load in use,
	// which is a slab of 129 KiB for up to 128 packets. The runs from a source do not count: the device stops reading a source
	// while too many of its loads wait; see feed.
	maxQueued    = 32
	maxCollected = 8 << 10 // a run from Send of at most this many bytes is copied into another run if it has to wait
	maxRounds    = 16      // after this many rounds in lead, the slow path leads the peer instead of the calling goroutine
)

// number gives the packets of a run of l the next counters of the peer's current session. The runs to the peer are sent in the
// order of their counters. If no other run is ahead of this one, the calling goroutine leads the peer from then on. The caller
// holds p.mu.
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

// collect copies the packets of a small run that has to wait into a collecting run at the end of the queue. The leading goroutine
// seals the packets of several small runs there, and sends them as one train. That costs less than a slab and a train for each
// small run. The caller holds p.mu.
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

// isFull reports whether the queue is too long to accept r, a run from a call of Send.
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

// pop removes the first run from the queue. The caller then has to release the run's reference to its load.
func (q *sendQueue) pop() *run {
	r := q.head
	if q.head, r.next, r.queued = r.next, nil, false; r.load.feed == nil {
		q.n--
	}
	return r
}

// popSealed removes the sealed runs from the head of the queue, up to the first run that is not sealed, and appends them to the
// slice lot.
func (q *sendQueue) popSealed(lot []*run) []*run {
	for q.head != nil && q.head.sealed {
		lot = append(lot, q.pop())
	}
	return lot
}

// dropQueue drops the runs in p's queue, because the device goes down or the peer is removed. A goroutine that is still sealing
// such a run finds afterwards that the run is no longer in the queue. The caller holds p.mu.
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

// Send routes the packets of b to peers, encrypts the packets, and sends them. It always empties b. A packet to a peer without a
// session waits for a session. Send drops and counts a packet that cannot be sent. If the packet is too big, if its destination
// belongs to no peer, or if the peer has no endpoint, the packet's sender inside the tunnel gets an ICMP error. Send never waits
// for a handshake or for another sender, and keeps the order of the packets to each peer. If another goroutine is sending to the
// same peer, that goroutine may send the packets after Send has returned.
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

// carry reads packets from f and sends them. It ends when f fails, or when other goroutines are enough to carry the packets of f.
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
					f.Brought(f.reads.Load() != number) // whether another goroutine has called ReadPackets meanwhile
				}
			}
			l.release()
		}
		switch {
		case shared:
			held = f.Take()
		case err != nil: // this goroutine keeps the right to read f, so that no other one reads f again
			f.Await(0)
			d.sourceEnded(err)
			return
		}
	}
}

// batches holds empty batches for the goroutines that read sources.
var batches = sync.Pool{New: func() any { return new(Batch) }}

// claimAll routes the packets of l, and numbers or stages them. If the device is not up, it drops them.
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
	var p *peer // the peer to which packets with the destination last go; nil if there is none
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

// dropLoops drops the packets of a run that carry data messages from this device to the same peer. Such a packet shows that the
// host routes the messages to the peer back into the tunnel. Without dropLoops, the packet would return larger each time, and as
// two packets once it has to be fragmented. The caller holds the mutex of the run's peer.
func (d *Device) dropLoops(l *load, run *run) {
	l.Remove(&run.Run, func(pkt []byte) bool {
		index, ok := packet.CarriedSession(pkt)
		if ok = ok && run.p.sends(index); ok {
			d.drop(run.p, DropLoop, 1)
		}
		return ok
	})
}

// claim numbers the run. If the peer has no session, or other packets are staged already, claim stages copies of the run's
// packets instead.
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
		// The packets that are staged already are sent first. The session is new, or does not exist yet.
		d.stageRun(l, run)
		p.flushOrInitiate(l.now, &out)
	case !p.sending(run.N, l.now, &out):
		d.stageRun(l, run)
	default:
		p.number(l, run)
	}
	d.release(p, &out)
}

// finish marks the runs of l as sealed, and sends the runs to the peers that this goroutine leads.
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

// handIn marks a run in a queue as sealed. If the run is at the head and no goroutine leads the peer, the calling goroutine leads
// the peer from then on: handIn appends to lot the runs that this goroutine has to send.
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

// sendLot sends the runs of l.lot. Some of these runs may have been routed before a Down, and others after the next Up. sendLot
// sends consecutive runs of the same running state in one call. It gives runs from before the Down to the socket that Down
// closed, and this socket refuses them.
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

// account updates the counters and timers of the peer to which runs were sent. It also appends to l.more the runs to this peer
// that were sealed meanwhile. If enough is true, the slow path sends those runs instead, so that this goroutine does not go on
// sending the runs of other goroutines.
func (d *Device) account(l *load, runs []*run, enough bool) {
	p, last := runs[0].p, runs[len(runs)-1]
	var out outbox
	data := false
	p.mu.Lock()
	for _, run := range runs {
		p.sent.Bytes += run.bytes
		p.sent.Packets += run.packets
		p.noteSend(&run.endpoint, run.err)
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

// resume leads p, after another goroutine has stopped leading p: it sends the sealed runs at the head of p's queue.
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
