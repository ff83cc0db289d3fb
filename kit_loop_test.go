package wireguard

import (
	"net"
	"net/netip"
	"sync"
)

// A loop is one of a pair of Binds that have no queue for data: when one device sends data messages, the other device handles
// them on the same goroutine. So a benchmark with a loop measures only the devices.
type loop struct {
	addr    netip.AddrPort
	peer    *loop
	deliver func([]Train) // called with the data messages that the other loop sends, if not nil
	in      chan []byte   // the handshake messages that the other loop sends
	closed  chan struct{}
	once    sync.Once
}

func newLoop() (a, b *loop) {
	a = &loop{addr: netip.MustParseAddrPort("192.0.2.1:1"), in: make(chan []byte, 16), closed: make(chan struct{})}
	b = &loop{addr: netip.MustParseAddrPort("192.0.2.2:2"), in: make(chan []byte, 16), closed: make(chan struct{}), peer: a}
	a.peer = b
	return a, b
}

func (l *loop) Listen(uint16) (Socket, error) { return l, nil }

func (l *loop) Port() uint16 { return l.addr.Port() }

func (l *loop) Receivers() []Receiver { return []Receiver{l} }

func (l *loop) Close() error { l.once.Do(func() { close(l.closed) }); return nil }

func (l *loop) Send(ts []Train) {
	if l.peer.deliver != nil {
		for i := range ts {
			ts[i].Endpoint = EndpointOf(l.addr)
		}
		l.peer.deliver(ts)
		return
	}
	for _, t := range ts {
		l.peer.in <- append([]byte(nil), t.Data...)
	}
}

func (l *loop) Receive() ([]Train, error) {
	select {
	case m := <-l.in:
		return []Train{{Data: m, Size: len(m), Endpoint: EndpointOf(l.peer.addr)}}, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// A counter is a Tunnel that has nothing to send and counts the packets that the device delivers.
type counter struct {
	n      int
	closed chan struct{}
}

func (c *counter) MTU() int { return 1420 }

func (c *counter) Close() error { close(c.closed); return nil }

func (c *counter) ReadPackets(*Batch) error { <-c.closed; return net.ErrClosed }

func (c *counter) WritePackets(pkts [][]byte) (int, error) { c.n += len(pkts); return len(pkts), nil }
