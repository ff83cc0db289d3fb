package udp

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// configure sets the options of a socket that is not bound yet. It ignores errors of the options, except for the one that
// Bind.Interface requires.
func (c *conn) configure(fd uintptr, b *Bind) error {
	set := func(level, option, value int) error { return unix.SetsockoptInt(int(fd), level, option, value) }
	if b.Interface != "" {
		if err := unix.BindToDevice(int(fd), b.Interface); err != nil {
			return err
		}
	}
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if set(unix.SOL_SOCKET, o[0], bufferSize) != nil { // with CAP_NET_ADMIN, the FORCE option may exceed the system's limit
			set(unix.SOL_SOCKET, o[1], bufferSize) // the system reduces the size to its limit
		}
	}
	// Android moves programs between networks and chooses the source address itself. So do not ask it for the local addresses of
	// received datagrams.
	sticky := 1
	if runtime.GOOS == "android" {
		sticky = 0
	}
	if c.family == ipv4 {
		set(unix.IPPROTO_IP, unix.IP_PKTINFO, sticky)
		set(unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
		set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT) // keeps the flag DF clear
	} else {
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, sticky)
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
		set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
	}
	if !b.NoOffload && !b.Portable {
		c.offload(int(fd))
	}
	return nil
}

// offload finds out whether the system can send trains, and enables the delivery of received trains if the system supports that.
func (c *conn) offload(fd int) {
	_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	c.gso = err == nil
	// Linux before 5.12 has bugs in receiving trains. In these versions, the option UDP_GRO cannot be read back, which identifies
	// them.
	unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	on, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO)
	if c.gro = err == nil && on == 1; !c.gro {
		unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 0)
	}
}

func setMark(fd uintptr, mark uint32) error {
	return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
}

// path returns a portable if b.Portable is set, and otherwise a linuxPath.
func (c *conn) path(b *Bind) path {
	if b.Portable {
		return newPortable(c)
	}
	return newLinux(c, b.beside)
}
