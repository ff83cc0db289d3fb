//go:build !linux

package udp

// path is the portable one. The system's limit for the buffers of a socket is found by asking for less and less; the
// fragments of a datagram are let through by default.
func (c *conn) path(*Bind) path {
	for _, set := range []func(int) error{c.udp.SetReadBuffer, c.udp.SetWriteBuffer} {
		for size := bufferSize; size >= 256<<10 && set(size) != nil; size /= 2 {
		}
	}
	return newPortable(c)
}
