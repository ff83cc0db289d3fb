// Package gateway makes a program an exit for its WireGuard peers: their TCP, UDP and pings to other hosts leave through
// the host's sockets, or through a dialer of the program's choice. It needs no root and no kernel interface.
//
//	g, err := gateway.New(gateway.Config{Tunnel: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/24")}})
//	stack, err := netstack.New(netstack.Config{Addresses: addrs, Forward: g.Forward})
//
// A flow is a TCP connection, a UDP socket of a peer, or a ping. [Config.Policy] decides which flows may pass, by peer,
// destination and port. The default policy, [Public], refuses flows to the host itself, to the tunnel, and to special addresses
// such as link-local ones. [Limits] bound the number of flows, the rate and the bytes of one peer. The gateway answers a refused
// flow with a TCP reset or an ICMP error.
//
// A service inside the program that gets its connections from [Verdict].Handle or a [Listener] can ask [Peer] for the public key
// of a connection's peer. An HTTP handler gets the key from [PeerFrom], and [Authenticate] lets only chosen peers reach the
// handler.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/netstack"
)

// A Config configures a [Gateway]. Its zero value works.
type Config struct {
	// Policy decides about each flow. Nil means Public(Tunnel...). The gateway calls Policy on several goroutines at once: before
	// it opens a TCP connection or sends a ping, and for each new destination of a UDP socket, sometimes more than once per
	// destination.
	Policy func(Request) Verdict

	// Tunnel holds the prefixes of the tunnel itself. The default policy refuses flows to these prefixes. If Policy is set,
	// Tunnel has no effect.
	Tunnel []netip.Prefix

	// Dial opens the outbound connection of a TCP flow. Nil means the host's sockets. PeerFrom(ctx) returns the public key of the
	// flow's peer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// ListenPacket opens the outbound socket of a UDP flow, with network udp4 or udp6 and address ":0". Nil means the host's
	// sockets. The returned PacketConn must use addresses of type *net.UDPAddr. PeerFrom(ctx) returns the public key of the
	// flow's peer.
	ListenPacket func(ctx context.Context, network, address string) (net.PacketConn, error)

	// Ping sends target an echo request with the given data, and returns nil if target answered. Nil means [Ping].
	Ping func(ctx context.Context, target netip.Addr, data []byte) error

	// Limits apply to each peer for which the program has not called SetLimits.
	Limits Limits

	// Flows is how many TCP and UDP flows all peers together may have at once. Each flow uses one socket of the host. Zero
	// means 8192. So that other peers can still open flows, one peer gets at most half of the flows that the others do not
	// use. Each peer may have 64 flows in any case, even if all peers together then have more than Flows.
	Flows int

	// TCPIdle is how long a connection may carry nothing before the gateway resets it. Zero means 2 hours and 4 minutes, the
	// least that RFC 5382 permits a NAT. A half-closed connection may carry nothing for 4 minutes, or TCPIdle if that is less.
	TCPIdle time.Duration
}

const (
	defaultFlows = 8192
	leastFlows   = 64

	// RFC 5382, REQ-5: "the value of the established connection idle-timeout MUST NOT be less than 2 hours 4 minutes. The
	// value of the transitory connection idle-timeout MUST NOT be less than 4 minutes."
	defaultTCPIdle = 2*time.Hour + 4*time.Minute
	transitoryIdle = 4 * time.Minute
)

// A Request describes the flow that a peer wants to begin.
type Request struct {
	// Peer is the public key of the peer that began the flow.
	Peer wireguard.PublicKey

	// Network is "tcp", "udp" or "ping".
	Network string

	// Source is the flow's source address, on the peer's side of the tunnel. Its port is 0 for a ping.
	Source netip.AddrPort

	// Destination is the flow's destination address. Its port is 0 for a ping.
	Destination netip.AddrPort
}

// A Verdict is the decision about a [Request]. The zero value refuses the flow as if nothing listened at the destination.
type Verdict struct {
	// Allow lets the flow through.
	Allow bool

	// Refusal selects the answer to a flow that Allow does not let through. Zero means netstack.PortUnreachable, which is a reset
	// for TCP.
	Refusal netstack.Refusal

	// To is the address to which the gateway sends the flow instead of its destination. The zero value means the destination. For
	// UDP and pings, To must have the same address family as the destination. The gateway does not ask the policy about To, so To
	// can be a service on the host's loopback interface. If a UDP socket of a peer sends to several destinations with the same To, or
	// to To itself, all answers come from the destination for which To was used last.
	To netip.AddrPort

	// Handle serves a TCP connection inside the program, and the gateway does not dial. Nil means that the gateway dials the
	// destination or To. In Handle, the function Peer returns the public key of the connection's peer. The gateway closes the
	// connection when Handle returns.
	Handle func(net.Conn)
}

// A Gateway forwards flows. [New] makes it. It is safe for concurrent use and must not be copied.
type Gateway struct {
	config Config
	ctx    context.Context // canceled by Close
	cancel context.CancelFunc

	mu      sync.Mutex     // guards the fields below, and the fields flows, pings and arrived of each account
	closed  bool           // Forward refuses further flows
	running sync.WaitGroup // calls of Forward that have not returned
	conns   sync.WaitGroup // those calls of Forward that serve a TCP connection or a ping; Shutdown waits for them
	peers   map[wireguard.PublicKey]*account
	flows   int // TCP and UDP flows of all peers
	pings   int // pings of all peers that wait for their answers
}

// New makes a Gateway from c. Its error names the field that is wrong.
func New(c Config) (*Gateway, error) {
	var errs []error
	if c.Flows < 0 {
		errs = append(errs, fmt.Errorf("gateway: Config.Flows is %d: want at least 1, or 0 for %d", c.Flows, defaultFlows))
	}
	if c.TCPIdle < 0 {
		errs = append(errs, fmt.Errorf("gateway: Config.TCPIdle is %v: want a positive duration, or 0 for %v", c.TCPIdle, defaultTCPIdle))
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	if c.Policy == nil {
		c.Policy = Public(c.Tunnel...)
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if c.ListenPacket == nil {
		c.ListenPacket = new(net.ListenConfig).ListenPacket
	}
	if c.Ping == nil {
		c.Ping = Ping
	}
	if c.Flows == 0 {
		c.Flows = defaultFlows
	}
	if c.TCPIdle == 0 {
		c.TCPIdle = defaultTCPIdle
	}
	g := &Gateway{config: c, peers: make(map[wireguard.PublicKey]*account)}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g, nil
}

// Forward serves one flow until it ends. Set [netstack.Config].Forward to this method.
func (g *Gateway) Forward(f *netstack.Flow) {
	a := g.enter(f)
	if a == nil {
		_ = f.Refuse(netstack.HostUnreachable)
		return
	}
	defer g.leave(f, a)
	v := g.config.Policy(Request{f.Peer(), f.Network(), f.Source(), f.Destination()})
	if !v.Allow {
		a.refused.Add(1)
		_ = f.Refuse(v.Refusal)
		return
	}
	if f.Network() == "ping" {
		g.ping(f, a, v)
		return
	}
	if !g.begin(a, time.Now()) {
		a.refused.Add(1)
		_ = f.Refuse(netstack.Prohibited)
		return
	}
	defer g.end(a)
	if f.Network() == "udp" {
		g.udp(f, a)
	} else {
		g.tcp(f, a, v)
	}
}

// enter returns the account of f's peer and counts f as running. Once Close or Shutdown has been called, enter returns nil.
func (g *Gateway) enter(f *netstack.Flow) *account {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.running.Add(1)
	if f.Network() != "udp" {
		g.conns.Add(1)
	}
	a := g.accountLocked(f.Peer())
	a.waiting++
	return a
}

func (g *Gateway) leave(f *netstack.Flow, a *account) {
	g.mu.Lock()
	a.waiting--
	g.mu.Unlock()
	if f.Network() != "udp" {
		g.conns.Done()
	}
	g.running.Done()
}

// Shutdown refuses further flows, waits until all TCP connections and pings have ended, and then calls Close. Existing UDP
// flows continue meanwhile. If ctx ends first, Shutdown calls Close at once and returns an error that wraps
// context.Cause(ctx).
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.refuseAll()
	ended := make(chan struct{})
	go func() {
		g.conns.Wait()
		close(ended)
	}()
	defer g.Close()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("gateway: shut down with open connections: %w", context.Cause(ctx))
	}
}

func (g *Gateway) refuseAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// Close resets all flows and waits until their goroutines have ended. Later flows are refused. Close does not close the
// netstack.Net. Close is idempotent.
func (g *Gateway) Close() error {
	g.refuseAll()
	g.cancel()
	g.running.Wait()
	return nil
}

// outbound returns a context for a dial of f. The context carries the peer's public key for PeerFrom, and is canceled when
// the flow ends or g is closed.
func (g *Gateway) outbound(f *netstack.Flow) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithValue(f.Context(), peerKey{}, f.Peer()))
	stop := context.AfterFunc(g.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}
