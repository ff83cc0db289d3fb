// Package gateway makes a program an exit for its WireGuard peers: their TCP, UDP and pings to other hosts leave through
// the host's sockets, or through a dialer of the program's choice. It needs no root and no kernel interface.
//
//	g, err := gateway.New(gateway.Config{Tunnel: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/24")}})
//	stack, err := netstack.New(netstack.Config{Addresses: addrs, Forward: g.Forward})
//
// [Config.Policy] decides by peer, destination and port. The ready-made one, [Public], refuses the host's own services
// and networks that no peer should reach by accident. [Limits] bound what one peer can take. A refused flow is answered
// in the protocol's own way: a reset, or an ICMP error.
//
// A service inside the program, behind [Verdict].Handle or a [Listener], gets the public key of a connection's peer from [Peer].
// An HTTP handler gets it from [PeerFrom], and [Authenticate] lets only chosen peers reach the handler.
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
	// Policy decides about each flow. Nil means Public(Tunnel...). It is called on several goroutines at once, before a
	// TCP connection, before a ping, and for each new destination of a UDP socket, perhaps more than once.
	Policy func(Request) Verdict

	// Tunnel holds the tunnel's own prefixes, which the ready-made policy refuses. Another Policy ignores it.
	Tunnel []netip.Prefix

	// Dial opens the outbound connection of a TCP flow. Nil means the host's sockets. PeerFrom returns the flow's peer
	// from ctx.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// ListenPacket opens the outbound socket of a UDP flow, with network udp4 or udp6 and address ":0". Nil means the
	// host's sockets. The addresses of the result are *net.UDPAddr. PeerFrom returns the flow's peer from ctx.
	ListenPacket func(ctx context.Context, network, address string) (net.PacketConn, error)

	// Ping sends target an echo request with the given data, and returns nil if target answered. Nil means the function Ping.
	Ping func(ctx context.Context, target netip.Addr, data []byte) error

	// Limits bound each peer that has no limits from SetLimits.
	Limits Limits

	// Flows is how many TCP and UDP flows may exist in all, each with a socket of the host. Zero means 8192. A peer gets at
	// most half of the flows that the others leave, and 64 in any case, so that other peers still get through.
	Flows int

	// TCPIdle is how long a connection may carry nothing before it is reset. Zero means 2 hours and 4 minutes, the least
	// that RFC 5382 permits a NAT. A half-closed connection may carry nothing for 4 minutes, or TCPIdle if that is less.
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

// A Request is what a peer asks for.
type Request struct {
	// Peer is the public key of the peer that began the flow.
	Peer wireguard.PublicKey

	// Network is "tcp", "udp" or "ping".
	Network string

	// Source is the address behind the peer. Its port is 0 for a ping.
	Source netip.AddrPort

	// Destination is the address that the flow is for. Its port is 0 for a ping.
	Destination netip.AddrPort
}

// A Verdict is the decision about a [Request]. The zero value refuses it as if nothing listened at the destination.
type Verdict struct {
	// Allow lets the flow through.
	Allow bool

	// Refusal is how a flow without Allow is refused. Zero means netstack.PortUnreachable: a reset for TCP.
	Refusal netstack.Refusal

	// To is where the flow is sent instead of its destination. The zero value means the destination. For UDP and pings
	// it must be of the destination's family. The policy is not asked about To, so that it can name a service on the
	// host's loopback interface.
	To netip.AddrPort

	// Handle serves a TCP connection inside the program, which then dials nothing. Nil means that the connection
	// leaves. Peer returns the public key of the connection's peer. The gateway closes the connection when Handle
	// returns.
	Handle func(net.Conn)
}

// A Gateway forwards flows. [New] makes it. It is safe for concurrent use and must not be copied.
type Gateway struct {
	config Config
	ctx    context.Context // ends in Close
	cancel context.CancelFunc

	mu      sync.Mutex     // guards the rest, and the accounts' fields that say so
	closed  bool           // no further flows
	running sync.WaitGroup // calls of Forward and their goroutines
	conns   sync.WaitGroup // the calls in running that serve TCP connections and pings; Shutdown waits for them
	peers   map[wireguard.PublicKey]*account
	flows   int // of all peers
	pings   int // pings that wait for their answers
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

// Forward serves one flow until it ends. It is the function for [netstack.Config].Forward.
func (g *Gateway) Forward(f *netstack.Flow) {
	a := g.enter(f)
	if a == nil {
		_ = f.Refuse(netstack.HostUnreachable)
		return
	}
	defer g.leave(f)
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

// enter returns the account of f's peer and counts f as running, or returns nil after Close or Shutdown.
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
	return g.accountLocked(f.Peer())
}

func (g *Gateway) leave(f *netstack.Flow) {
	if f.Network() != "udp" {
		g.conns.Done()
	}
	g.running.Done()
}

// Shutdown refuses further flows, waits until all TCP connections and pings have ended, and then calls Close. The UDP flows that
// exist go on meanwhile. When ctx ends, Shutdown calls Close at once, and returns ctx's error if a TCP connection or a ping was left.
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

// Close resets all flows and waits until their goroutines have ended. Later flows are refused. It does not close the
// Net. Close is idempotent.
func (g *Gateway) Close() error {
	g.refuseAll()
	g.cancel()
	g.running.Wait()
	return nil
}

// outbound returns a context for a dial of f. It names the peer, and ends when the flow ends or g is closed.
func (g *Gateway) outbound(f *netstack.Flow) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithValue(f.Context(), peerKey{}, f.Peer()))
	stop := context.AfterFunc(g.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}
