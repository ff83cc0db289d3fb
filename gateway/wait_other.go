//go:build !unix

package gateway

import "net"

// hostWaiter waits for nothing, so that each mapping holds a buffer.
func hostWaiter(*net.UDPConn) func() error { return noWait }
