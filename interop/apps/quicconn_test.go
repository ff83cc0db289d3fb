package apps

import (
	"net"
	"sync/atomic"
	"syscall"

	"github.com/quic-go/quic-go"
	"github.com/seed-86b749af/wireguard/transport/netstack"
	"golang.org/x/net/ipv4"
)

// A quicConn is a UDPConn with which quic-go uses ECN and UDP_SEGMENT over a Net, on Linux, Darwin and FreeBSD. With a
// *netstack.UDPConn alone, quic-go uses neither: that type has no SyscallConn, so quic-go uses it only as a net.PacketConn.
type quicConn struct {
	*netstack.UDPConn
	segmented atomic.Int64 // number of writes that the Net split into several datagrams
}

var _ quic.OOBCapablePacketConn = (*quicConn)(nil)

// newQUICConn wraps c for a quic.Transport. It forbids fragmentation, because quic-go sends probes to find the largest datagram
// that the path carries.
func newQUICConn(c *netstack.UDPConn) (*quicConn, error) {
	return &quicConn{UDPConn: c}, c.SetDontFragment(true)
}

// SyscallConn returns a RawConn without a descriptor. quic-go uses the RawConn only to set options that are always on in a
// UDPConn.
func (c *quicConn) SyscallConn() (syscall.RawConn, error) { return noDescriptor{}, nil }

// ReadBatch reads one datagram. quic-go calls it in place of recvmmsg.
func (c *quicConn) ReadBatch(ms []ipv4.Message, _ int) (int, error) {
	m := &ms[0]
	n, oobn, flags, from, err := c.ReadMsgUDP(m.Buffers[0], m.OOB)
	if err != nil {
		return 0, err
	}
	m.N, m.NN, m.Flags, m.Addr = n, oobn, flags, from
	return 1, nil
}

// WriteMsgUDP also counts the writes with UDP_SEGMENT, which a test checks.
func (c *quicConn) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error) {
	if len(b) > 1500 {
		c.segmented.Add(1)
	}
	return c.UDPConn.WriteMsgUDP(b, oob, to)
}

// noDescriptor is a syscall.RawConn whose calls succeed and do nothing.
type noDescriptor struct{}

func (noDescriptor) Control(func(fd uintptr)) error           { return nil }
func (noDescriptor) Read(func(fd uintptr) (done bool)) error  { return nil }
func (noDescriptor) Write(func(fd uintptr) (done bool)) error { return nil }
