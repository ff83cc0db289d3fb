//go:build !linux

package udp

// path returns the portable path. It asks for smaller and smaller socket buffers until the system accepts one. These
// systems fragment datagrams by default.
func (c *conn) path(*Bind) path {
	for _, set := range []func(int) error{c.udp.SetReadBuffer, c.udp.SetWriteBuffer} {
		for size := bufferSize; size >= 256<<10 && set(size) != nil; size /= 2 {
		}
	}
	return newPortable(c)
}
