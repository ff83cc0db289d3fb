package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/netlab"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

func missingForKernel() string { return netlab.Missing("ip") }

// overhead is the number of bytes that WireGuard adds to a packet, apart from the IP and UDP headers of the datagram. The packets
// of the kernel's TCP are extended by as many bytes, so that the path has the same capacity for all sides.
const overhead = 16 + 16

// kernelBuffer is the size in bytes to which the kernel may grow the buffers of a TCP connection. The default of 6 MiB is too small
// for half of the paths in wanCells.
const kernelBuffer = 64 << 20

// joinKernels connects the TCP of two network namespaces over the same path as joinByWan, but without a tunnel:
//
//	TCP ─▶ TUN of a ─▶ end of the wire ══════ end of the wire ─▶ TUN of b ─▶ TCP
func joinKernels(st *stage, c wanCell) (*wanPath, error) {
	n := c.wire(st)
	ends := [2]*pipe.End{n.NewEnd(), n.NewEnd()}
	addrs := [2]netip.Addr{addrA, addrB}
	var hosts [2]*netlab.Host
	for i := range hosts {
		h, err := netlab.NewHost([]string{"a", "b"}[i])
		if err != nil {
			return nil, err
		}
		st.atClose(func() { h.Close() })
		hosts[i] = h
		if err := joinKernel(st, h, ends[i], ends[1-i], addrs[i], addrs[1-i]); err != nil {
			return nil, err
		}
	}
	a, b := kernelNetwork{hosts[0], addrA}, kernelNetwork{hosts[1], addrB}
	s, err := listen(st, a, b)
	if err != nil {
		return nil, err
	}
	return &wanPath{s, func(ctx context.Context) (time.Duration, error) { return a.ping(ctx, addrB) }}, nil
}

// kernelPort is the port of each end of the wire.
const kernelPort = 1

// joinKernel makes a TUN interface in the host h, and connects it with one end of the wire, from. A packet that the kernel sends
// through the interface goes to the other end, to. A packet that arrives at from goes to the kernel.
func joinKernel(st *stage, h *netlab.Host, from, to *pipe.End, own, other netip.Addr) error {
	tun, err := openTUN(h)
	if err != nil {
		return fmt.Errorf("TUN: %w", err)
	}
	st.atClose(func() { tun.Close() })
	for _, line := range []string{
		fmt.Sprintf("ip addr add %v peer %v dev wan", own, other),
		fmt.Sprintf("ip link set wan up mtu %d txqueuelen 10000", mtu),
	} {
		if _, err := h.Run(line); err != nil {
			return err
		}
	}
	for _, name := range []string{"tcp_rmem", "tcp_wmem"} {
		if err := h.Sysctl("net/ipv4/"+name, fmt.Sprintf("4096 131072 %d", kernelBuffer)); err != nil {
			return err
		}
	}
	socket, err := from.Listen(kernelPort)
	if err != nil {
		return err
	}
	st.atClose(func() { socket.Close() })
	go func() {
		b := make([]byte, mtu+overhead)
		ts := make([]wireguard.Train, 1)
		for {
			n, err := tun.Read(b[overhead:])
			if err != nil {
				return
			}
			ts[0] = wireguard.Train{Data: b[:overhead+n], Size: overhead + n, Endpoint: to.Endpoint(kernelPort)}
			socket.Send(ts)
		}
	}()
	go func() {
		for {
			ts, err := socket.Receivers()[0].Receive()
			if err != nil {
				return
			}
			for _, t := range ts {
				for data := t.Data; len(data) > overhead; {
					n := min(t.Size, len(data))
					_, _ = tun.Write(data[overhead:n]) // ignore errors: the kernel may drop packets
					data = data[n:]
				}
			}
		}
	}()
	return nil
}

// openTUN makes the interface "wan" in h.
func openTUN(h *netlab.Host) (f *os.File, err error) {
	err = h.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req := struct {
			name  [unix.IFNAMSIZ]byte
			flags uint16
			_     [22]byte
		}{flags: unix.IFF_TUN | unix.IFF_NO_PI}
		copy(req.name[:], "wan")
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&req))); e != 0 {
			unix.Close(fd)
			return e
		}
		f = os.NewFile(uintptr(fd), "/dev/net/tun")
		return nil
	})
	return f, err
}

// A kernelNetwork is the kernel's TCP/IP stack in a network namespace.
type kernelNetwork struct {
	host *netlab.Host
	addr netip.Addr
}

// dial calls connect(2), which blocks the thread until the connection is established or fails. It does not return earlier when ctx
// ends.
func (k kernelNetwork) dial(ctx context.Context, to netip.AddrPort) (c net.Conn, err error) {
	err = k.socket(func(fd int, f *os.File) (err error) {
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
			return err
		}
		c, err = net.FileConn(f)
		return err
	})
	return c, err
}

func (k kernelNetwork) listen(port uint16) (l net.Listener, err error) {
	err = k.socket(func(fd int, f *os.File) (err error) {
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}), unix.Listen(fd, 16)); err != nil {
			return err
		}
		l, err = net.FileListener(f)
		return err
	})
	return l, err
}

// socket calls the function use with the descriptor and the file of a new TCP socket in the namespace. After use returns, it
// closes the socket, so use must duplicate the descriptor if it keeps the socket.
func (k kernelNetwork) socket(use func(fd int, f *os.File) error) error {
	return k.host.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "tcp")
		defer f.Close()
		if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic"); err != nil {
			return err
		}
		return use(fd, f)
	})
}

// pingNumber is the number of the latest ping that kernelNetwork.ping sent. The number identifies the reply.
var pingNumber atomic.Uint32

// ping sends one echo request through a new socket, and returns the time until the reply arrives.
func (k kernelNetwork) ping(ctx context.Context, to netip.Addr) (took time.Duration, err error) {
	var c *icmp.PacketConn
	err = k.host.Do(func() (err error) {
		c, err = icmp.ListenPacket("ip4:icmp", k.addr.String())
		return err
	})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	number := pingNumber.Add(1)
	b, err := echoRequest(number)
	if err != nil {
		return 0, err
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	begin := time.Now()
	if _, err := c.WriteTo(b, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return 0, err
	}
	for in := make([]byte, 256); ; {
		n, _, err := c.ReadFrom(in)
		if err != nil {
			return 0, err
		}
		m, err := icmp.ParseMessage(unix.IPPROTO_ICMP, in[:n])
		if err != nil {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && m.Type == ipv4.ICMPTypeEchoReply && uint32(e.ID)<<16|uint32(e.Seq) == number {
			return time.Since(begin), nil
		}
	}
}
