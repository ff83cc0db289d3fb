package netstack

import (
	"bytes"
	"io"
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/seed-86b749af/wireguard/internal/stackroom"
)

// A TCPConn is a TCP connection through the tunnel. It behaves as a *net.TCPConn does, errors included. It is safe for
// concurrent use and must not be copied.
//
// A TCPConn has no methods File and SyscallConn, because it has no file descriptor. The method Endpoint takes their place.
type TCPConn struct {
	socket
	local, remote *net.TCPAddr

	memory *portion

	readMu  sync.Mutex // held during a Read; guards the next two fields
	into    tcpip.SliceWriter
	reading growth

	writeMu sync.Mutex // held during a Write, so that its bytes stay together; guards the rest
	writing growth
	from    *bytes.Reader // gVisor reads the bytes to send from it; allocated separately, because gVisor remembers the last reader
	wrote   bool          // whether Write was called
}

// newTCPConn returns a connection that owns ep, whose waiter queue is q. network is the network in the connection's errors.
func newTCPConn(n *Net, network string, ep tcpip.Endpoint, q *waiter.Queue, probes net.KeepAliveConfig) *TCPConn {
	c := &TCPConn{from: new(bytes.Reader)}
	c.init(n, network, ep, q)
	c.memory = n.budget.open(ep, q, n.mtu, &n.link.windows.heard)
	if probes.Enable {
		_ = setKeepAlive(ep, probes) // gVisor accepts every value
		ep.SocketOptions().SetKeepAlive(true)
	}
	if a, err := ep.GetLocalAddress(); err == nil {
		c.local = net.TCPAddrFromAddrPort(addrPort(a))
	}
	if a, err := ep.GetRemoteAddress(); err == nil {
		c.remote = net.TCPAddrFromAddrPort(addrPort(a))
	}
	return c
}

// Read waits for data, and reads as much of what has arrived as fits into b. Read fails with io.EOF after the other end has closed
// its side of the connection, or after CloseRead.
func (c *TCPConn) Read(b []byte) (int, error) {
	n, err := c.read(b)
	return n, c.wrap("read", err)
}

func (c *TCPConn) read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	if err := c.usable(&c.reads); err != nil {
		return 0, err
	}
	for {
		drain(c.readable)
		c.into = b
		res, err := c.ep.Read(&c.into, tcpip.ReadOptions{})
		c.into = nil
		switch err.(type) {
		case nil:
			c.memory.touch()
			if size := c.memory.recv.size.Load(); c.reading.moved(res.Count, size) {
				c.reading.measure(size, measuredTrip(c.ep))
				c.memory.growRecv(c.reading.recvNeed())
			}
			return res.Count, nil
		case *tcpip.ErrWouldBlock:
		case *tcpip.ErrClosedForReceive:
			if c.isClosed() {
				return 0, net.ErrClosed
			}
			return 0, io.EOF
		default:
			return 0, c.failure("read", err)
		}
		if err := c.wait(c.readable, &c.reads); err != nil {
			return 0, err
		}
	}
}

// Write copies b to the connection's send buffer, and waits while the buffer is full.
func (c *TCPConn) Write(b []byte) (int, error) {
	n, err := c.write(b)
	return n, c.wrap("write", err)
}

func (c *TCPConn) write(b []byte) (n int, err error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if err := c.usable(&c.writes); err != nil {
		return 0, err
	}
	if !c.wrote { // the first call often comes from a goroutine that the program has started for c
		stackroom.Take()
		c.wrote = true
	}
	defer c.from.Reset(nil)
	for n < len(b) {
		drain(c.writable)
		c.from.Reset(b[n:])
		m, err := c.ep.Write(c.from, tcpip.WriteOptions{})
		n += int(m)
		switch err.(type) {
		case nil:
			c.memory.touch()
			if size := c.memory.send.size.Load(); c.writing.moved(int(m), size) {
				c.writing.measure(size, measuredTrip(c.ep))
				if most, is := c.writing.sendExcess(size); is {
					c.memory.cutSend(most)
				} else {
					c.memory.growSend(c.writing.sendNeed())
				}
				c.writing.fill(c.memory.send.size.Load() - size)
			}
			continue
		case *tcpip.ErrWouldBlock:
		default:
			return n, c.failure("write", err)
		}
		if err := c.wait(c.writable, &c.writes); err != nil {
			return n, err
		}
	}
	return n, nil
}

// Close closes the connection. Data that was written is still delivered. Closing again fails with net.ErrClosed.
func (c *TCPConn) Close() error {
	empty := c.memory.fits(0)
	if !c.close() {
		return c.wrap("close", net.ErrClosed)
	}
	c.memory.leave(empty)
	return nil
}

// CloseRead shuts down the reading side: Read then fails with io.EOF.
func (c *TCPConn) CloseRead() error { return c.shutdown(tcpip.ShutdownRead) }

// CloseWrite shuts down the writing side: the other end reads io.EOF after all data that was written. From then on, gVisor sends no
// selective acknowledgements, so over a path that loses packets, the other end's data arrives more slowly.
func (c *TCPConn) CloseWrite() error { return c.shutdown(tcpip.ShutdownWrite) }

func (c *TCPConn) shutdown(flags tcpip.ShutdownFlags) error {
	if c.isClosed() {
		return c.wrap("close", net.ErrClosed)
	}
	if err := c.ep.Shutdown(flags); err != nil {
		return c.wrap("close", c.failure("shutdown", err))
	}
	return nil
}

// LocalAddr returns a *net.TCPAddr, which the caller must not change.
func (c *TCPConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns a *net.TCPAddr, which the caller must not change.
func (c *TCPConn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline calls SetReadDeadline and SetWriteDeadline.
func (c *TCPConn) SetDeadline(t time.Time) error {
	return c.wrap("set", c.setDeadlines(t, &c.reads, &c.writes))
}

// SetReadDeadline sets when Read fails with os.ErrDeadlineExceeded, including a Read that waits now. The zero time means
// never.
func (c *TCPConn) SetReadDeadline(t time.Time) error {
	return c.wrap("set", c.setDeadlines(t, &c.reads))
}

// SetWriteDeadline sets when Write fails with os.ErrDeadlineExceeded, including a Write that waits now. The zero time
// means never.
func (c *TCPConn) SetWriteDeadline(t time.Time) error {
	return c.wrap("set", c.setDeadlines(t, &c.writes))
}

// SetNoDelay says whether the connection sends small writes at once, which is the default, or gathers them while data
// is in flight.
func (c *TCPConn) SetNoDelay(on bool) error {
	return c.option(func(o *tcpip.SocketOptions) { o.SetDelayOption(!on) })
}

// SetLinger says what Close does with data that is not acknowledged yet. If sec is 0, Close discards the data and resets the
// connection. For any other number, the stack delivers the data in the background, and Close does not wait.
func (c *TCPConn) SetLinger(sec int) error {
	return c.option(func(o *tcpip.SocketOptions) { o.SetLinger(tcpip.LingerOption{Enabled: sec == 0}) })
}

// SetReadBuffer sets the size of the receive buffer, in bytes, to at least 16 KiB. From then on, the size does not adapt to the
// path. The buffer is smaller if Config.Memory does not suffice.
func (c *TCPConn) SetReadBuffer(bytes int) error {
	return c.option(func(*tcpip.SocketOptions) { c.memory.fixRecv(int64(max(bytes, minReadBuffer))) })
}

// SetWriteBuffer sets the size of the send buffer, in bytes. From then on, the size does not adapt to the path. The buffer is
// smaller if Config.Memory does not suffice.
func (c *TCPConn) SetWriteBuffer(bytes int) error {
	return c.option(func(*tcpip.SocketOptions) { c.memory.fixSend(int64(bytes)) })
}

func (c *TCPConn) option(set func(*tcpip.SocketOptions)) error {
	if c.isClosed() {
		return c.wrap("set", net.ErrClosed)
	}
	set(c.ep.SocketOptions())
	return nil
}

// WriteTo copies to w all data that arrives, until the other end closes the connection. io.Copy uses it. WriteTo holds a buffer
// only while there is data to copy, so that a relay of idle connections costs no memory.
func (c *TCPConn) WriteTo(w io.Writer) (int64, error) {
	n, err := c.writeTo(w)
	return n, c.wrap("writeto", err)
}

func (c *TCPConn) writeTo(w io.Writer) (total int64, err error) {
	for {
		if err := c.waitReadable(); err != nil {
			return total, c.wrap("read", err)
		}
		pool := &copyBuffers
		if c.memory.recv.size.Load() <= smallBuffer {
			pool = &smallBuffers
		}
		b := pool.Get().(*[]byte)
		n, rerr := c.Read(*b)
		var m int
		var werr error
		if n > 0 {
			m, werr = w.Write((*b)[:n])
		}
		pool.Put(b)
		total += int64(m)
		switch {
		case werr != nil:
			return total, werr
		case m < n:
			return total, io.ErrShortWrite
		case rerr == io.EOF:
			return total, nil
		case rerr != nil:
			return total, rerr
		}
	}
}

// ReadFrom copies all data that r returns to the connection, until r returns io.EOF. io.Copy uses it.
func (c *TCPConn) ReadFrom(r io.Reader) (int64, error) {
	b := relayBuffers.Get().(*[relayBuffer]byte)
	n, err := c.readFrom(r, b[:])
	relayBuffers.Put(b)
	return n, c.wrap("readfrom", err)
}

func (c *TCPConn) readFrom(r io.Reader, b []byte) (total int64, err error) {
	for {
		n, rerr := r.Read(b)
		if n > 0 {
			m, err := c.Write(b[:n])
			total += int64(m)
			if err != nil {
				return total, err
			}
		}
		switch {
		case rerr == io.EOF:
			return total, nil
		case rerr != nil:
			return total, rerr
		}
	}
}

// MultipathTCP returns false: gVisor's TCP has a single path.
func (c *TCPConn) MultipathTCP() (bool, error) { return false, nil }

const (
	copyBuffer  = 128 << 10
	smallBuffer = 32 << 10 // WriteTo uses it if the receive buffer is not larger
	relayBuffer = 32 << 10 // ReadFrom keeps it while its reader has nothing to read, as io.Copy does
)

var (
	copyBuffers  = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }}
	relayBuffers = sync.Pool{New: func() any { return new([relayBuffer]byte) }}
)

// waitReadable waits until Read can return without waiting, or until the read deadline.
func (c *TCPConn) waitReadable() error {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if err := c.usable(&c.reads); err != nil {
		return err
	}
	for {
		drain(c.readable)
		if c.ep.Readiness(waiter.ReadableEvents|hangUp) != 0 {
			return nil
		}
		if err := c.wait(c.readable, &c.reads); err != nil {
			return err
		}
	}
}

// wrap turns err into an error of package net. It leaves io.EOF and nil unchanged.
func (c *TCPConn) wrap(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	e := &net.OpError{Op: op, Net: c.network, Err: err}
	if c.local != nil {
		e.Source = c.local
	}
	if c.remote != nil {
		e.Addr = c.remote
	}
	return e
}
