//go:build !unix

package sockets

import "net"

// hostWaiter does not wait: this system has no call that waits without reading.
func hostWaiter(*net.UDPConn) func() error { return noWait }
