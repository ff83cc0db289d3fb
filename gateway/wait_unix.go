//go:build unix

package gateway

import (
	"net"
	"syscall"
)

// hostWaiter returns a function that waits until c has something to read. It looks at the datagram, because a mere wait
// for readiness would miss one that has arrived before.
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
				return err != syscall.EAGAIN // ReadFrom reports other errors
			}
		}
	}
	return func() error { return raw.Read(ready) }
}
