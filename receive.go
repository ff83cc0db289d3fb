package wireguard

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/seed-86b749af/wireguard/internal/idle"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

// This is the path of the trains that one call of Receive returns, from the socket to the tunnel. The goroutine of the receiver
// does all this, but helpers on idle cores may open some of the data messages:
//
//	Receive ─▶ datagrams, by type ─▶ runs, by session ─▶ open, in place ─▶ inspect: length, source
//	                │                                                          │
//	                ▼                                                          ▼
//	       handshake messages: the slow path       sink ◀─ deliver ◀─ accept: replay, confirm, roam, timers
//
// For data messages, only accept takes a peer's mutex, once per run.

// An inbound is the memory in which one receiver collects messages and packets.
type inbound struct {
	table    routes[*peer]
	now      int64
	opened   []opened // the collected data messages, in the order of arrival
	bytes    int      // the total length of these messages
	runs     []inboundRun
	places   []int16   // hash table from session index to position in runs, plus 1; 0 means free; nil until there is a run
	packets  [][]byte  // the packets that accept has accepted and that are not delivered yet
	arrivals []arrival // handshake messages that are not queued yet
	fork     idle.Fork
}

func (d *Device) newInbound() *inbound {
	in := new(inbound)
	in.fork.Do, in.fork.Limit = in.openSome, d.helpers
	return in
}

// An inboundRun holds the data messages of one session that a receiver has collected, in the order of arrival, until acceptAll.
type inboundRun struct {
	session     // if the index has no session, or the session has expired, k is nil and the messages are dropped for reason
	index       uint32
	place       int16 // the position of the run's entry in inbound.places
	first, last int16 // the run's first and last message in inbound.opened; opened.next links its messages
	reason      DropReason
}

// An opened is a collected data message, before and after it is decrypted. An inbound may hold 1,024 of them, so an opened takes
// only half a cache line.
type opened struct {
	train         *Train     // the train in which the message arrived, in the memory of the socket
	at, size      int32      // offset and length of the message in train.Data
	n             int32      // length of the packet, without padding; 0 for a keepalive
	run           int16      // index in inbound.runs of the run to which the message belongs
	next          int16      // index in inbound.opened of the run's next message; the last message has the constant none
	reason        DropReason // why the packet is dropped, if it is authentic and ok is false
	authentic, ok bool
}

// message returns the whole message, in place.
func (o *opened) message() []byte { return o.train.Data[o.at:][:o.size:o.size] }

// counter returns the message's counter. Decrypting the message does not overwrite it.
func (o *opened) counter() uint64 { return binary.LittleEndian.Uint64(o.train.Data[o.at+8:]) }

// packet returns the packet inside an authentic message, in place.
func (o *opened) packet() []byte { return o.train.Data[o.at+messageHeader:][:o.n:o.n] }

const (
	// A receiver collects at most inboundMessages messages and about inboundBytes bytes before it opens and delivers
	// them. That is enough to find several messages from each of a hundred peers, and fits into a core's second-level
	// cache.
	inboundMessages = 1024
	inboundBytes    = 128 << 10
	inboundPlaces   = 2 * inboundMessages
	none            = -1 // the index of no message

	// A receiver stops collecting at enoughMessages messages already, if each run has at least enoughOfEach messages on average.
	// Further messages would only push earlier ones out of the first-level cache before they are opened.
	enoughMessages = 128
	enoughOfEach   = 16

	receiveErrorMin = time.Millisecond
	receiveErrorMax = time.Second
)

// startReceivers starts one goroutine for each receiver of s, a socket of r. Three wait groups count these goroutines, because
// three callers may wait at the same time: finishSocket waits for the goroutines of s, Down for those of r, and Close for all
// goroutines of the device. The caller holds d.mu.
func (d *Device) startReceivers(r *running, s *openSocket) {
	for _, receiver := range s.Receivers() {
		s.receivers.Add(1)
		r.receivers.Add(1)
		d.wg.Go(func() {
			defer r.receivers.Done()
			defer s.receivers.Done()
			d.receive(s, receiver)
		})
	}
}

// receive reads one receiver until its socket is closed.
func (d *Device) receive(s *openSocket, receiver Receiver) {
	in := d.newInbound()
	wait := receiveErrorMin
	for {
		trains, err := receiver.Receive()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				if !s.isClosed() {
					d.trouble(err) // the device has not closed the socket itself
				}
				return
			}
			// No other error is final: a network that is down may come back.
			if d.onceASecond(&d.troubled) {
				d.trouble(err)
			}
			select {
			case <-time.After(wait):
			case <-s.ctx.Done():
				return
			}
			wait = min(2*wait, receiveErrorMax)
			continue
		}
		wait = receiveErrorMin
		in.now, in.table = d.now(), d.allowed.routes()
		for i := range trains {
			d.receiveTrain(in, &trains[i])
		}
		d.slow.queue(d, in)
		d.acceptAll(in)
		in.table = routes[*peer]{} // otherwise an outdated table would stay in memory while nothing arrives
	}
}

// receiveTrain sorts the datagrams of t. It collects data messages in runs, and queues handshake messages on the slow
// path.
func (d *Device) receiveTrain(in *inbound, t *Train) {
	at := t.Headroom - t.Size
	for m := range t.Datagrams() {
		at += t.Size
		if len(m) < messageOverhead || binary.LittleEndian.Uint32(m) != typeData {
			d.receiveOther(in, m, t)
			continue
		}
		if in.isFull() {
			d.slow.queue(d, in) // so that handshake messages do not wait until acceptAll has delivered packets
			d.acceptAll(in)
		}
		run := d.runOf(in, binary.LittleEndian.Uint32(m[4:]))
		if run.k == nil {
			d.drops.add(run.reason, 1)
			continue
		}
		i := int16(len(in.opened))
		o := extend(&in.opened)
		o.train, o.at, o.size, o.run, o.next = t, int32(at), int32(len(m)), in.places[run.place]-1, none
		in.bytes += len(m)
		if run.first == none {
			run.first = i
		} else {
			in.opened[run.last].next = i
		}
		run.last = i
	}
}

// isFull reports whether the collected messages must be opened before others are collected.
func (in *inbound) isFull() bool {
	n := len(in.opened)
	return n == inboundMessages || len(in.runs) == inboundMessages || in.bytes >= inboundBytes ||
		n >= enoughMessages && n >= enoughOfEach*len(in.runs)
}

// runOf returns the run of the session with the given index. If there is no such run yet, runOf adds it.
func (d *Device) runOf(in *inbound, index uint32) *inboundRun {
	if n := len(in.runs); n > 0 && in.runs[n-1].index == index {
		return &in.runs[n-1]
	}
	if in.places == nil {
		in.places = make([]int16, inboundPlaces)
	}
	place := index % inboundPlaces // indices are random, so they need no hash function
	for ; in.places[place] != 0; place = (place + 1) % inboundPlaces {
		if run := &in.runs[in.places[place]-1]; run.index == index {
			return run
		}
	}
	run := extend(&in.runs)
	run.session, run.index, run.place, run.first = d.sessions.find(index), index, int16(place), none
	if run.k == nil {
		run.reason = DropUnknownIndex
	} else if run.k.age(in.now) >= rejectAfterTime {
		run.k, run.reason = nil, DropExpiredKey
	}
	in.places[place] = int16(len(in.runs))
	return run
}

// receiveOther handles a datagram that is not a data message.
func (d *Device) receiveOther(in *inbound, m []byte, t *Train) {
	kind := uint32(0)
	if len(m) >= 4 {
		kind = binary.LittleEndian.Uint32(m)
	}
	switch {
	case kind == typeInitiation && len(m) == initiationSize,
		kind == typeResponse && len(m) == responseSize,
		kind == typeCookie && len(m) == cookieSize:
		d.arrive(in, m, t.Endpoint)
	default:
		d.drops.add(DropUnknownMessage, 1)
	}
}

// acceptAll decrypts the collected messages, passes each run to inspect and accept, and delivers the packets that were accepted.
func (d *Device) acceptAll(in *inbound) {
	if len(in.runs) == 0 {
		return
	}
	in.fork.Run(len(in.opened), in.bytes)
	for i := range in.runs {
		run := &in.runs[i]
		in.places[run.place] = 0
		if run.first != none {
			in.inspect(run)
			d.accept(in, run)
		}
	}
	d.deliver(in)
	clear(in.runs)
	clear(in.opened) // the messages refer to the memory of the socket
	in.runs, in.opened, in.bytes = in.runs[:0], in.opened[:0], 0
}

// openSome opens the messages in.opened[from:end] in place.
func (in *inbound) openSome(from, end int) {
	for i := from; i < end; i++ {
		o := &in.opened[i]
		p, ok := in.runs[o.run].k.open(o.message())
		o.n, o.authentic, o.ok = int32(len(p)), ok, ok
	}
}

// inspect checks the length and the source address of each packet in the messages of a run. It needs no lock.
func (in *inbound) inspect(run *inboundRun) {
	var last netip.Addr
	allowed := false
	for i := run.first; i != none; i = in.opened[i].next {
		o := &in.opened[i]
		if !o.authentic || o.n == 0 {
			continue
		}
		pkt, src, ok := packet.Unpad(o.packet())
		if !ok {
			o.ok, o.reason = false, DropInnerMalformed
			continue
		}
		if src != last {
			last, allowed = src, in.table.peer(src) == run.p
		}
		o.n, o.ok, o.reason = int32(len(pkt)), allowed, DropSourceNotAllowed
	}
}

// accept drops those messages of a run that are forged or replayed, or that inspect has refused. If the peer or the session is
// gone, it drops all of them. It keeps the packets of the other messages for delivery, and updates the peer's counters and timers.
// The endpoint of the last authentic message becomes the peer's endpoint.
func (d *Device) accept(in *inbound, run *inboundRun) {
	p, k := run.p, run.k
	var from *Endpoint // the endpoint of the last authentic message; nil if there is none
	bytes, data, before := uint64(0), false, len(in.packets)
	var out outbox
	p.mu.Lock()
	stands := !p.removed && p.holds(k)
	for i := run.first; i != none; i = in.opened[i].next {
		switch o := &in.opened[i]; {
		case !o.authentic:
			d.drop(p, DropForged, 1)
		case !stands:
			d.drop(p, DropExpiredKey, 1)
		case !k.window.accept(o.counter()):
			d.drop(p, DropReplayed, 1)
		default:
			from, data = &o.train.Endpoint, data || o.size > messageOverhead
			if !o.ok {
				d.drop(p, o.reason, 1)
				continue
			}
			if bytes += uint64(o.size); o.size > messageOverhead {
				d.keep(in, o)
			}
		}
	}
	p.received.Bytes += bytes
	p.received.Packets += uint64(len(in.packets) - before)
	if from != nil {
		p.receive(k, from, data, in.now, &out)
	}
	d.release(p, &out)
}

// keep adds the packet of o to the packets to be delivered. It copies a congestion mark (ECN) of the outer packet to this packet.
// If this packet cannot show the mark, keep counts an ECN mismatch.
func (d *Device) keep(in *inbound, o *opened) {
	in.packets = append(in.packets, o.packet())
	if tos := o.train.TOS; tos&packet.ECNMask != 0 && packet.DecapsulateECN(tos, o.packet()) {
		d.ecnMismatches.Add(1)
	}
}

// deliver passes the accepted packets to the tunnel.
func (d *Device) deliver(in *inbound) {
	if len(in.packets) == 0 {
		return
	}
	n, err := d.tunnel.WritePackets(in.packets)
	if dropped := len(in.packets) - max(n, 0); dropped > 0 { // WritePackets may return any number
		d.drops.add(DropSinkFull, dropped)
		if err != nil {
			d.debug("sink", "err", err)
		}
	}
	clear(in.packets)
	in.packets = in.packets[:0]
}
