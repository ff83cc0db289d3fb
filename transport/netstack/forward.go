package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// A Forwarding has the limits and timers of the flows that [Config.Forward] decides about. The zero value of each field means its
// default.
//
// The limits Pending and Flows are divided among the peers: a peer may begin another flow while it has fewer flows than all peers
// together may still begin. So a single peer gets at most half of the limit, and the other half stays free for other peers. However
// many flows other peers have, each peer may have 16 pending flows and 64 flows in total.
type Forwarding struct {
	// Pending is how many flows may wait for the program's decision or, after Accept, for the end of TCP's handshake. Each of these
	// flows takes a goroutine. Zero means 4096. While so many flows wait, the Net drops each packet that would begin another flow,
	// and counts the packet in Stats.FlowsDropped. The sender then repeats the packet.
	Pending int

	// Flows is how many flows may exist, pending ones included. Zero means 65536. While so many flows exist, a packet that would
	// begin another flow is dropped and counted as for Pending. A TCP connection counts until the program has closed it and gVisor
	// has finished it.
	Flows int

	// UDPIdle is how long a UDP flow may carry nothing in either direction before the Net closes it. Zero means 5 minutes, as
	// RFC 4787 recommends. Other values must be at least 2 minutes; a program that wants a shorter time closes the flow itself.
	UDPIdle time.Duration

	// Hairpin lets through flows whose destination is in the AllowedIPs of the peer that began them. By default, the Net drops
	// the packets of such flows and counts them in Stats.Hairpin: if the program sent them into the tunnel, the same peer would
	// get them back. Set Hairpin if a peer has the AllowedIPs 0.0.0.0/0 or ::/0, and the program never sends such packets into
	// the tunnel.
	Hairpin bool
}

const (
	defaultPending = 4096
	defaultFlows   = 65536
	defaultUDPIdle = 5 * time.Minute
	// RFC 4787, REQ-5: "A NAT UDP mapping timer MUST NOT expire in less than two minutes".
	minUDPIdle = 2 * time.Minute

	leastPending = 16
	leastFlows   = 64

	// maxWaiting is how many bytes of packets may wait in total: for decisions of the program, and in UDPSources. leastWaiting is
	// how many of these bytes each peer may always have.
	maxWaiting   = 16 << 20
	leastWaiting = 64 << 10

	// maxBacklog is how many datagrams of a UDP flow wait for the program's decision.
	maxBacklog = 16

	// decideLimit is how long Config.Forward may take to decide before the flow's Context ends.
	decideLimit = time.Minute
	// handshakeLimit is how long Accept waits for the end of TCP's handshake.
	handshakeLimit = 30 * time.Second
	// sweepEvery is the interval at which the forwarder looks for flows that are idle, are finished, or have a source that now
	// belongs to another peer.
	sweepEvery = time.Second
)

// check returns all errors in f.
func (f *Forwarding) check() (errs []error) {
	wrong := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("netstack: Config.Forwarding."+format, args...))
	}
	if f.Pending < 0 {
		wrong("Pending is %d: want at least 1, or 0 for %d", f.Pending, defaultPending)
	}
	if f.Flows < 0 {
		wrong("Flows is %d: want at least 1, or 0 for %d", f.Flows, defaultFlows)
	}
	if f.UDPIdle != 0 && f.UDPIdle < minUDPIdle {
		wrong("UDPIdle is %v: want at least %v (RFC 4787, REQ-5), or 0 for %v; to end a flow earlier, close it", f.UDPIdle, minUDPIdle, defaultUDPIdle)
	}
	return errs
}

// A router tells which peer an address belongs to. A wireguard.Device is one.
type router interface {
	Route(netip.Addr) (wireguard.PublicKey, bool)
}

var _ router = (*wireguard.Device)(nil)

// A forwarder takes the packets for addresses that are not the Net's, and hands each flow to the program.
//
//	packet ▶ portOf ▶ second stack ▶ an endpoint of an accepted flow
//	                       │ no endpoint
//	                       ╰▶ takeTCP, takeUDP, takePing ▶ open ▶ serve, on a new goroutine ▶ Config.Forward
//
// takeTCP, takeUDP and takePing run on the goroutine that called Net.WritePackets, or on a goroutine of gVisor. They never
// wait.
type forwarder struct {
	net      *Net
	handle   func(*Flow)
	hairpin  bool
	udpIdle  time.Duration
	patience time.Duration // how long Accept waits for a handshake: handshakeLimit, except in a test
	port     port
	stack    *stack.Stack
	tcp      *tcp.Forwarder
	fragment atomic.Uint32 // the identification field of the last packet that was sent

	mu         sync.Mutex // guards the rest; while mu is held, no function of gVisor that takes a lock is called
	closed     bool
	flows      map[flowKey]*Flow // each flow until it ends
	sources    map[netip.AddrPort]*UDPSource
	pending    quota[wireguard.PublicKey] // flows without a decision
	all        quota[wireguard.PublicKey] // all flows
	waiting    kind                       // bytes of packets that wait for a decision, or in a source
	deciding   sync.WaitGroup             // counts decisions that have begun and not ended
	timer      *time.Timer                // runs sweep while there are flows
	sweeping   sync.WaitGroup             // counts the armed timer and the running sweep
	armed      bool
	sweepSpace []*Flow // the slice of the previous sweep, which the next sweep uses again; only the running sweep uses it
}

// A flowKey tells flows apart. For a ping, the port of src is the ICMP identifier, and the port of dst is the sequence number.
type flowKey struct {
	proto    uint8
	src, dst netip.AddrPort
}

// newForwarder returns a forwarder with the second stack. The forwarder is not nil even if there is an error, and the caller must
// then close it.
func newForwarder(n *Net, c *Config) (*forwarder, error) {
	or := func(v, otherwise int) int {
		if v == 0 {
			return otherwise
		}
		return v
	}
	fw := &forwarder{
		net: n, handle: c.Forward, hairpin: c.Forwarding.Hairpin, udpIdle: c.Forwarding.UDPIdle, patience: handshakeLimit,
		flows: make(map[flowKey]*Flow), sources: make(map[netip.AddrPort]*UDPSource),
		pending: quota[wireguard.PublicKey]{limit: or(c.Forwarding.Pending, defaultPending), least: leastPending},
		all:     quota[wireguard.PublicKey]{limit: or(c.Forwarding.Flows, defaultFlows), least: leastFlows},
		waiting: kind{quota[holder]{limit: int(min(maxWaiting, n.budget.total/4)), least: leastWaiting}},
	}
	if fw.udpIdle == 0 {
		fw.udpIdle = defaultUDPIdle
	}
	var err error
	if fw.stack, err = newForwardStack(n, n.link, &fw.port); err != nil {
		return fw, err
	}
	fw.tcp = tcp.NewForwarder(fw.stack, waitingRecv/2, defaultFlows<<8, fw.serveTCP) // see earlyRecv; open limits the flows
	fw.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, fw.takeTCP)
	fw.stack.SetTransportProtocolHandler(udp.ProtocolNumber, fw.takeUDP)
	fw.stack.SetTransportProtocolHandler(icmp.ProtocolNumber4, fw.takePing)
	fw.stack.SetTransportProtocolHandler(icmp.ProtocolNumber6, fw.takePing)
	return fw, nil
}

// peerOf returns the peer whose AllowedIPs contain the address a.
func (fw *forwarder) peerOf(a netip.Addr) (peer wireguard.PublicKey, ok bool) {
	if r := fw.net.link.peers.Load(); r != nil {
		return (*r).Route(a)
	}
	return peer, false
}

// open makes the flow that the packet p begins. If the flow may not begin, open counts p as dropped and returns nil. If fw is
// closed, open returns nil and does not count p. fw.mu is held.
func (fw *forwarder) open(key flowKey, p *stack.PacketBuffer) *Flow {
	if fw.closed {
		return nil
	}
	drops := &fw.net.link.drops
	peer, ok := fw.peerOf(key.src.Addr())
	if !ok {
		drops.martian.Add(1)
		return nil
	}
	if to, ok := fw.peerOf(key.dst.Addr()); ok && to == peer && !fw.hairpin {
		drops.hairpin.Add(1)
		return nil
	}
	if !fw.all.take(peer, 1) {
		drops.flows.Add(1)
		return nil
	}
	if !fw.pending.take(peer, 1) {
		fw.all.give(peer, 1)
		drops.flows.Add(1)
		return nil
	}
	f := &Flow{fw: fw, key: key, peer: peer, begun: time.Now()}
	if !f.hold(p) {
		fw.pending.give(peer, 1)
		fw.all.give(peer, 1)
		return nil
	}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	fw.flows[key] = f
	fw.arm()
	return f
}

// serve calls the program's Config.Forward with f.
func (fw *forwarder) serve(f *Flow) {
	defer f.leave()
	fw.handle(f)
}

// takeTCP handles a segment that belongs to no connection. If it returns false, gVisor answers the segment with a reset, unless
// the segment is a reset itself.
func (fw *forwarder) takeTCP(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
	const relevant = header.TCPFlagSyn | header.TCPFlagAck | header.TCPFlagRst | header.TCPFlagFin
	key := keyOf(protoTCP, id)
	switch flags := header.TCP(p.TransportHeader().Slice()).Flags(); {
	case flags&header.TCPFlagRst != 0:
		fw.giveUp(key)
		return false
	case flags&relevant != header.TCPFlagSyn:
		return false
	}
	fw.mu.Lock()
	f := fw.flows[key]
	known := f != nil && !f.isOver()
	if !known {
		fw.end(f)
		f = fw.open(key, p)
	}
	fw.mu.Unlock()
	if known || f == nil {
		return true
	}
	if !fw.tcp.HandlePacket(id, p) { // calls serveTCP on a new goroutine
		f.leave()
	}
	return true
}

// serveTCP calls the program's Config.Forward with the flow of the request r.
func (fw *forwarder) serveTCP(r *tcp.ForwarderRequest) {
	fw.mu.Lock()
	f := fw.flows[keyOf(protoTCP, r.ID())]
	if f != nil {
		f.request = r
	}
	fw.mu.Unlock()
	if f == nil {
		r.Complete(false)
		return
	}
	fw.serve(f)
}

// giveUp cancels a flow that its peer has reset before the program's decision.
func (fw *forwarder) giveUp(key flowKey) {
	fw.mu.Lock()
	f := fw.flows[key]
	undecided := f != nil && f.state == flowUndecided
	fw.mu.Unlock()
	if undecided {
		f.cancel(errFlowReset)
	}
}

// takeUDP takes a datagram that no socket of the Net receives. It always returns true, so that gVisor does not answer with an
// ICMP error.
func (fw *forwarder) takeUDP(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
	ip := p.Network()
	whole, right := header.UDPValid(header.UDP(p.TransportHeader().Slice()), func() uint16 { return p.Data().Checksum() },
		uint16(p.Data().Size()), p.NetworkProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), p.RXChecksumValidated)
	if !whole || !right {
		fw.net.link.drops.checksum.Add(1)
		return true
	}
	key := keyOf(protoUDP, id)
	fw.mu.Lock()
	defer fw.mu.Unlock()
	if s := fw.sources[key.src]; s != nil {
		s.push(p)
		return true
	}
	f := fw.flows[key]
	switch {
	case f == nil || f.isOver():
		fw.end(f)
		if f = fw.open(key, p); f != nil {
			go fw.serve(f)
		}
	case len(f.packets) < maxBacklog && f.state != flowAccepted:
		f.hold(p)
	default:
		fw.net.link.drops.datagrams.Add(1)
	}
	return true
}

// takePing opens a flow for an ICMP echo request. It drops all other ICMP messages.
func (fw *forwarder) takePing(id stack.TransportEndpointID, p *stack.PacketBuffer) bool {
	h := p.TransportHeader().Slice()
	if len(h) < header.ICMPv6EchoMinimumSize { // 8 bytes, the same as for IPv4
		return true
	}
	key := keyOf(protoICMP4, id)
	want := byte(header.ICMPv4Echo)
	if p.NetworkProtocolNumber == header.IPv6ProtocolNumber {
		key.proto, want = protoICMP6, byte(header.ICMPv6EchoRequest)
	}
	if h[0] != want {
		return true
	}
	key.src = netip.AddrPortFrom(key.src.Addr(), header.ICMPv4(h).Ident())
	key.dst = netip.AddrPortFrom(key.dst.Addr(), header.ICMPv4(h).Sequence())
	fw.mu.Lock()
	defer fw.mu.Unlock()
	if fw.flows[key] == nil {
		if f := fw.open(key, p); f != nil {
			go fw.serve(f)
		}
	}
	return true
}

// keyOf returns the key of the flow that gVisor's endpoint ID id belongs to. The remote address in id is the flow's source.
func keyOf(proto uint8, id stack.TransportEndpointID) flowKey {
	return flowKey{
		proto: proto,
		src:   addrPort(tcpip.FullAddress{Addr: id.RemoteAddress, Port: id.RemotePort}),
		dst:   addrPort(tcpip.FullAddress{Addr: id.LocalAddress, Port: id.LocalPort}),
	}
}

// end ends f and removes it from fw.flows. It does nothing if f is nil or has ended already. fw.mu is held.
func (fw *forwarder) end(f *Flow) {
	if f == nil || f.state == flowEnded {
		return
	}
	if f.state != flowAccepted {
		fw.pending.give(f.peer, 1)
	}
	fw.all.give(f.peer, 1)
	f.state = flowEnded
	f.drop()
	if fw.flows[f.key] == f {
		delete(fw.flows, f.key)
	}
}

// arm starts the timer of sweep. fw.mu is held.
func (fw *forwarder) arm() {
	if fw.armed || fw.closed {
		return
	}
	fw.armed = true
	fw.sweeping.Add(1)
	if fw.timer == nil {
		fw.timer = time.AfterFunc(sweepEvery, fw.sweep)
	} else {
		fw.timer.Reset(sweepEvery)
	}
}

// sweep calls Flow.sweep for each flow. The timer runs it every sweepEvery while there are flows.
func (fw *forwarder) sweep() {
	defer fw.sweeping.Done()
	now := time.Now()
	fw.mu.Lock()
	fs := fw.sweepSpace[:0]
	for _, f := range fw.flows {
		fs = append(fs, f)
	}
	fw.mu.Unlock()
	for i, f := range fs {
		f.sweep(now)
		fs[i] = nil
	}
	fw.mu.Lock()
	defer fw.mu.Unlock()
	fw.armed, fw.sweepSpace = false, nil
	if len(fw.flows) > 0 {
		fw.sweepSpace = fs[:0]
		fw.arm()
	}
}

// close cancels all flows, waits for the methods of Flow that are making a decision, and closes the second stack. Net.Close has
// called link.refuseData before, so no sender waits for space in the link's queue.
func (fw *forwarder) close() {
	fw.mu.Lock()
	fw.closed = true
	if fw.armed && fw.timer.Stop() {
		fw.armed = false
		fw.sweeping.Done()
	}
	fs := make([]*Flow, 0, len(fw.flows))
	for _, f := range fw.flows {
		fs = append(fs, f)
	}
	fw.mu.Unlock()
	for _, f := range fs {
		f.cancel(net.ErrClosed)
	}
	fw.deciding.Wait()
	fw.sweeping.Wait()
	closeStack(fw.stack)
}

// closeStack aborts all endpoints of s and ends its goroutines.
func closeStack(s *stack.Stack) {
	s.Close()
	// One of gVisor's TCP goroutines may have completed a handshake, and so made an endpoint, after s.Close looked for
	// endpoints.
	s.TransportProtocolInstance(tcp.ProtocolNumber).Wait()
	for _, e := range s.RegisteredEndpoints() {
		e.Abort()
	}
	s.Wait()
}

var (
	errFlowReset     = errors.New("the peer gave the flow up")
	errFlowMoved     = errors.New("the source's address belongs to another peer now")
	errFlowUndecided = fmt.Errorf("no decision within %v", decideLimit)
)
