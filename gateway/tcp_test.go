package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A halfConn is one end of a connection in memory that can be half-closed.
type halfConn struct {
	net.Conn // nil, because a joint calls only the methods that halfConn defines
	*io.PipeReader
	out *io.PipeWriter
}

func halfConns() (a, b halfConn) {
	ar, bw := io.Pipe()
	br, aw := io.Pipe()
	return halfConn{nil, ar, aw}, halfConn{nil, br, bw}
}

func (c halfConn) Read(b []byte) (int, error)  { return c.PipeReader.Read(b) }
func (c halfConn) Write(b []byte) (int, error) { return c.out.Write(b) }
func (c halfConn) CloseWrite() error           { return c.out.Close() }

func (c halfConn) Close() error {
	_ = c.out.CloseWithError(io.ErrClosedPipe)
	return c.PipeReader.CloseWithError(io.ErrClosedPipe)
}

// TestTCPIdleTimes checks REQ-5 of RFC 5382: an established connection may be silent for 2 hours and 4 minutes, and a
// half-closed connection for 4 minutes after the half-close. After traffic, the time is counted from the beginning.
func TestTCPIdleTimes(t *testing.T) {
	for _, c := range []struct {
		why  string
		act  func(peer halfConn)
		upTo time.Duration // the earliest time of the reset; the timer fires only every 4 minutes
	}{
		{"silent", func(halfConn) {}, defaultTCPIdle},
		{"busy for an hour", func(peer halfConn) {
			for range 60 {
				time.Sleep(time.Minute)
				_, _ = peer.Write([]byte("x"))
			}
		}, time.Hour + defaultTCPIdle},
		{"half-closed after an hour of silence", func(peer halfConn) {
			time.Sleep(time.Hour - time.Second) // the timer fires one second later
			_ = peer.CloseWrite()
		}, time.Hour - time.Second + transitoryIdle},
	} {
		synctest.Test(t, func(t *testing.T) {
			peer, local := halfConns()
			remote, host := halfConns()
			j := &joint{local: local, remote: remote, account: new(account)}
			j.account.limits.Store(new(Limits))
			j.ctx, j.cancel = context.WithCancelCause(t.Context())
			context.AfterFunc(j.ctx, func() { _, _ = local.Close(), remote.Close() })
			begun, took := time.Now(), time.Duration(0)
			context.AfterFunc(j.ctx, func() { took = time.Since(begun) })
			go func() { _, _ = io.Copy(io.Discard, host) }()
			go c.act(peer)
			j.run(defaultTCPIdle)
			synctest.Wait()
			if !errors.Is(context.Cause(j.ctx), context.DeadlineExceeded) || took < c.upTo || took > c.upTo+2*transitoryIdle {
				t.Errorf("%s: the connection ended after %v with %v, want the idle timeout after %v", c.why, took, context.Cause(j.ctx), c.upTo)
			}
		})
	}
}
