package netstack

import (
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Who calls WritePacket, and what they hold meanwhile (read in gVisor's source):
//
//   - a user's Write, Read, Close or Connect of a TCP connection, one of gVisor's TCP processors (as many goroutines as
//     GOMAXPROCS), or a timer: each holds the lock of its connection, so that one connection's packets come in order;
//   - a user's Write to a UDP or ICMP endpoint: holds nothing;
//   - the goroutine that called Net.WritePackets: resets, echo replies and ICMP errors are made inline there, holding
//     nothing.
//
// The first kind may wait for room: nothing that Net.WritePackets does needs a connection's lock, see errorQueue. The
// last kind must not, or two devices of one process could wait for each other in a ring. What a goroutine is cannot be
// asked, but what it brings can: data of a TCP connection never comes from inside Net.WritePackets, so that is what
// waits here, and UDPConn.Write waits before it enters gVisor. Everything else is dropped when the queue is full.

const (
	// maxQueued is how many bytes may wait for the goroutine that sends: a millisecond's worth on a fast machine. It
	// is payload that TCP keeps for retransmission in any case.
	maxQueued = 1 << 20
	// maxQueuedUrgent is the limit of those that cannot wait, so that acknowledgements are not lost to bulk data.
	maxQueuedUrgent = maxQueued + 256<<10
	// queuedOverhead is the memory of a queued packet besides its bytes, roughly.
	queuedOverhead = 256
	// maxSpare is the length of a queue whose memory is kept while the link is idle.
	maxSpare = 256
)

// A link is the one network interface of a stack: gVisor's way out to the device, and the device's way in.
//
// Out: whoever comes first takes the turn and carries its packet through Device.Send, on its own goroutine. Who finds
// the turn taken leaves its packet in the queue and goes away; the holder hands a queue that it finds at the end of its
// turn to a goroutine, which sends it in full batches and ends when the queue is empty. So an idle link has no
// goroutine, a lone sender no hop, and under load sealing gets a core of its own.
type link struct {
	mtu   int
	owner *Net

	mu     sync.Mutex // guards the rest of this group; innermost
	exit   *exit      // nil: not attached yet
	busy   bool       // somebody has the turn
	refuse bool       // data: nobody waits any more
	closed bool
	queue  []*stack.PacketBuffer // in order; each holds a reference
	spare  []*stack.PacketBuffer // the memory of the queue before this one
	queued int                   // bytes in queue, with their overhead
	room   sync.Cond             // the queue got shorter, or nobody waits any more
	signal chan struct{}         // closed at the same time, for datagrams; nil: none waits
	acks   acks

	running sync.WaitGroup // drain, endHold and deliverErrors

	dispatcher atomic.Pointer[stack.NetworkDispatcher] // nil: the interface is gone
	endpoint4  stack.NetworkEndpoint
	endpoint6  stack.NetworkEndpoint
	errors     errorQueue

	drops drops
}

func newLink(mtu int, owner *Net) *link {
	l := &link{mtu: mtu, owner: owner}
	l.room.L = &l.mu
	return l
}

// attach opens the way out. A second device replaces the first.
func (l *link) attach(o outlet) {
	x := &exit{to: o, batch: o.NewBatch(), drops: &l.drops}
	l.mu.Lock()
	l.exit = x
	l.mu.Unlock()
}

// WritePacket takes a packet from gVisor. It is called by the stack in place of a queueing discipline, and concurrently.
// The caller keeps its reference.
func (l *link) WritePacket(p *stack.PacketBuffer) tcpip.Error {
	l.mu.Lock()
	if err := l.usable(); err != nil {
		l.mu.Unlock()
		return err
	}
	if l.holdsBack(p) {
		l.mu.Unlock()
		return nil
	}
	for l.busy {
		if queued, err := l.enqueue(p); queued || err != nil {
			l.mu.Unlock()
			return err
		}
	}
	x := l.exit
	l.busy = true
	l.mu.Unlock()

	x.put(p)
	x.flush()

	l.mu.Lock()
	if len(l.queue) == 0 {
		l.busy = false
	} else {
		l.running.Add(1) // with the turn held, which close waits for
		go l.drain()
	}
	l.mu.Unlock()
	return nil
}

// enqueue leaves p for the holder of the turn, or waits for room if p may wait: then it reports false, and the turn may
// be free. l.mu is held, but for the wait.
func (l *link) enqueue(p *stack.PacketBuffer) (queued bool, err tcpip.Error) {
	if isTCPData(p) && !l.refuse {
		if l.queued >= maxQueued {
			l.room.Wait()
			return false, l.usable()
		}
	} else if l.queued >= maxQueuedUrgent {
		l.drops.full.Add(1)
		return false, &tcpip.ErrNoBufferSpace{}
	}
	l.push(p.IncRef())
	return true, nil
}

// push appends p to the queue, which takes over a reference. l.mu is held.
func (l *link) push(p *stack.PacketBuffer) {
	l.queue = append(l.queue, p)
	l.queued += p.Size() + queuedOverhead
}

// usable is why nothing can be sent, or nil. l.mu is held.
func (l *link) usable() tcpip.Error {
	switch {
	case l.closed:
		return &tcpip.ErrClosedForSend{}
	case l.exit == nil:
		l.drops.detached.Add(1)
		return &tcpip.ErrNetworkUnreachable{}
	}
	return nil
}

// isTCPData reports whether p carries payload of a connection. gVisor marks the segments of a connection for
// segmentation, however short they are, but neither SYNs nor the resets that no connection stands behind.
func isTCPData(p *stack.PacketBuffer) bool {
	return p.GSOOptions.Type != stack.GSONone && p.Data().Size() > 0
}

// drain has the turn, sends what is queued, and gives the turn back when nothing is left.
func (l *link) drain() {
	defer l.running.Done()
	for {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.busy = false
			if cap(l.queue) > maxSpare {
				l.queue = nil
			}
			if cap(l.spare) > maxSpare {
				l.spare = nil
			}
			l.mu.Unlock()
			return
		}
		ps, x := l.queue, l.exit
		l.queue, l.spare, l.queued = l.spare[:0], nil, 0
		l.wake()
		l.mu.Unlock()

		for i, p := range ps {
			x.put(p)
			p.DecRef()
			ps[i] = nil
		}
		x.flush()

		l.mu.Lock()
		l.spare = ps[:0]
		l.mu.Unlock()
	}
}

// full is nil if a packet of a datagram endpoint would find room in the queue, or else a channel that is closed when it
// is worth asking again. Who waits for it must hold no lock of gVisor's.
func (l *link) full() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.busy || l.queued < maxQueued || l.refuse {
		return nil
	}
	if l.signal == nil {
		l.signal = make(chan struct{})
	}
	return l.signal
}

// wake releases all who wait for room. l.mu is held.
func (l *link) wake() {
	l.room.Broadcast()
	if l.signal != nil {
		close(l.signal)
		l.signal = nil
	}
}

// refuseData releases all who wait for room, and lets nobody wait from now on: data is dropped as everything else is
// when the queue is full. What aborting connections has to say still goes out.
func (l *link) refuseData() {
	l.mu.Lock()
	l.refuse = true
	l.wake()
	l.mu.Unlock()
}

// close lets nothing more out. The holder of the turn may still be in Device.Send.
func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	ps := l.queue
	l.queue, l.spare, l.queued = nil, nil, 0
	l.dropHeld()
	l.mu.Unlock()
	for _, p := range ps {
		p.DecRef()
	}
	l.errors.close()
}

// WritePackets is the same for those who hold the link itself, as packet sockets do.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for i, p := range pkts.AsSlice() {
		if err := l.WritePacket(p); err != nil {
			return i, err
		}
	}
	return pkts.Len(), nil
}

// Attach tells the link where received packets go; nil when the interface is removed.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}

func (l *link) IsAttached() bool { return l.dispatcher.Load() != nil }

// Capabilities says that received checksums are checked here; see deliver for what is not. The other direction is left
// to gVisor: segments of a connection come with the pseudo-header's sum alone in any case, since segmentation implies
// it, and a fragmented datagram could not be summed here.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// GSOMaxSize is chosen so that the segments of one large packet make one train: a UDP datagram run holds at most 65,507
// bytes and 64 segments, and each segment gets 32 bytes longer. It counts in the shortest payload that full
// segments have (IPv6, all TCP options).
func (l *link) GSOMaxSize() uint32 {
	const (
		train    = 65507
		overhead = 32
		headers  = header.IPv6MinimumSize + header.TCPHeaderMaximumSize
	)
	segments := max(1, min(64, train/(l.mtu+overhead)))
	payload := segments * (l.mtu - headers)
	// gVisor takes this off before it fills a packet.
	return uint32(min(payload, 65535-header.TCPTotalHeaderMaximumSize-1) + header.TCPTotalHeaderMaximumSize + 1)
}

func (l *link) MTU() uint32                             { return uint32(l.mtu) }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) SetOnCloseAction(func())                 {}
func (l *link) Wait()                                   {}
func (l *link) Close()                                  {}

// An outlet is what the link needs of a wireguard.Device.
type outlet interface {
	NewBatch() *wireguard.Batch
	Send(*wireguard.Batch) error
}

var (
	_ outlet                   = (*wireguard.Device)(nil)
	_ stack.LinkEndpoint       = (*link)(nil)
	_ stack.GSOEndpoint        = (*link)(nil)
	_ stack.QueueingDiscipline = (*link)(nil)
)

// drops counts what the link did not carry.
type drops struct {
	detached, full, malformed, checksum, errors atomic.Uint64
}
