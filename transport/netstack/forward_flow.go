package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/seed-86b749af/wireguard"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// A Flow is a TCP connection, a UDP flow or a ping that a peer has begun, and whose destination is not an address of the Net. The
// Net passes each Flow to [Config.Forward]. That function decides about the flow with one call of Accept, AcceptSource, Answer,
// Refuse or Discard before it returns. Until the decision, the peer gets no answer, as from a slow host. The decision may take as
// long as Context allows: each flow has its own goroutine, and nothing else waits for the decision.
//
// A flow belongs to the peer that sent its first packet. Once per second, the Net checks that the flow's source address still
// belongs to that peer. If it does not, the Net resets the flow. Until that check, packets with this source address reach the flow
// even if another peer sends them.
//
// The Net is an endpoint of a forwarded flow, not a router on its path. It ignores the hop limit and reassembles fragments, and
// it does not pass on ICMP errors about packets of the flow.
//
// A Flow is safe for concurrent use and must not be copied.
type Flow struct {
	fw      *forwarder
	key     flowKey
	peer    wireguard.PublicKey
	begun   time.Time
	ctx     context.Context
	cancel  context.CancelCauseFunc
	request *tcp.ForwarderRequest // gVisor's request for a TCP connection, set before Config.Forward is called; nil for other flows

	state   flowState             // guarded by fw.mu, like the next three fields
	packets []*stack.PacketBuffer // the packets that wait for the decision; the first one began the flow
	held    int                   // bytes of memory that the packets in the field packets take
	to      forwarded             // what Accept or AcceptSource returned

	seen  uint64    // the result of to.activity at the last sweep; only the method sweep uses seen and since
	since time.Time // the time of the sweep that last changed seen
}

type flowState uint8

const (
	flowUndecided flowState = iota
	flowDeciding            // a method that makes the decision is running
	flowAccepted
	flowEnded
)

// A forwarded is an accepted flow as the forwarder sees it.
type forwarded interface {
	finished() bool   // whether the program has closed the flow and, for TCP, gVisor has finished the connection
	activity() uint64 // how many packets a UDP flow has carried; 0 for TCP
	idles() bool      // whether the Net closes the flow once the flow has carried nothing for Forwarding.UDPIdle
	reset()           // ends the flow
}

// Network returns "tcp", "udp" or "ping".
func (f *Flow) Network() string {
	switch f.key.proto {
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	}
	return "ping"
}

// Source returns the address that began the flow: that of the peer, or of a host behind the peer. For a ping, the port is 0.
func (f *Flow) Source() netip.AddrPort { return f.end(f.key.src) }

// Destination returns the address that the flow is for. For a ping, the port is 0.
func (f *Flow) Destination() netip.AddrPort { return f.end(f.key.dst) }

func (f *Flow) end(a netip.AddrPort) netip.AddrPort {
	if f.Network() == "ping" {
		return netip.AddrPortFrom(a.Addr(), 0)
	}
	return a
}

// Peer returns the public key of the peer whose AllowedIPs contained the flow's source address when the flow began.
func (f *Flow) Peer() wireguard.PublicKey { return f.peer }

// Context returns a context that ends when Config.Forward returns, when the peer resets a TCP connection before the decision,
// when the flow's source moves to another peer, after a minute without a decision, and when the Net is closed. Use it for the
// dial whose result decides about the flow.
func (f *Flow) Context() context.Context { return f.ctx }

// Data returns a copy of the payload of a ping, which Answer sends back. It returns nil for other flows, and after the
// decision.
func (f *Flow) Data() []byte {
	f.fw.mu.Lock()
	defer f.fw.mu.Unlock()
	if f.Network() != "ping" || len(f.packets) == 0 {
		return nil
	}
	message := transportOf(f.packets[0])
	return message[header.ICMPv6EchoMinimumSize:] // 8 bytes, the same as for IPv4
}

// Accept accepts a TCP connection or a UDP flow. The result is a *[TCPConn] or a *[UDPConn], whose local address is the flow's
// destination and whose remote address is its source. For TCP, Accept sends the SYN-ACK and waits up to 30 s for the end of the
// handshake. A *UDPConn carries only the datagrams between these two addresses; AcceptSource accepts the datagrams of a source to
// all destinations. The Net closes a *UDPConn that has carried nothing for [Forwarding.UDPIdle].
func (f *Flow) Accept() (net.Conn, error) {
	c, err := f.accept()
	if err != nil {
		return nil, f.wrap("accept", err)
	}
	return c, nil
}

func (f *Flow) accept() (net.Conn, error) {
	if err := f.begin("Accept", "tcp", "udp"); err != nil {
		return nil, err
	}
	if f.key.proto == protoUDP {
		c, err := f.acceptUDP()
		if err != nil {
			f.settle(nil)
			return nil, err
		}
		return c, nil
	}
	c, err := f.acceptTCP()
	if err != nil {
		f.settle(nil)
		return nil, err
	}
	f.settle(forwardedTCP{c})
	return c, nil
}

func (f *Flow) acceptTCP() (*TCPConn, error) {
	ctx, cancel := context.WithTimeoutCause(f.ctx, f.fw.patience, timeoutError{})
	defer cancel()
	begun, aborted := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(aborted)
		f.abortHandshake(begun)
	})
	q := new(waiter.Queue)
	ep, err := f.request.CreateEndpoint(q)
	close(begun)
	if !stop() {
		<-aborted // abortHandshake reads f.request, so it must end before Complete clears the request
	}
	f.request.Complete(false)
	switch {
	case ctx.Err() != nil:
		if err == nil {
			ep.Close()
		}
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, systemError("accept", err)
	}
	return newTCPConn(f.fw.net, "tcp", ep, q, net.KeepAliveConfig{Enable: true}), nil
}

// abortHandshake aborts the handshake that CreateEndpoint waits for. gVisor has no function that cancels CreateEndpoint. So
// abortHandshake waits until gVisor has registered the endpoint, and aborts the endpoint. The channel begun is closed when
// CreateEndpoint has returned; then there is nothing to abort.
func (f *Flow) abortHandshake(begun <-chan struct{}) {
	id := f.request.ID()
	network := protocolOf(f.key.src.Addr())
	for {
		if ep := f.fw.stack.FindTransportEndpoint(network, tcp.ProtocolNumber, id, NICID); ep != nil {
			ep.Abort()
			return
		}
		select {
		case <-begun:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func (f *Flow) acceptUDP() (*UDPConn, error) {
	n := f.fw.net
	n.life.RLock()
	defer n.life.RUnlock()
	if n.isClosed() {
		return nil, net.ErrClosed
	}
	id := stack.TransportEndpointID{
		LocalPort: f.key.dst.Port(), LocalAddress: tcpip.AddrFromSlice(f.key.dst.Addr().AsSlice()),
		RemotePort: f.key.src.Port(), RemoteAddress: tcpip.AddrFromSlice(f.key.src.Addr().AsSlice()),
	}
	f.fw.mu.Lock()
	first := f.packets[0].IncRef()
	f.fw.mu.Unlock()
	defer first.DecRef()
	q := new(waiter.Queue)
	ep, err := udp.NewForwarderRequest(f.fw.stack, id, first).CreateEndpoint(q) // CreateEndpoint delivers the first packet
	if err != nil {
		return nil, systemError("accept", err)
	}
	c := newUDPConn(n, "udp", ep, q, first.NetworkProtocolNumber, true, partyHolder(f.peer))
	c.foreign = true
	for i, p := range f.settle(forwardedUDP{c}) {
		if i > 0 {
			ep.(stack.TransportEndpoint).HandlePacket(id, p)
		}
		p.DecRef()
	}
	return c, nil
}

// AcceptSource accepts a UDP flow and all datagrams that its source sends from now on, whatever their destination. One
// UDPSource then serves all destinations of one socket behind the peer. A NAT with endpoint-independent mapping needs that (RFC
// 4787, REQ-1). The Net calls Config.Forward for no more UDP flows of this source. A flow that Accept has accepted before keeps
// its datagrams.
//
// If several flows of one source wait for decisions at the same time, the first call of AcceptSource makes the UDPSource and
// returns began true. The calls for the other flows add the datagrams of these flows to the same UDPSource, and return that
// UDPSource with began false.
func (f *Flow) AcceptSource() (s *UDPSource, began bool, err error) {
	if err := f.begin("AcceptSource", "udp"); err != nil {
		return nil, false, f.wrap("accept", err)
	}
	fw := f.fw
	fw.mu.Lock()
	defer fw.mu.Unlock()
	ps := f.release()
	if s = fw.sources[f.key.src]; s == nil {
		s, began = newUDPSource(f), true
		fw.sources[f.key.src] = s
		f.settleLocked(s)
	} else {
		f.settleLocked(nil)
	}
	for _, p := range ps {
		s.push(p)
		p.DecRef()
	}
	return s, began, nil
}

// Answer sends the reply to a ping. The source of the reply is the ping's destination.
func (f *Flow) Answer() error {
	if err := f.begin("Answer", "ping"); err != nil {
		return f.wrap("answer", err)
	}
	f.fw.mu.Lock()
	message := transportOf(f.packets[0])
	f.fw.mu.Unlock()
	f.settle(nil)
	if message[0] = byte(header.ICMPv4EchoReply); f.key.proto == protoICMP6 {
		message[0] = byte(header.ICMPv6EchoReply)
	}
	message[2], message[3] = 0, 0
	return f.wrap("answer", f.fw.write(f.key.dst.Addr(), f.key.src.Addr(), f.key.proto, message[:8], message[8:], 0))
}

// Refuse refuses the flow with a reset or an ICMP error. The source address of that packet is the flow's destination, because the
// peer accepts packets from that address. The returned error says why the packet could not be sent. If the peer has used
// up its limit of ICMP errors (100 per second, 20 at once), Refuse sends no ICMP error and returns nil.
func (f *Flow) Refuse(r Refusal) error {
	if err := f.begin("Refuse", "tcp", "udp", "ping"); err != nil {
		return f.wrap("refuse", err)
	}
	reset := f.key.proto == protoTCP && r == PortUnreachable
	f.fw.mu.Lock()
	message := transportOf(f.packets[0])
	f.fw.mu.Unlock()
	if f.request != nil {
		f.request.Complete(reset)
	}
	f.settle(nil)
	if reset {
		return nil
	}
	return f.wrap("refuse", f.fw.refuse(f.key, message, r))
}

// Discard ends the flow without an answer, as a firewall does that drops packets. A flow without a decision is discarded
// when Config.Forward returns.
func (f *Flow) Discard() {
	if f.begin("Discard", "tcp", "udp", "ping") != nil {
		return
	}
	if f.request != nil {
		f.request.Complete(false)
	}
	f.settle(nil)
}

// leave ends f if the program has not decided about f. The forwarder calls it after Config.Forward has returned, or if it cannot
// call Config.Forward.
func (f *Flow) leave() {
	f.cancel(context.Canceled)
	f.fw.mu.Lock()
	defer f.fw.mu.Unlock()
	if f.state != flowUndecided {
		return
	}
	if f.request != nil {
		// Complete the request before f ends. Until the request is complete, gVisor drops each repeated SYN that takeTCP passes to
		// it. If f ended earlier, takeTCP would open another flow for such a SYN, and that flow would wait forever.
		f.state = flowDeciding
		f.fw.mu.Unlock()
		f.request.Complete(false)
		f.fw.mu.Lock()
	}
	f.fw.end(f)
}

// begin begins the decision that the method with the given name makes about f. networks lists the networks whose flows the
// method can decide about. The error says why no decision is possible.
func (f *Flow) begin(method string, networks ...string) error {
	ok := false
	for _, n := range networks {
		ok = ok || n == f.Network()
	}
	if !ok {
		return errors.New(method + " is not for a flow of network " + f.Network())
	}
	f.fw.mu.Lock()
	defer f.fw.mu.Unlock()
	if err := context.Cause(f.ctx); err != nil && err != context.Canceled {
		return err
	}
	if f.state != flowUndecided || f.fw.closed {
		return net.ErrClosed
	}
	f.state = flowDeciding
	f.fw.deciding.Add(1)
	return nil
}

// settle ends the decision. to is the accepted flow, or nil if the flow was not accepted. For an accepted UDP flow, settle returns
// the packets that waited for the decision, and the caller gets their references.
func (f *Flow) settle(to forwarded) []*stack.PacketBuffer {
	f.fw.mu.Lock()
	defer f.fw.mu.Unlock()
	return f.settleLocked(to)
}

func (f *Flow) settleLocked(to forwarded) (ps []*stack.PacketBuffer) {
	f.fw.deciding.Done()
	if to == nil {
		f.fw.end(f)
		return nil
	}
	f.fw.pending.give(f.peer, 1)
	f.state, f.to = flowAccepted, to
	if f.key.proto == protoTCP {
		f.drop()
	}
	return f.release()
}

// hold keeps the packet p until the decision and returns true. If the waiting packets of f's peer take too much memory, hold counts
// p as dropped and returns false. fw.mu is held.
func (f *Flow) hold(p *stack.PacketBuffer) bool {
	size := p.MemSize()
	if !f.fw.net.budget.take(&f.fw.waiting, partyHolder(f.peer), size) {
		f.fw.net.link.drops.datagrams.Add(1)
		return false
	}
	f.packets = append(f.packets, p.IncRef())
	f.held += size
	return true
}

// release removes from f the packets that wait for the decision, and returns them. The caller gets their references. fw.mu is held.
func (f *Flow) release() (ps []*stack.PacketBuffer) {
	f.fw.net.budget.give(&f.fw.waiting, partyHolder(f.peer), f.held)
	ps, f.packets, f.held = f.packets, nil, 0
	return ps
}

// drop drops the packets of f that wait for the decision. fw.mu is held.
func (f *Flow) drop() {
	for _, p := range f.release() {
		p.DecRef()
	}
}

// isOver reports whether f was accepted and has finished. fw.mu is held.
func (f *Flow) isOver() bool { return f.state == flowAccepted && f.to.finished() }

// sweep ends f if f is over or idle, or if its source address no longer belongs to the peer that began f. It cancels f's context if
// the program has not decided within decideLimit.
func (f *Flow) sweep(now time.Time) {
	peer, ok := f.fw.peerOf(f.key.src.Addr())
	moved := !ok || peer != f.peer
	f.fw.mu.Lock()
	state, to := f.state, f.to
	if f.isOver() {
		f.fw.end(f)
		state = flowEnded
	}
	f.fw.mu.Unlock()
	switch {
	case state == flowEnded:
	case state != flowAccepted:
		if moved {
			f.cancel(errFlowMoved)
		} else if now.Sub(f.begun) > decideLimit && state == flowUndecided {
			f.cancel(errFlowUndecided)
		}
	case moved:
		f.cancel(errFlowMoved)
		to.reset()
	case to.idles():
		if n := to.activity(); n != f.seen || f.since.IsZero() {
			f.seen, f.since = n, now
		} else if now.Sub(f.since) >= f.fw.udpIdle {
			to.reset()
		}
	}
}

// wrap turns err into an error of package net.
func (f *Flow) wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	e := &net.OpError{Op: op, Net: f.Network(), Err: err}
	switch f.key.proto {
	case protoTCP:
		e.Source, e.Addr = tcpAddr(f.key.dst), tcpAddr(f.key.src)
	case protoUDP:
		e.Source, e.Addr = udpAddr(f.key.dst), udpAddr(f.key.src)
	default:
		e.Source, e.Addr = &net.IPAddr{IP: f.key.dst.Addr().AsSlice()}, &net.IPAddr{IP: f.key.src.Addr().AsSlice()}
	}
	return e
}

// transportOf returns a copy of p's transport header and payload.
func transportOf(p *stack.PacketBuffer) []byte {
	b := append([]byte(nil), p.TransportHeader().Slice()...)
	return append(b, p.Data().AsRange().ToSlice()...)
}

// A forwardedTCP is an accepted TCP connection.
type forwardedTCP struct{ *TCPConn }

func (c forwardedTCP) finished() bool {
	s := tcp.EndpointState(c.ep.State())
	return c.isClosed() && (s == tcp.StateClose || s == tcp.StateError)
}
func (c forwardedTCP) activity() uint64 { return 0 }
func (c forwardedTCP) idles() bool      { return false }
func (c forwardedTCP) reset()           { c.ep.Abort() }

// A forwardedUDP is an accepted UDP flow.
type forwardedUDP struct{ *UDPConn }

func (c forwardedUDP) finished() bool { return c.isClosed() }
func (c forwardedUDP) activity() uint64 {
	s, ok := c.ep.Stats().(*tcpip.TransportEndpointStats)
	if !ok {
		return 0
	}
	return s.PacketsReceived.Value() + s.PacketsSent.Value()
}
func (c forwardedUDP) idles() bool { return true }
func (c forwardedUDP) reset()      { _ = c.Close() }
