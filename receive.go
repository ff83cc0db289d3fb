package wireguard

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"
)

// The way in of a train, on the goroutine of its receiver:
//
//	Receive ─▶ datagrams, by type ─▶ runs of one session ─▶ open, in place ─▶ inspect: length, source
//	                │                                                             │
//	                ▼                                                             ▼
//	       handshake messages: the slow path          sink ◀─ deliver ◀─ accept: replay, confirm, roam, timers
//
// A peer's mutex is held in accept alone, once a run.

// An inbound is one receiver's scratch memory.
type inbound struct {
	table   routes
	now     int64
	opened  []opened
	packets [][]byte // accepted, and not yet delivered

	// The run that is being opened.
	data []byte
	size int
	k    *keypair
	fork *fork // nil: no run was large enough yet
	part int   // messages in each of its parts
}

// An opened is a data message that proved authentic.
type opened struct {
	packet  []byte // without padding; empty for a keepalive
	size    int    // of the message
	counter uint64
	reason  DropReason // why packet is not to be delivered, if ok is false
	ok      bool       // until inspect: authentic
}

const (
	deliverAt       = 128 // packets that go to the sink in one call, about
	receiveErrorMin = time.Millisecond
	receiveErrorMax = time.Second
)

// startReceivers starts to read s, a socket of r's. Who closes s waits for its receivers alone, Down for all of r's, and
// Close for all that the device ever had: each may come while another one still waits. d.mu is held.
func (d *Device) startReceivers(r *running, s *openSocket) {
	for _, receiver := range s.Receivers() {
		s.receivers.Add(1)
		r.receivers.Add(1)
		d.wg.Add(1)
		go func() {
			defer d.wg.Done()
			defer r.receivers.Done()
			defer s.receivers.Done()
			d.receive(s, receiver)
		}()
	}
}

// receive reads one receiver until its socket is closed.
func (d *Device) receive(s *openSocket, receiver Receiver) {
	var in inbound
	wait := receiveErrorMin
	for {
		trains, err := receiver.Receive()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				if !s.isClosed() {
					d.trouble(err) // the socket is gone, and nobody here closed it
				}
				return
			}
			// No error but that one is final: a network that is down comes back.
			if d.trouble(err); !s.sleep(wait) {
				return
			}
			wait = min(2*wait, receiveErrorMax)
			continue
		}
		wait = receiveErrorMin
		in.now, in.table = d.now(), d.allowed.routes()
		for i := range trains {
			d.receiveTrain(&in, &trains[i])
			if len(in.packets) >= deliverAt {
				d.deliver(&in)
			}
		}
		d.deliver(&in)
		in.table = routes{} // while nothing comes, it would keep an old table alive
	}
}

// receiveTrain takes the datagrams of t in order, data messages of one session together.
func (d *Device) receiveTrain(in *inbound, t *Train) {
	size := t.Size
	if size <= 0 {
		size = len(t.Data)
	}
	if len(t.Data) == 0 {
		d.drops.add(DropUnknownMessage, 1) // an empty datagram is one too
	}
	for at := 0; at < len(t.Data); {
		end := min(at+size, len(t.Data))
		m := t.Data[at:end:end]
		if len(m) < messageOverhead || binary.LittleEndian.Uint32(m) != typeData {
			d.receiveOther(m, t)
			at = end
			continue
		}
		index := binary.LittleEndian.Uint32(m[4:])
		from := at
		for at = end; at < len(t.Data); at = end {
			end = min(at+size, len(t.Data))
			m = t.Data[at:end]
			if len(m) < messageOverhead || binary.LittleEndian.Uint32(m) != typeData || binary.LittleEndian.Uint32(m[4:]) != index {
				break
			}
		}
		d.receiveRun(in, t.Data[from:at:at], size, index, &t.Endpoint, t.TOS)
	}
}

// receiveOther takes a datagram that is no data message.
func (d *Device) receiveOther(m []byte, t *Train) {
	kind := uint32(0)
	if len(m) >= 4 {
		kind = binary.LittleEndian.Uint32(m)
	}
	switch {
	case kind == typeInitiation && len(m) == initiationSize,
		kind == typeResponse && len(m) == responseSize,
		kind == typeCookie && len(m) == cookieSize:
		d.slow.message(d, m, t.Endpoint)
	default:
		d.drops.add(DropUnknownMessage, 1)
	}
}

// receiveRun takes data messages of one session: back to back, of the given size but for the last.
func (d *Device) receiveRun(in *inbound, data []byte, size int, index uint32, from *Endpoint, tos uint8) {
	n := (len(data) + size - 1) / size
	s := d.sessions.find(index)
	if s.k == nil {
		d.drops.add(DropUnknownIndex, n)
		return
	}
	if s.k.age(in.now) >= rejectAfterTime {
		d.drops.add(DropExpiredKey, n)
		return
	}
	in.data, in.size, in.k = data, size, s.k
	in.open(n)
	in.inspect(s.p)
	d.accept(in, s, from, tos, n-len(in.opened))
	in.data, in.k = nil, nil
}

// open opens the n messages of a run in place, with the help of idle cores, and keeps the authentic ones in in.opened.
func (in *inbound) open(n int) {
	in.opened = slices.Grow(in.opened[:0], n)[:n]
	if n := parts(n, len(in.data)); n < 2 {
		in.openSome(0, len(in.opened))
	} else {
		if in.fork == nil {
			in.fork = newFork(in.openPart)
		}
		in.part = (len(in.opened) + n - 1) / n
		in.fork.run(n)
	}
	in.opened = slices.DeleteFunc(in.opened, func(o opened) bool { return !o.ok })
}

func (in *inbound) openPart(i int) {
	in.openSome(i*in.part, min((i+1)*in.part, len(in.opened)))
}

// openSome opens messages from to end-1.
func (in *inbound) openSome(from, end int) {
	for i := from; i < end; i++ {
		at := i * in.size
		m := in.data[at:min(at+in.size, len(in.data))]
		m = m[:len(m):len(m)]
		o := &in.opened[i]
		*o = opened{size: len(m), counter: binary.LittleEndian.Uint64(m[8:])}
		o.packet, o.ok = in.k.open(m)
	}
}

// inspect checks the packets inside the opened messages, before the peer is locked.
func (in *inbound) inspect(p *peer) {
	var last netip.Addr
	allowed := false
	for i := range in.opened {
		o := &in.opened[i]
		if len(o.packet) == 0 {
			continue
		}
		packet, src, ok := unpad(o.packet)
		if !ok {
			o.ok, o.reason = false, DropInnerMalformed
			continue
		}
		if src != last {
			last, allowed = src, in.table.peer(src) == p
		}
		o.packet, o.ok, o.reason = packet, allowed, DropSourceNotAllowed
	}
}

// accept gives the opened messages to their peer, and keeps the packets that are to be delivered.
func (d *Device) accept(in *inbound, s session, from *Endpoint, tos uint8, forged int) {
	p, k := s.p, s.k
	first := len(in.packets)
	authentic, data := false, false
	var out outbox
	p.mu.Lock()
	d.drop(p, DropForged, forged)
	if p.removed || !p.holds(k) {
		d.drop(p, DropExpiredKey, len(in.opened))
		clear(in.opened)
		in.opened = in.opened[:0]
	}
	for i := range in.opened {
		o := &in.opened[i]
		if !k.window.accept(o.counter) {
			d.drop(p, DropReplayed, 1)
			continue
		}
		authentic = true
		data = data || o.size > messageOverhead
		if !o.ok {
			d.drop(p, o.reason, 1)
			continue
		}
		p.received.Bytes += uint64(o.size)
		if o.size > messageOverhead {
			p.received.Packets++
			in.packets = append(in.packets, o.packet)
		}
	}
	if authentic {
		p.receive(k, from, data, in.now, &out)
	}
	d.release(p, &out)
	clear(in.opened) // the memory is the socket's

	if tos&ecnMask != ecnNotECT {
		for _, packet := range in.packets[first:] {
			if decapsulateECN(tos, packet) {
				d.ecnMismatches.Add(1)
			}
		}
	}
}

// deliver hands the accepted packets to the sink.
func (d *Device) deliver(in *inbound) {
	if len(in.packets) == 0 {
		return
	}
	n, err := d.tunnel.WritePackets(in.packets)
	if dropped := len(in.packets) - max(n, 0); dropped > 0 { // a sink may return any number
		d.drops.add(DropSinkFull, dropped)
		if err != nil {
			d.debug("sink", "err", err)
		}
	}
	clear(in.packets)
	in.packets = in.packets[:0]
}
