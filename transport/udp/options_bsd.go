//go:build freebsd || openbsd

package udp

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// configure sets the options of a socket that is not bound yet.
func (c *conn) configure(fd uintptr, b *Bind) error {
	if b.Interface != "" {
		return fmt.Errorf("this system cannot bind a socket to an interface; set Bind.Address instead: %w", errors.ErrUnsupported)
	}
	if c.family == ipv6 {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
		return nil
	}
	unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVDSTADDR, 1)
	if recvTOS4 > 0 {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, recvTOS4, 1)
	}
	return nil
}

func setMark(fd uintptr, mark uint32) error {
	return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, markOption, int(mark))
}
