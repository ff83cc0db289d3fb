//go:build !linux

package udp

// path returns the portable path. For each buffer of the socket, it requests smaller and smaller sizes until the system accepts
// one. It sets no option for fragmentation, since these systems fragment datagrams by default.
func (c *conn) path(*Bind) path {
	for _, set := range []func(int) error{c.udp.SetReadBuffer, c.udp.SetWriteBuffer} {
		for size := bufferSize; size >= 256<<10 && set(size) != nil; size /= 2 {
		}
	}
	return newPortable(c)
}
