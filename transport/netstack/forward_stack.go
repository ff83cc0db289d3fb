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

// Forwarded flows use a second stack, whose interface has every address. A single stack for these flows and the Net's own
// connections would not work:
//
//   - A promiscuous stack with HandleLocal treats every source address as its own, and drops all packets. Without HandleLocal,
//     the Net could not dial itself.
//   - A listener of the Net on all its addresses would take connections to every address.
//   - For each destination of a flow, gVisor assigns a temporary address to the interface. For each IPv4 packet, gVisor then
//     searches all these addresses. With 30,000 destinations, the search takes longer than everything else together.
//
// Both stacks share the link. newForwardStack makes the second stack, which gets its packets through the port p.
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
	// Promiscuous mode makes gVisor accept ICMP messages to any address. Spoofing makes it accept ICMP errors about packets whose
	// source is not an address of the stack.
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

// attach stores the dispatcher d of the interface. d is nil when gVisor removes the interface.
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

// handTransport delivers the packet b to TCP or UDP of the second stack. The packet's checksums are right, and it is not a
// fragment. handTransport bypasses gVisor's IP, which would make a temporary address for each packet.
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
	if ok && pkt.NetworkHeader().Slice()[next] == protoTCP { // pkt.Network would allocate
		ok = parse.TCP(pkt)
	} else {
		ok = ok && parse.UDP(pkt)
	}
	if ok {
		(*d).(stack.TransportDispatcher).DeliverTransportPacket(pkt.TransportProtocolNumber, pkt)
	}
}

// anyAddress returns the network protocol that f makes, with an interface that has every address. Inside gVisor, the address dummy,
// which no host has, stands for all these addresses.
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
	// This call fails only for an address that the interface already has.
	e.every, _ = e.AddAndAcquirePermanentAddress(p.dummy.WithPrefix(), stack.AddressProperties{})
	return e
}

// An anyEndpoint returns the same address endpoint (every) for every address. The stack calls AcquireAssignedAddress when it
// makes a route or checks a bound address. The NetworkEndpoint, which is gVisor's own, does not know these addresses.
type anyEndpoint struct {
	stack.NetworkEndpoint
	stack.AddressableEndpoint
	every stack.AddressEndpoint
}

func (e *anyEndpoint) AcquireAssignedAddress(_ tcpip.Address, _ bool, _ stack.PrimaryEndpointBehavior, readOnly bool) stack.AddressEndpoint {
	if !readOnly && !e.every.TryIncRef() {
		return nil // the interface has been removed
	}
	return e.every
}
