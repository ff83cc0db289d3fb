//go:build linux

package kernel

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// A wire is the Ethernet link to the machine's eth1. It exists as long as the machine, and each test connects its own line to it.
// The wire drops datagrams from the kernel while no line is connected.
type wire struct {
	conn net.Conn // carries Ethernet frames, each preceded by its length in 4 bytes
	done chan struct{}

	mu   sync.Mutex // guards line
	line *line

	sending sync.Mutex // held while one frame is sent
}

func newWire(conn net.Conn) *wire {
	w := &wire{conn: conn, done: make(chan struct{})}
	go w.receive()
	return w
}

func (w *wire) close() {
	w.conn.Close()
	<-w.done
}

func (w *wire) receive() {
	defer close(w.done)
	var size [4]byte
	var r reassembly
	for {
		if _, err := io.ReadFull(w.conn, size[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(w.conn, b); err != nil {
			return
		}
		f, ok := parseFrame(b)
		if !ok {
			continue
		}
		if d, ok := r.add(f); ok {
			w.mu.Lock()
			l := w.line
			w.mu.Unlock()
			if l != nil {
				l.fromKernel(d)
			}
		}
	}
}

// send sends d to the machine. It blocks while the machine's receive queue is full.
func (w *wire) send(d *datagram) error {
	f := d.frame()
	b := append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)
	w.sending.Lock()
	defer w.sending.Unlock()
	_, err := w.conn.Write(b)
	return err
}

// The ends of a line: ours is the end of our device, and kernels is the end of the kernel.
const (
	ours    = 0
	kernels = 1
)

// A line connects a device's socket on loopback with the kernel's socket on eth1. It is a NAT: the kernel sends to the address in
// the field outside, and the device sends to the address in the field inside.
//
//	Device 127.0.0.1:x ─ inside 127.0.0.1:y │ outside 10.9.0.1:40000 ─ kernel 10.9.0.2:51820
type line struct {
	wire   *wire
	socket *net.UDPConn
	inside netip.AddrPort // the device sends messages for the kernel to this address
	wg     sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	device  netip.AddrPort
	outside netip.AddrPort // the kernel sends messages for the device to this address
	kernel  netip.AddrPort
	seen    [2][]datagram // all datagrams so far, indexed by the sending end: ours or kernels
	judge   func(from int, d *datagram) (pass bool)
}

// newLine makes a line and connects it to the wire until the test ends.
func newLine(t *testing.T, w *wire, v6 bool) *line {
	l := &line{wire: w, outside: netip.MustParseAddrPort("10.9.0.1:40000"), kernel: netip.MustParseAddrPort("10.9.0.2:51820")}
	loopback := netip.MustParseAddr("127.0.0.1")
	if v6 {
		l.outside, l.kernel = netip.MustParseAddrPort("[fd09::1]:40000"), netip.MustParseAddrPort("[fd09::2]:51820")
		loopback = netip.IPv6Loopback()
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Skipf("needs a socket on %v: %v", loopback, err)
	}
	if err := receiveTOS(c, v6); err != nil {
		t.Fatal(err)
	}
	l.socket, l.inside = c, c.LocalAddr().(*net.UDPAddr).AddrPort()
	l.inside = netip.AddrPortFrom(l.inside.Addr().Unmap(), l.inside.Port())
	w.mu.Lock()
	w.line = l
	w.mu.Unlock()
	l.wg.Go(l.receive)
	t.Cleanup(func() {
		w.mu.Lock()
		w.line = nil
		w.mu.Unlock()
		c.Close()
		l.wg.Wait()
	})
	return l
}

// receive reads the device's datagrams and records them. It sends to the kernel those that the filter lets pass.
func (l *line) receive() {
	b, oob := make([]byte, 65535), make([]byte, 128)
	for {
		n, on, _, from, err := l.socket.ReadMsgUDPAddrPort(b, oob)
		if err != nil {
			return
		}
		d := datagram{data: slices.Clone(b[:n]), tos: parseTOS(oob[:on]), fragments: 1}
		l.mu.Lock()
		l.device = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		d.from, d.to = l.outside, l.kernel
		pass := l.see(ours, &d)
		l.mu.Unlock()
		if pass && l.wire.send(&d) != nil {
			return
		}
	}
}

// fromKernel records a datagram from the kernel, and sends it to the device if the filter lets it pass. It ignores datagrams that
// are not for the device, such as the kernel's answers to the flood of TestCookieKernel.
func (l *line) fromKernel(d *datagram) {
	l.mu.Lock()
	pass := d.to == l.outside
	if pass {
		l.kernel = d.from
		pass = l.see(kernels, d)
	}
	device := l.device
	l.mu.Unlock()
	if pass && device.IsValid() {
		l.toDevice(device, d)
	}
}

func (l *line) see(from int, d *datagram) (pass bool) {
	pass = l.judge == nil || l.judge(from, d)
	l.seen[from] = append(l.seen[from], *d)
	return pass
}

func (l *line) toDevice(device netip.AddrPort, d *datagram) {
	// Ignore errors: a device that is down does not receive the datagram.
	l.socket.WriteMsgUDPAddrPort(d.data, tosMessage(d.tos, device.Addr().Is6()), device)
}

// locate tells the line the device's address, so that the line can deliver the kernel's datagrams before the device has sent one.
func (l *line) locate(device netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.device = device
}

// rebind replaces the NAT's mapping: from now on, the device's datagrams reach the kernel from another source port.
func (l *line) rebind(port uint16) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outside = netip.AddrPortFrom(l.outside.Addr(), port)
}

// filter installs the function judge, which decides for each datagram whether it passes. judge may change the datagram. The line
// is locked while judge runs. If judge is nil, all datagrams pass.
func (l *line) filter(judge func(from int, d *datagram) (pass bool)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.judge = judge
}

// inject sends a copy of a datagram that one end, ours or kernels, has sent before. The copy bypasses the filter and is not
// recorded.
func (l *line) inject(from int, d datagram) {
	l.mu.Lock()
	device := l.device
	l.mu.Unlock()
	if from == ours {
		l.wire.send(&d)
	} else {
		l.toDevice(device, &d)
	}
}

// all returns all datagrams of a kind that one end, ours or kernels, has sent. They include datagrams that the filter dropped.
func (l *line) all(from int, kind pipe.MessageType) (ds []datagram) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.seen[from] {
		if d.kind() == kind {
			ds = append(ds, d)
		}
	}
	return ds
}

// count returns how many datagrams all returns.
func (l *line) count(from int, kind pipe.MessageType) int { return len(l.all(from, kind)) }

// receiveTOS makes the system report the type of service or traffic class of each datagram that c receives.
func receiveTOS(c *net.UDPConn, v6 bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	level, option := unix.IPPROTO_IP, unix.IP_RECVTOS
	if v6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(err, serr)
}

// parseTOS returns the type of service (a byte, for IPv4) or the traffic class (an int, for IPv6) from the control messages in
// oob.
func parseTOS(oob []byte) uint8 {
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range ms {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TOS:
			return m.Data[0]
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_TCLASS:
			return uint8(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return 0
}

// tosMessage returns the control message that makes the system send a datagram with the type of service or traffic class tos.
func tosMessage(tos uint8, v6 bool) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_TOS
	if v6 {
		h.Level, h.Type = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(tos))
	return b
}
