package udp

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// configure sets the options of a socket that is not bound yet.
func (c *conn) configure(fd uintptr, b *Bind) error {
	c.askControl(fd)
	if b.Interface == "" {
		return nil
	}
	i, err := net.InterfaceByName(b.Interface)
	if err != nil {
		return err
	}
	if c.family == ipv6 {
		return unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_BOUND_IF, i.Index)
	}
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BOUND_IF, i.Index)
}

func (c *conn) askControl(fd uintptr) {
	if c.family == ipv6 {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
		return
	}
	unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVPKTINFO, 1)
	unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
}

func setMark(_ uintptr, mark uint32) error {
	if mark == 0 {
		return nil
	}
	return errors.ErrUnsupported
}
