package udp

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// configure sets the options of a socket that is not bound yet. What the system does not have is left out, down to
// plain sockets, but for what the Bind's user asked for.
func (c *conn) configure(fd uintptr, b *Bind) error {
	set := func(level, option, value int) error { return unix.SetsockoptInt(int(fd), level, option, value) }
	if b.Interface != "" {
		if err := unix.BindToDevice(int(fd), b.Interface); err != nil {
			return err
		}
	}
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if set(unix.SOL_SOCKET, o[0], bufferSize) != nil { // beyond the system's limit, with CAP_NET_ADMIN
			set(unix.SOL_SOCKET, o[1], bufferSize) // or up to it
		}
	}
	// Android moves its programs from one network to the next and wants to choose the source.
	sticky := 1
	if runtime.GOOS == "android" {
		sticky = 0
	}
	if c.family == ipv4 {
		set(unix.IPPROTO_IP, unix.IP_PKTINFO, sticky)
		set(unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
		set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT) // clears DF
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

// offload finds out whether trains can be sent, and has them received where that is so.
func (c *conn) offload(fd int) {
	_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	c.gso = err == nil
	// Before Linux 5.12, which could not read this option back, receiving trains had faults.
	unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	on, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO)
	if c.gro = err == nil && on == 1; !c.gro {
		unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 0)
	}
}

func setMark(fd uintptr, mark uint32) error {
	return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
}

// path is the way that b asks for.
func (c *conn) path(b *Bind) path {
	if b.Portable {
		return newPortable(c)
	}
	return newLinux(c)
}
