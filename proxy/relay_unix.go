//go:build unix

package proxy

import (
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
)

// A readyReader reads a connection of the kernel. It holds a buffer only while there is something to read.
type readyReader struct {
	raw syscall.RawConn
	buf *[]byte // nil between reads
	n   int
	err error
}

// attempt reads from the descriptor, which does not block. raw.Read calls attempt when the descriptor may be readable. If attempt
// returns false, raw.Read waits until the descriptor is readable, and calls attempt again.
func (r *readyReader) attempt(fd uintptr) bool {
	r.buf = largeBuffers.Get().(*[]byte)
	for {
		if r.n, r.err = syscall.Read(int(fd), *r.buf); r.err != syscall.EINTR {
			break
		}
	}
	if r.err == syscall.EAGAIN {
		r.release()
		return false
	}
	return true
}

func (r *readyReader) release() {
	if r.buf != nil {
		largeBuffers.Put(r.buf)
		r.buf = nil
	}
}

// copyReady copies src to dst if src is a stream socket of package net. It does not accept other types that have a method
// SyscallConn, because their Read may do more than read from the descriptor.
func copyReady(dst io.Writer, src net.Conn, moved *atomic.Int64) (done bool, err error) {
	var raw syscall.RawConn
	switch c := src.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		if c.LocalAddr().Network() != "unix" {
			return false, nil // a datagram socket
		}
		raw, err = c.SyscallConn()
	default:
		return false, nil
	}
	if err != nil {
		return true, err
	}
	r := readyReader{raw: raw}
	attempt := r.attempt // one closure for all reads
	for {
		err := raw.Read(attempt)
		switch {
		case err == nil && r.err != nil:
			err = os.NewSyscallError("read", r.err)
		case err == nil && r.n <= 0:
			r.release()
			return true, nil
		}
		if err == nil {
			var m int
			m, err = dst.Write((*r.buf)[:r.n])
			moved.Add(int64(m))
		}
		r.release()
		if err != nil {
			return true, err
		}
	}
}
