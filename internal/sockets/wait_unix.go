//go:build unix

package sockets

import (
	"net"
	"syscall"
)

// hostWaiter returns a function that waits until it can peek at a datagram. A mere wait for readiness would miss a datagram that
// has already arrived.
func hostWaiter(c *net.UDPConn) func() error {
	raw, err := c.SyscallConn()
	if err != nil {
		return func() error { return err }
	}
	var b [1]byte
	ready := func(fd uintptr) bool {
		for {
			_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
			if err != syscall.EINTR {
				return err != syscall.EAGAIN // the read reports other errors
			}
		}
	}
	return func() error { return raw.Read(ready) }
}
