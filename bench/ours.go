package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

// ours implements library with this library.
type ours struct{}

// landings returns more than one, because the device decrypts messages in place, in the landing that contains them: while the
// device uses one landing, the wire fills the next.
func (ours) landings() int { return 4 }

func (ours) used(st *stage) int { return st.Peers }

func (ours) node(st *stage, c nodeConfig) (node, error) {
	n := &ourNode{}
	config := wireguard.Config{PrivateKey: c.key, Tunnel: &ourTunnel{plain: c.plain}}
	if c.relay {
		config.Tunnel = &ourRelay{}
	}
	if c.byHand {
		n.clock = &handClock{start: time.Now()}
		config.Clock = n.clock
	}
	if c.end != nil {
		config.Bind = ourBind{c.end}
	} else {
		config.Bind = groupBind{countedBind{st}, c.receivers}
	}
	return n, n.up(st, config)
}

func (ours) stack(st *stage, key wireguard.PrivateKey, addr netip.Addr, bind wireguard.Bind) (node, network, error) {
	t, err := netstack.New(netstack.Config{Addresses: []netip.Addr{addr}, MTU: mtu})
	if err != nil {
		return nil, nil, err
	}
	if bind == nil {
		bind = countedBind{st}
	}
	n := &ourNode{}
	return n, ourNetwork{t}, n.up(st, wireguard.Config{PrivateKey: key, Tunnel: t, Bind: bind})
}

// A countedBind is a udp.Bind that remembers its sockets, so that the sample can read their counters.
type countedBind struct{ st *stage }

func (b countedBind) Listen(port uint16) (wireguard.Socket, error) {
	return b.listen(new(udp.Bind), port)
}

func (b countedBind) listen(u *udp.Bind, port uint16) (wireguard.Socket, error) {
	s, err := u.Listen(port)
	if s, ok := s.(*udp.Socket); ok {
		b.st.sockets = append(b.st.sockets, s)
	}
	return s, err
}

// A groupBind is a countedBind with a given number of receivers.
type groupBind struct {
	countedBind
	receivers int
}

func (b groupBind) Listen(port uint16) (wireguard.Socket, error) {
	return b.listen(&udp.Bind{Receivers: b.receivers}, port)
}

// calls returns how many datagrams the sockets of this library's devices sent and received per system call during the whole
// sample. It returns nothing for wireguard-go, which does not count system calls.
func (st *stage) calls() []aside {
	if len(st.sockets) == 0 {
		return nil
	}
	var sum udp.Stats
	for _, s := range st.sockets {
		n := s.Stats()
		sum.ReceiveCalls += n.ReceiveCalls
		sum.ReceivedDatagrams += n.ReceivedDatagrams
		sum.SendCalls += n.SendCalls
		sum.SentDatagrams += n.SentDatagrams
	}
	return []aside{
		{Name: "received", Unit: "datagrams/call", Value: float64(sum.ReceivedDatagrams) / float64(max(sum.ReceiveCalls, 1))},
		{Name: "sent", Unit: "datagrams/call", Value: float64(sum.SentDatagrams) / float64(max(sum.SendCalls, 1))},
	}
}

// An ourNode is a device of this library.
type ourNode struct {
	dev   *wireguard.Device
	clock *handClock // nil means the system's clock
}

func (n *ourNode) up(st *stage, c wireguard.Config) (err error) {
	if n.dev, err = wireguard.New(c); err != nil {
		return err
	}
	st.atClose(func() { n.dev.Close() })
	return n.dev.Up()
}

func (n *ourNode) port() uint16 { return n.dev.Status().ListenPort }

func (n *ourNode) plan(peers ...peer) func() error {
	c := wireguard.Change{}
	for _, p := range peers {
		e := wireguard.EndpointOf(p.endpoint)
		c.Peers = append(c.Peers, wireguard.PeerChange{
			PublicKey: p.key, Endpoint: &e, AllowedIPs: []netip.Prefix{p.prefix},
		})
	}
	return func() error { return n.dev.Configure(c) }
}

func (n *ourNode) become(key wireguard.PrivateKey) error {
	return n.dev.Configure(wireguard.Change{PrivateKey: &key})
}

func (n *ourNode) routes(peers []peer) error {
	for _, p := range peers {
		if key, ok := n.dev.Route(p.prefix.Addr()); !ok || key != p.key {
			return fmt.Errorf("%v does not route to its peer", p.prefix)
		}
	}
	return nil
}

// wipe advances the clock until no peer has a pending timer. Usually 540 seconds are enough. More are needed if the device
// recorded a sent packet only after the answer had arrived. The device then takes the packet for unanswered, and first attempts a
// handshake that nobody answers.
func (n *ourNode) wipe([]peer) error {
	for range 60 {
		n.clock.passed.Add(int64(time.Minute))
		if err := n.dev.Wake(); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
		if n.idle() {
			return nil
		}
	}
	return errNotIdle
}

var errNotIdle = errors.New("a peer is not idle after the clock has advanced by an hour")

func (n *ourNode) idle() bool {
	for s := range n.dev.Peers() {
		if s.Session || s.Initiating || s.NextReason != "" {
			return false
		}
	}
	return true
}

// A handClock is a clock whose time advances only when a caller increases passed.
type handClock struct {
	start  time.Time
	passed atomic.Int64
}

func (c *handClock) Now() time.Duration { return time.Hour + time.Duration(c.passed.Load()) }
func (c *handClock) Wall() time.Time    { return c.start.Add(time.Duration(c.passed.Load())) }

// An ourNetwork is a TCP/IP stack of transport/netstack.
type ourNetwork struct{ net *netstack.Net }

func (n ourNetwork) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return n.net.DialTCP(ctx, netip.AddrPort{}, to)
}

func (n ourNetwork) listen(port uint16) (net.Listener, error) {
	return n.net.ListenTCP(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
}

func (n ourNetwork) ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	return n.net.Ping(ctx, to)
}
