package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// relay copies between client and target until both directions have ended. It starts one goroutine. When one side has sent its
// last byte, relay half-closes the connection to the other side, which may still send.
func (n *session) relay(client, target net.Conn) error {
	var back sync.WaitGroup
	var ends atomic.Int32
	back.Go(func() { n.pass(client, target, &n.received, &ends) })
	n.pass(target, client, &n.sent, &ends)
	back.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// pass copies one direction. An error ends both directions. ends counts the directions that have ended. When the second
// direction has ended, the session closes both connections at once, so a TCP connection of the kernel needs no half-close
// then. A tls.Conn still needs the half-close, because it sends the TLS alert close_notify, which tells the client that
// nothing is missing.
func (n *session) pass(dst, src net.Conn, moved *atomic.Int64, ends *atomic.Int32) {
	if err := n.copy(dst, src, moved); err != nil {
		n.fail(err)
		return
	}
	if ends.Add(1) == 2 && kernelTCP(dst) {
		return
	}
	if c, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite() // if it fails, the other direction fails too
		return
	}
	_ = dst.Close() // dst has no half-close, so only a close tells the other side that the data has ended
}

// copy copies src to dst until io.EOF. It uses the first of these methods that is possible:
//
//   - The kernel moves bytes between two of its sockets (splice).
//   - A connection of the kernel is read only when it has data, into a buffer that then goes back to its pool.
//   - A source with WriteTo, such as *netstack.TCPConn, copies its own data. It also takes a buffer only when it has data.
//   - The bytes pass through a small buffer, or through a large one as long as reads would fill the small one.
//
// So a connection without traffic holds no buffer in the first three cases, and 4 KiB in the last.
func (n *session) copy(dst io.Writer, src net.Conn, moved *atomic.Int64) error {
	if kernelTCP(dst) && kernelTCP(src) && canSplice {
		return n.splice(dst.(*net.TCPConn), src.(*net.TCPConn), moved)
	}
	if done, err := copyReady(dst, src, moved); done {
		return err
	}
	if w, ok := src.(io.WriterTo); ok && !kernelTCP(src) {
		_, err := w.WriteTo(meter{dst, moved})
		return err
	}
	return copyGrowing(dst, src, moved)
}

func kernelTCP(c any) bool {
	_, ok := c.(*net.TCPConn)
	return ok
}

// splice lets the kernel copy the bytes. io.Copy reports how many bytes it has copied only when it returns. So splice sets read
// deadlines, which make io.Copy return several times within the idle time.
func (n *session) splice(dst, src *net.TCPConn, moved *atomic.Int64) error {
	every := n.server.idle() / (2 * quarters)
	for {
		if every > 0 {
			_ = src.SetReadDeadline(time.Now().Add(every))
		}
		m, err := io.Copy(dst, src)
		moved.Add(m)
		if every == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// A meter counts the bytes that are written through it.
type meter struct {
	io.Writer
	n *atomic.Int64
}

func (m meter) Write(b []byte) (int, error) {
	n, err := m.Writer.Write(b)
	m.n.Add(int64(n))
	return n, err
}

const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10
)

var (
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }}
	largeBuffers = sync.Pool{New: func() any { b := make([]byte, largeBuffer); return &b }}
)

// copyGrowing begins with a small buffer. After a read of at least smallBuffer bytes, it uses a large buffer, and after a shorter
// read a small one again.
func copyGrowing(dst io.Writer, src io.Reader, moved *atomic.Int64) error {
	pool := &smallBuffers
	for {
		b := pool.Get().(*[]byte)
		m, rerr := src.Read(*b)
		var werr error
		if m > 0 {
			var k int
			k, werr = dst.Write((*b)[:m])
			moved.Add(int64(k))
		}
		pool.Put(b)
		switch {
		case werr != nil:
			return werr
		case rerr == io.EOF:
			return nil
		case rerr != nil:
			return rerr
		case m >= smallBuffer:
			pool = &largeBuffers
		default:
			pool = &smallBuffers
		}
	}
}

// first sends to the target what the client sent before the target was connected.
func (n *session) first(target net.Conn, early []byte) error {
	if len(early) == 0 {
		return nil
	}
	m, err := target.Write(early)
	n.sent.Add(int64(m))
	return err
}
