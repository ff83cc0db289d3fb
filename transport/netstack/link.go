package netstack

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/errorlimit"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// The callers of WritePacket, and the locks that they hold (from gVisor's source):
//
//   - a user's Write, Read, Close or Connect of a TCP connection, one of gVisor's TCP processors (as many goroutines as
//     GOMAXPROCS), or a timer: each holds the lock of its connection, so that one connection's packets arrive in order;
//   - a user's Write to a UDP or ICMP endpoint: holds nothing;
//   - the goroutine that called Net.WritePackets: it makes resets, echo replies and ICMP errors inline and holds
//     nothing.
//
// The first kind may wait for room, because nothing in Net.WritePackets needs a connection's lock; see errorQueue. The
// last kind must not wait, or two devices of one process could wait for each other in a ring. WritePacket cannot ask
// which kind its caller is, but it can look at the packet: data of a TCP connection never comes from inside
// Net.WritePackets. So WritePacket waits with TCP data, and UDPConn.Write waits before it enters gVisor. A full queue
// drops everything else.
//
// In WebAssembly all goroutines share one thread, and nothing preempts them. If another goroutine holds the lock of a connection, a
// gVisor processor looks at the connection again and again and never yields. So the goroutine that holds the lock would never run
// again if it waited or yielded in WritePacket. So WritePacket always leaves a packet of TCP in the queue there, and never waits.
// The buffers of TCP bound the queue, because TCP keeps in them what it has sent.

// oneThread reports whether all goroutines share one thread.
const oneThread = runtime.GOARCH == "wasm"

const (
	// maxQueued is how many bytes may wait for the sending goroutine. A fast machine sends them in a millisecond. TCP
	// keeps their payload for retransmission in any case.
	maxQueued = 1 << 20
	// maxQueuedUrgent is the limit for packets whose sender cannot wait, so that bulk data does not push out
	// acknowledgements.
	maxQueuedUrgent = maxQueued + 256<<10
	// queuedOverhead is roughly the memory of a queued packet besides its bytes.
	queuedOverhead = 256
	// maxSpare is the length of the longest queue, of packets or of waiters, whose memory the link keeps while it is idle.
	maxSpare = 1024
)

// A link is the only network interface of a stack. It connects gVisor and the device in both directions.
//
// Outbound, the first sender takes the turn and carries its packet through Device.Send on its own goroutine. A sender
// that finds the turn taken puts its packet into the queue and returns. If the holder finds a queue at the end of its
// turn, it passes the turn to a new goroutine. That goroutine sends the queue in full batches and ends when the queue
// is empty. So an idle link has no goroutine, a lone sender needs no switch of goroutines, and under load sealing runs
// on a separate core.
type link struct {
	mtu   int
	owner *Net

	mu      sync.Mutex // guards the rest of this group; innermost
	exit    *exit      // nil until attached
	busy    bool       // a goroutine has the turn
	refuse  bool       // senders of data no longer wait
	closed  bool
	queue   []*stack.PacketBuffer // in order; each holds a reference
	spare   []*stack.PacketBuffer // the memory of the previous queue
	queued  int                   // bytes in queue, with their overhead
	waiters []chan struct{}       // senders that wait for room, in order; each has room for one element
	waiter  int                   // how many of waiters no longer wait; their elements are nil
	placing bool                  // a sender has left waiters and does not run yet
	signal  chan struct{}         // closed when there may be room for datagrams; nil while no sender of datagrams waits
	acks    acks

	accepting sync.WaitGroup // calls of waitingConns.empty
	running   sync.WaitGroup // calls of drain, endHold, deliverErrors, expire and revive

	own     port       // the interface of the Net's own stack
	forward *forwarder // nil without Config.Forward
	errors  errorQueue

	fragments reassembler

	peers      atomic.Pointer[router] // of the device that was attached last; nil before, and for an outlet that knows no peers
	complaints errorlimit.Limit       // of the ICMP errors that this end sends

	windows windows
	cookies *tcpip.StatCounter // connections of the Net's own stack that began with a SYN cookie

	drops drops
}

func newLink(mtu int, owner *Net) *link {
	l := &link{mtu: mtu, owner: owner, cookies: new(tcpip.StatCounter)}
	l.windows.setMTU(mtu)
	l.fragments.patience = reassemblyTime
	return l
}

// waiterPool has the channels of link.waiters.
var waiterPool = sync.Pool{New: func() any { return make(chan struct{}, 1) }}

// attach opens the outbound path. A second device replaces the first.
func (l *link) attach(o outlet) {
	x := &exit{to: o, batch: o.NewBatch(), drops: &l.drops, windows: &l.windows}
	l.mu.Lock()
	l.exit = x
	l.mu.Unlock()
	if r, ok := o.(router); ok {
		l.peers.Store(&r)
	}
}

// attached reports whether a device was ever attached.
func (l *link) attached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.exit != nil
}

// WritePacket takes a packet from gVisor. The stack calls it concurrently, because the link is its own queueing
// discipline. The caller keeps its reference.
func (l *link) WritePacket(p *stack.PacketBuffer) tcpip.Error {
	if l.noteSegment(p) {
		return nil
	}
	l.noteSYN(p)
	if complains(p) && !l.mayComplain(addr(p.Network().DestinationAddress())) {
		return nil
	}
	l.mu.Lock()
	if err := l.usable(); err != nil {
		l.mu.Unlock()
		return err
	}
	if l.holdsBack(p) {
		l.mu.Unlock()
		return nil
	}
	if oneThread && !l.busy && p.TransportProtocolNumber == header.TCPProtocolNumber {
		l.busy = true
		l.running.Add(1)
		go l.drain()
	}
	for placed := false; l.busy; placed = true {
		if queued, err := l.enqueue(p, placed); queued || err != nil {
			l.mu.Unlock()
			return err
		}
	}
	x := l.exit
	l.busy = true
	l.place()
	x.first = l.acks.appendFinals(x.first)
	l.mu.Unlock()

	x.putFirst()
	x.put(p)
	x.flush()

	l.mu.Lock()
	if len(l.queue) == 0 {
		l.busy = false
		l.wake()
	} else {
		l.running.Add(1) // before close, which empties the queue, and so before Net.Close waits for running
		go l.drain()
	}
	l.mu.Unlock()
	if oneThread {
		runtime.Gosched() // otherwise a goroutine that sends datagrams in a loop would never let another one run
	}
	return nil
}

// enqueue leaves p for the holder of the turn. If p carries TCP data, and the queue is full or other senders wait, enqueue waits
// until the sender gets a place. It then reports false, because the turn may be free. Senders get their places in the order in
// which they came, and each one gives the next sender its place. placed says that the sender of p has its place already. l.mu is
// held, except during the wait.
func (l *link) enqueue(p *stack.PacketBuffer, placed bool) (queued bool, err tcpip.Error) {
	switch {
	case !isTCPData(p) || l.refuse:
		if l.queued >= maxQueuedUrgent {
			l.drops.full.Add(1)
			return false, &tcpip.ErrNoBufferSpace{}
		}
	case !oneThread && !placed && (l.queued >= maxQueued || l.placing || l.waits()):
		w := waiterPool.Get().(chan struct{})
		l.waiters = append(l.waiters, w)
		l.mu.Unlock()
		<-w
		waiterPool.Put(w)
		l.mu.Lock()
		l.placing = false
		err := l.usable()
		if err != nil || l.refuse {
			l.place() // the order no longer matters
		}
		return false, err
	}
	l.push(p.IncRef())
	l.place()
	return true, nil
}

// place gives a place to the sender that waits longest, if there is room or the turn is free. At most one sender has a place that
// it has not used yet. l.mu is held.
func (l *link) place() {
	if l.placing || !l.waits() || l.busy && l.queued >= maxQueued && !l.refuse {
		return
	}
	l.placing = true
	w := l.waiters[l.waiter]
	l.waiters[l.waiter] = nil
	if l.waiter++; 2*l.waiter > len(l.waiters) {
		l.waiters, l.waiter = slices.Delete(l.waiters, 0, l.waiter), 0 // append uses this memory again
	}
	w <- struct{}{}
}

// waits reports whether a sender waits for room. l.mu is held.
func (l *link) waits() bool { return l.waiter < len(l.waiters) }

// push appends p to the queue, which takes a reference. l.mu is held.
func (l *link) push(p *stack.PacketBuffer) {
	l.queue = append(l.queue, p)
	l.queued += p.Size() + queuedOverhead
}

// usable returns why the link cannot send, or nil. l.mu is held.
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
// segmentation, however short they are. It marks neither SYNs nor resets without a connection.
func isTCPData(p *stack.PacketBuffer) bool {
	return p.GSOOptions.Type != stack.GSONone && p.Data().Size() > 0
}

// takeTurn takes the turn if nobody has it and the queue is not empty. It reports whether the caller has to drain the queue. l.mu
// is held.
func (l *link) takeTurn() (mine bool) {
	if l.busy || len(l.queue) == 0 {
		return false
	}
	l.busy = true
	l.running.Add(1)
	return true
}

// drain holds the turn, sends the queue, and gives the turn back when the queue is empty.
func (l *link) drain() {
	defer l.running.Done()
	for {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.busy = false
			l.wake()
			if cap(l.queue) > maxSpare {
				l.queue = nil
			}
			if cap(l.spare) > maxSpare {
				l.spare = nil
			}
			if cap(l.waiters) > maxSpare && !l.waits() {
				l.waiters, l.waiter = nil, 0
			}
			l.mu.Unlock()
			return
		}
		l.queue = l.acks.appendFinals(l.queue)
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

// full returns nil if a packet of a datagram endpoint would find room in the queue. Otherwise it returns a channel that
// is closed when there may be room. A goroutine that waits for the channel must not hold a lock of gVisor's.
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

// wake wakes the sender of TCP data that waits longest, and all senders of datagrams. l.mu is held.
func (l *link) wake() {
	l.place()
	if l.signal != nil {
		close(l.signal)
		l.signal = nil
	}
}

// refuseData wakes all senders that wait for room, and lets no sender wait from now on. A full queue then drops data
// like everything else. Packets of aborting connections are still sent.
func (l *link) refuseData() {
	l.mu.Lock()
	l.refuse = true
	l.wake()
	l.mu.Unlock()
}

// close stops all sending. The holder of the turn may still be in Device.Send.
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
	l.closeFragments()
}

// WritePackets calls WritePacket for each packet. It is for callers that hold the link itself, such as packet sockets.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for i, p := range pkts.AsSlice() {
		if err := l.WritePacket(p); err != nil {
			return i, err
		}
	}
	return pkts.Len(), nil
}

// Attach tells the link where to deliver received packets. d is nil when the interface is removed.
func (l *link) Attach(d stack.NetworkDispatcher) { l.own.attach(d) }

func (l *link) IsAttached() bool { return l.own.dispatcher.Load() != nil }

// Capabilities says that the link checks received checksums; see deliver for the exceptions. gVisor computes the
// checksums of sent packets. Segments of a connection have only the pseudo-header's sum in any case, because
// segmentation implies that. The link could not compute the checksum of a datagram that gVisor has cut into fragments.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// GSOMaxSize returns a size at which the segments of one large packet make one train. A train holds at most 65,507
// bytes and 64 segments, and each segment gets 32 bytes longer. The count assumes the shortest payload of a full
// segment (IPv6, all TCP options).
func (l *link) GSOMaxSize() uint32 {
	const (
		train    = 65507
		overhead = 32
		headers  = header.IPv6MinimumSize + header.TCPHeaderMaximumSize
	)
	segments := max(1, min(64, train/(l.mtu+overhead)))
	payload := segments * (l.mtu - headers)
	// gVisor subtracts these headers before it fills a packet.
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

// An outlet is the part of a wireguard.Device that the link needs.
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

// drops counts the packets that the link dropped.
type drops struct {
	detached, full, malformed, checksum, errors atomic.Uint64
	martian, hairpin, flows, datagrams          atomic.Uint64
	fragments, connections, forged              atomic.Uint64
}
