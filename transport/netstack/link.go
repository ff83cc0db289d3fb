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

// According to gVisor's source, WritePacket has these callers, which hold these locks:
//
//   - a user's goroutine in Write, Read, Close or Connect of a TCP connection, one of gVisor's TCP processors (as many goroutines
//     as GOMAXPROCS), or a timer: each holds the lock of its connection, which keeps the packets of one connection in order;
//   - a user's goroutine in Write of a UDP or ICMP endpoint: it holds no lock;
//   - the goroutine that called Net.WritePackets: it sends resets, echo replies and ICMP errors itself, and holds no lock.
//
// A caller of the first kind may wait while the queue is full, because nothing in Net.WritePackets needs a connection's lock; see
// errorQueue. A caller of the last kind must not wait, because two devices of one process could then wait for each other.
// WritePacket does not know the kind of its caller, but it can inspect the packet: Net.WritePackets never sends data of a TCP
// connection. So WritePacket waits only with TCP data: if the queue has maxQueued bytes or more, or earlier senders still wait.
// UDPConn.Write waits before it calls gVisor. WritePacket drops all other packets if the queue has maxQueuedUrgent bytes or more.
//
// In WebAssembly all goroutines share one thread, and nothing preempts them. If another goroutine holds the lock of a connection,
// one of gVisor's TCP processors polls the connection in a loop and never yields. The goroutine that holds the lock would then
// never run again if it waited or yielded in WritePacket. So in WebAssembly, WritePacket never waits, and never sends a TCP
// packet itself, but leaves it to the goroutine of drain. It puts TCP data into the queue however full the queue is. The buffers
// of TCP limit how much that is, because TCP keeps the bytes that it has sent in its buffers. For TCP packets without payload, the
// limit is maxQueuedUrgent, as elsewhere.

// oneThread reports whether all goroutines share one thread.
const oneThread = runtime.GOARCH == "wasm"

const (
	// maxQueued is how many bytes may wait in the queue. A fast machine sends that many bytes in a millisecond. They need little
	// extra memory, because TCP keeps their payload for retransmission anyway.
	maxQueued = 1 << 20
	// maxQueuedUrgent is the limit, in bytes, for packets whose sender must not wait. It is higher than maxQueued, so the link
	// still queues acknowledgements when bulk data has filled the queue.
	maxQueuedUrgent = maxQueued + 256<<10
	// queuedOverhead is roughly how many bytes of memory a queued packet needs besides its own bytes.
	queuedOverhead = 256
	// maxSpare is the number of elements up to which an idle link keeps the memory of its queue of packets and of its list of
	// waiters.
	maxSpare = 1024
)

// A link is the only network interface of a stack. It connects gVisor and the device in both directions.
//
// Outbound, only one goroutine at a time may call Device.Send: the goroutine that has the turn. If no goroutine has the turn, a
// sender takes it and calls Device.Send with its own packet. Otherwise the sender puts its packet into the queue and returns. If
// the queue is not empty when a sender has sent its own packet, the sender passes the turn to a new goroutine. That goroutine
// sends the queued packets in full batches and ends when the queue is empty. So an idle link has no goroutine, a lone sender
// causes no switch of goroutines, and under load the device encrypts on a separate core.
type link struct {
	mtu   int
	owner *Net

	mu      sync.Mutex // guards the other fields of this group; taken last
	exit    *exit      // the outbound path to the device; nil until a device is attached
	busy    bool       // a goroutine has the turn
	refuse  bool       // senders of TCP data and of datagrams no longer wait
	closed  bool
	queue   []*stack.PacketBuffer // packets in the order of sending; the queue owns a reference to each
	spare   []*stack.PacketBuffer // the empty slice of a former queue, for its memory
	queued  int                   // bytes in queue, with their overhead
	waiters []chan struct{}       // channels that wake waiting senders of TCP data, in order; each has a buffer of one
	waiter  int                   // index in waiters of the first sender that still waits; the elements before are nil
	placing bool                  // place has woken a sender that does not yet run again
	signal  chan struct{}         // closed when the queue may have space for datagrams; nil while no sender of datagrams waits
	acks    acks

	accepting sync.WaitGroup // counts calls of waitingConns.empty
	running   sync.WaitGroup // counts calls of drain, endHold, deliverErrors, expire and revive

	own     port       // the interface of the Net's own stack
	forward *forwarder // nil without Config.Forward
	errors  errorQueue

	fragments reassembler

	peers      atomic.Pointer[router] // the device that was attached last; nil if none, or if it knows no peers
	complaints errorlimit.Limit       // limits the ICMP errors that this end sends

	windows windows
	cookies *tcpip.StatCounter // counts connections of the Net's own stack that began with a SYN cookie

	drops drops
}

func newLink(mtu int, owner *Net) *link {
	l := &link{mtu: mtu, owner: owner, cookies: new(tcpip.StatCounter)}
	l.windows.setMTU(mtu)
	l.fragments.patience = reassemblyTime
	return l
}

// waiterPool recycles the channels of link.waiters.
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

// WritePacket takes a packet from gVisor. The stack calls WritePacket concurrently, because the link is its own queueing
// discipline. The caller keeps its reference to p.
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
		// The queue is not empty, so close has not run yet. So this Add comes before Net.Close waits for running.
		l.running.Add(1)
		go l.drain()
	}
	l.mu.Unlock()
	if oneThread {
		runtime.Gosched() // otherwise a goroutine that sends datagrams in a loop would never let another goroutine run
	}
	return nil
}

// enqueue puts p into the queue, for the goroutine that has the turn. If p carries TCP data, and the queue is full or other
// senders wait, enqueue instead waits until place lets the sender continue. It then returns false, because the turn may now be
// free, and the caller tries again with placed set. Senders continue in the order in which they began to wait, and each one calls
// place for the next. l.mu is held, except during the wait.
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
			l.place() // let the next sender continue at once, because the order no longer matters
		}
		return false, err
	}
	l.push(p.IncRef())
	l.place()
	return true, nil
}

// place lets the sender that has waited longest continue, if the queue has space or the turn is free. It does nothing while the
// sender that an earlier call of place has woken does not yet run again. l.mu is held.
func (l *link) place() {
	if l.placing || !l.waits() || l.busy && l.queued >= maxQueued && !l.refuse {
		return
	}
	l.placing = true
	w := l.waiters[l.waiter]
	l.waiters[l.waiter] = nil
	if l.waiter++; 2*l.waiter > len(l.waiters) {
		l.waiters, l.waiter = slices.Delete(l.waiters, 0, l.waiter), 0 // append reuses this memory
	}
	w <- struct{}{}
}

// waits reports whether a sender of TCP data waits because the queue is full. l.mu is held.
func (l *link) waits() bool { return l.waiter < len(l.waiters) }

// push appends p to the queue, which takes over a reference of the caller. l.mu is held.
func (l *link) push(p *stack.PacketBuffer) {
	l.queue = append(l.queue, p)
	l.queued += p.Size() + queuedOverhead
}

// usable returns an error that says why the link cannot send, or nil if it can. l.mu is held.
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

// isTCPData reports whether p carries payload of a TCP connection. gVisor marks every segment of a connection for segmentation,
// even if the segment is short. It does not mark SYNs, or resets that belong to no connection.
func isTCPData(p *stack.PacketBuffer) bool {
	return p.GSOOptions.Type != stack.GSONone && p.Data().Size() > 0
}

// takeTurn takes the turn if no goroutine has it and the queue is not empty. It reports whether it took the turn; the caller must
// then start drain. l.mu is held.
func (l *link) takeTurn() (mine bool) {
	if l.busy || len(l.queue) == 0 {
		return false
	}
	l.busy = true
	l.running.Add(1)
	return true
}

// drain runs on the goroutine that has the turn. It sends the queued packets, and gives the turn up when the queue is empty.
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

// full returns nil if the queue has space for a datagram. Otherwise it returns a channel that is closed when the queue may have
// space. A goroutine that waits for the channel must not hold a lock of gVisor's.
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

// wake wakes the sender of TCP data that has waited longest, and all senders of datagrams that wait. l.mu is held.
func (l *link) wake() {
	l.place()
	if l.signal != nil {
		close(l.signal)
		l.signal = nil
	}
}

// refuseData wakes all senders that wait because the queue is full. From then on, no sender waits, and WritePacket drops data
// like all other packets while the queue is full. The link still sends the packets with which connections abort.
func (l *link) refuseData() {
	l.mu.Lock()
	l.refuse = true
	l.wake()
	l.mu.Unlock()
}

// close stops all sending. The goroutine that has the turn may still be in Device.Send.
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

// WritePackets calls WritePacket for each packet. Callers that bypass the queueing discipline use it, such as packet sockets.
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

// Capabilities says that the link checks received checksums; see deliver for the exceptions. gVisor computes the checksums of
// sent packets. In the segments of a connection, gVisor computes only the sum of the pseudo-header, because it marks them for
// segmentation. The link computes the rest. gVisor computes the whole checksums of datagrams, because the link could not do that
// for a datagram that gVisor has cut into fragments.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// GSOMaxSize returns the maximal size of a large packet, in bytes. The limit makes sure that the link can send all segments of a
// large packet in one train of tunnel packets. A train holds at most 65,507 bytes and 64 packets, and the tunnel adds 32 bytes to
// each segment. The computation assumes the shortest payload of a full segment (IPv6, all TCP options).
func (l *link) GSOMaxSize() uint32 {
	const (
		train    = 65507
		overhead = 32
		headers  = header.IPv6MinimumSize + header.TCPHeaderMaximumSize
	)
	segments := max(1, min(64, train/(l.mtu+overhead)))
	payload := segments * (l.mtu - headers)
	// gVisor subtracts TCPTotalHeaderMaximumSize and one more byte before it fills a packet.
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
