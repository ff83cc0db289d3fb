package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// joinByNothing connects two gVisor stacks with a link that passes packets unchanged, without a tunnel. It shows the limit of
// gVisor alone.
func joinByNothing(st *stage) (*stacks, error) {
	a, b := newGvisorLink(st), newGvisorLink(st)
	a.other, b.other = b, a
	from, err := newGvisorNetwork(st, a, addrA)
	if err != nil {
		return nil, err
	}
	to, err := newGvisorNetwork(st, b, addrB)
	if err != nil {
		return nil, err
	}
	return listen(st, from, to)
}

// A gvisorNetwork is a gVisor stack with the options that wireguard-go's tun/netstack sets.
type gvisorNetwork struct{ stack *stack.Stack }

const nic = 1

func newGvisorNetwork(st *stage, l stack.LinkEndpoint, addr netip.Addr) (gvisorNetwork, error) {
	n := gvisorNetwork{stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
		HandleLocal:        true,
	})}
	st.atClose(n.stack.Destroy)
	sack := tcpip.TCPSACKEnabled(true)
	if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack); err != nil {
		return n, errors.New(err.String())
	}
	if err := n.stack.CreateNIC(nic, l); err != nil {
		return n, errors.New(err.String())
	}
	a := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(addr.As4()).WithPrefix()}
	if err := n.stack.AddProtocolAddress(nic, a, stack.AddressProperties{}); err != nil {
		return n, errors.New(err.String())
	}
	n.stack.AddRoute(tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: nic})
	return n, nil
}

func (n gvisorNetwork) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	a := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(to.Addr().As4()), Port: to.Port()}
	return gonet.DialContextTCP(ctx, n.stack, a, ipv4.ProtocolNumber)
}

func (n gvisorNetwork) listen(port uint16) (net.Listener, error) {
	return gonet.ListenTCP(n.stack, tcpip.FullAddress{NIC: nic, Port: port}, ipv4.ProtocolNumber)
}

func (n gvisorNetwork) ping(context.Context, netip.Addr) (time.Duration, error) {
	return 0, errors.ErrUnsupported
}

// A gvisorLink is one end of a link between two stacks of this process. It has a queue, and a goroutine that delivers the queued
// packets to its stack. Packets from outside the process would need both too. The link accepts segments of up to 64 KiB and omits
// checksums. Only the TCP windows limit the length of the queue.
type gvisorLink struct {
	other *gvisorLink

	mu    sync.Mutex // guards the fields below
	some  *sync.Cond // signaled when packets are added to queue, or down becomes true
	queue []gvisorPacket
	up    stack.NetworkDispatcher
	down  bool
}

type gvisorPacket struct {
	protocol tcpip.NetworkProtocolNumber
	*stack.PacketBuffer
}

func newGvisorLink(st *stage) *gvisorLink {
	l := &gvisorLink{}
	l.some = sync.NewCond(&l.mu)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.deliver()
	}()
	st.atClose(func() {
		l.mu.Lock()
		l.down = true
		l.mu.Unlock()
		l.some.Signal()
		<-ended
	})
	return l
}

// deliver passes packets from the queue to the stack until the link is down.
func (l *gvisorLink) deliver() {
	var taken []gvisorPacket
	for {
		l.mu.Lock()
		for len(l.queue) == 0 && !l.down {
			l.some.Wait()
		}
		taken, l.queue = l.queue, taken[:0]
		up, down := l.up, l.down
		l.mu.Unlock()
		for i, p := range taken {
			if up != nil && !down {
				up.DeliverNetworkPacket(p.protocol, p.PacketBuffer)
			}
			p.DecRef()
			taken[i] = gvisorPacket{}
		}
		if down {
			return
		}
	}
}

// WritePackets adds copies of pkts to the queue of the other end. It copies because an outgoing packet carries state that an
// incoming packet must not have.
func (l *gvisorLink) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	o := l.other
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.down {
		return 0, &tcpip.ErrClosedForSend{}
	}
	for _, p := range pkts.AsSlice() {
		q := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: p.ToBuffer()})
		o.queue = append(o.queue, gvisorPacket{p.NetworkProtocolNumber, q})
	}
	o.some.Signal()
	return pkts.Len(), nil
}

func (l *gvisorLink) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up = d
}

func (l *gvisorLink) IsAttached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up != nil
}

func (l *gvisorLink) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload | stack.CapabilityTXChecksumOffload
}

func (l *gvisorLink) MTU() uint32                             { return mtu }
func (l *gvisorLink) SetMTU(uint32)                           {}
func (l *gvisorLink) MaxHeaderLength() uint16                 { return 0 }
func (l *gvisorLink) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *gvisorLink) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *gvisorLink) Wait()                                   {}
func (l *gvisorLink) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *gvisorLink) AddHeader(*stack.PacketBuffer)           {}
func (l *gvisorLink) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *gvisorLink) Close()                                  {}
func (l *gvisorLink) SetOnCloseAction(func())                 {}
func (l *gvisorLink) GSOMaxSize() uint32                      { return 65535 }
func (l *gvisorLink) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }
