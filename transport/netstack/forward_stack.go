package netstack

import (
	"fmt"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/header/parse"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// Forwarded flows live in a second stack, whose interface has every address. One stack for both would not do:
//
//   - A promiscuous stack with HandleLocal takes every source address for its own, and drops all packets. Without
//     HandleLocal, the Net could not dial itself.
//   - A listener of the Net on all its addresses would take connections to every address.
//   - For each destination of a flow, gVisor assigns a temporary address to the interface. For each IPv4 packet it then
//     goes through all of them, which at 30,000 destinations takes longer than everything else together.
//
// Both stacks share the link. newForwardStack makes the second one.
func newForwardStack(n *Net, l *link, p *port) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			anyAddress(ipv4.NewProtocol, tcpip.AddrFrom4([4]byte{192, 0, 0, 8})),
			anyAddress(ipv6.NewProtocol, tcpip.AddrFrom16([16]byte{0x01, 15: 8})),
		},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := n.tune(s); err != nil {
		return s, err
	}
	if err := s.CreateNICWithOptions(NICID, &forwardNIC{link: l, port: p}, stack.NICOptions{Name: "forward", QDisc: l}); err != nil {
		return s, fmt.Errorf("netstack: %w", systemError("create interface", err))
	}
	if err := p.init(s); err != nil {
		return s, err
	}
	// Promiscuous mode lets ICMP in. Spoofing lets in ICMP errors about packets with foreign sources.
	_ = s.SetPromiscuousMode(NICID, true)
	_ = s.SetSpoofing(NICID, true)
	s.AddRoute(tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: NICID})
	s.AddRoute(tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: NICID})
	return s, nil
}

// A port is where a link delivers received packets: the interface of one stack.
type port struct {
	dispatcher           atomic.Pointer[stack.NetworkDispatcher] // nil once the interface is gone
	endpoint4, endpoint6 stack.NetworkEndpoint
}

// init looks up the endpoints of the interface.
func (p *port) init(s *stack.Stack) error {
	var err tcpip.Error
	if p.endpoint4, err = s.GetNetworkEndpoint(NICID, ipv4.ProtocolNumber); err != nil {
		return fmt.Errorf("netstack: %w", systemError("IPv4", err))
	}
	if p.endpoint6, err = s.GetNetworkEndpoint(NICID, ipv6.ProtocolNumber); err != nil {
		return fmt.Errorf("netstack: %w", systemError("IPv6", err))
	}
	return nil
}

// attach keeps d, which is nil when the interface is removed.
func (p *port) attach(d stack.NetworkDispatcher) {
	if d == nil {
		p.dispatcher.Store(nil)
		return
	}
	p.dispatcher.Store(&d)
}

// A forwardNIC is the link as the second stack sees it.
type forwardNIC struct {
	*link
	port *port
}

func (f *forwardNIC) Attach(d stack.NetworkDispatcher) { f.port.attach(d) }
func (f *forwardNIC) IsAttached() bool                 { return f.port.dispatcher.Load() != nil }

// handTransport delivers a packet, whose checksums are right and which is not a fragment, to TCP or UDP of the second
// stack. It bypasses gVisor's IP, which would make a temporary address for each packet.
func (p *port) handTransport(proto tcpip.NetworkProtocolNumber, b buffer.Buffer) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: b})
	defer pkt.DecRef()
	d := p.dispatcher.Load()
	if d == nil {
		return
	}
	ok, next := false, ip6Next
	pkt.NICID, pkt.NetworkProtocolNumber, pkt.RXChecksumValidated = NICID, proto, true
	if proto == ipv4.ProtocolNumber {
		ok, next = parse.IPv4(pkt), ip4Protocol
	} else {
		_, ok = pkt.NetworkHeader().Consume(header.IPv6MinimumSize)
	}
	if ok && pkt.NetworkHeader().Slice()[next] == protoTCP { // pkt.Network allocates
		ok = parse.TCP(pkt)
	} else {
		ok = ok && parse.UDP(pkt)
	}
	if ok {
		(*d).(stack.TransportDispatcher).DeliverTransportPacket(pkt.TransportProtocolNumber, pkt)
	}
}

// anyAddress returns the network protocol f, with an interface that has every address. dummy, an address that no host
// has, stands for all of them inside gVisor.
func anyAddress(f stack.NetworkProtocolFactory, dummy tcpip.Address) stack.NetworkProtocolFactory {
	return func(s *stack.Stack) stack.NetworkProtocol { return &anyProtocol{f(s), dummy} }
}

type anyProtocol struct {
	stack.NetworkProtocol
	dummy tcpip.Address
}

func (p *anyProtocol) NewEndpoint(nic stack.NetworkInterface, d stack.TransportDispatcher) stack.NetworkEndpoint {
	ep := p.NetworkProtocol.NewEndpoint(nic, d)
	e := &anyEndpoint{NetworkEndpoint: ep, AddressableEndpoint: ep.(stack.AddressableEndpoint)}
	// This fails only for an address that the interface has already.
	e.every, _ = e.AddAndAcquirePermanentAddress(p.dummy.WithPrefix(), stack.AddressProperties{})
	return e
}

// An anyEndpoint answers for every address with the same address endpoint. The stack asks it when it makes a route or
// checks a bound address. gVisor's own endpoint, which it wraps, never learns of these addresses.
type anyEndpoint struct {
	stack.NetworkEndpoint
	stack.AddressableEndpoint
	every stack.AddressEndpoint
}

func (e *anyEndpoint) AcquireAssignedAddress(_ tcpip.Address, _ bool, _ stack.PrimaryEndpointBehavior, readOnly bool) stack.AddressEndpoint {
	if !readOnly && !e.every.TryIncRef() {
		return nil // the interface is gone
	}
	return e.every
}
