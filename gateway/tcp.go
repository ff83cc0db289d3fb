package gateway

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard/internal/sockets"
	"github.com/seed-86b749af/wireguard/transport/netstack"
)

// tcp joins a peer's connection with an outbound one:
//
//	dial ▶ accept ▶ copy in both directions ▶ each end of one is a half-close of the other
//
// An error resets both.
func (g *Gateway) tcp(f *netstack.Flow, a *account, v Verdict) {
	if v.Handle != nil {
		g.handle(f, v.Handle)
		return
	}
	to := f.Destination()
	if v.To.IsValid() {
		to = v.To
	}
	ctx, cancel := g.outbound(f)
	remote, err := g.config.Dial(ctx, "tcp", to.String())
	cancel()
	if err != nil {
		a.failed.Add(1)
		_ = f.Refuse(netstack.RefusalOf(err))
		return
	}
	local, err := f.Accept()
	if err != nil {
		sockets.Abort(remote)
		return
	}
	j := &joint{local: local, remote: remote, account: a}
	j.ctx, j.cancel = context.WithCancelCause(g.ctx)
	defer j.cancel(nil)
	aborted := make(chan struct{})
	stop := context.AfterFunc(j.ctx, func() { sockets.Abort(local); sockets.Abort(remote); close(aborted) })
	j.run(g.config.TCPIdle)
	if stop() {
		_, _ = local.Close(), remote.Close()
	} else {
		<-aborted
	}
}

// handle gives the connection of f to the program.
func (g *Gateway) handle(f *netstack.Flow, serve func(net.Conn)) {
	c, err := f.Accept()
	if err != nil {
		return
	}
	stop := context.AfterFunc(g.ctx, func() { sockets.Abort(c) })
	defer stop()
	defer c.Close()
	serve(&flowConn{c.(*netstack.TCPConn), f.Peer()})
}

// A joint is two connections that are copied into each other.
type joint struct {
	local, remote net.Conn
	account       *account
	ctx           context.Context
	cancel        context.CancelCauseFunc // resets both
	moved         atomic.Uint64           // bytes in both directions
	half          atomic.Bool             // one direction has ended
}

// run returns when both directions have ended.
func (j *joint) run(idle time.Duration) {
	watch := j.watch(idle)
	defer watch()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// netstack's WriteTo and ReadFrom save a copy, so the meter is always on the other side.
		_, err := io.Copy(meterWriter{j, j.remote}, j.local)
		j.end(j.remote, err)
	}()
	_, err := io.Copy(j.local, meterReader{j, j.remote})
	j.end(j.local, err)
	<-ended
}

// end passes the end of one direction on to the connection to.
func (j *joint) end(to net.Conn, err error) {
	j.half.Store(true)
	if err == nil {
		c, ok := to.(interface{ CloseWrite() error })
		if ok && c.CloseWrite() == nil {
			return
		}
	}
	if err == nil {
		err = io.EOF
	}
	j.cancel(err)
}

// watch resets the connections after idle, or transitoryIdle if they are half-closed. It returns a function that ends
// it.
func (j *joint) watch(idle time.Duration) (stop func()) {
	done := make(chan struct{})
	step := min(idle, transitoryIdle)
	seen, since := j.moved.Load(), time.Now()
	var timer *time.Timer // set before it can fire: Reset starts it
	timer = time.AfterFunc(1000*time.Hour, func() {
		select {
		case <-done:
			return
		default:
		}
		now, limit := time.Now(), idle
		if j.half.Load() {
			limit = step
		}
		if n := j.moved.Load(); n != seen {
			seen, since = n, now
		} else if now.Sub(since) >= limit {
			j.cancel(context.DeadlineExceeded)
			return
		}
		timer.Reset(step)
	})
	timer.Reset(step)
	return func() { close(done); timer.Stop() }
}

// A meterWriter counts what a peer sends.
type meterWriter struct {
	*joint
	to net.Conn
}

func (m meterWriter) Write(b []byte) (int, error) {
	if err := m.account.pass(m.ctx, &m.account.fromPeer, len(b)); err != nil {
		return 0, err
	}
	m.moved.Add(uint64(len(b)))
	return m.to.Write(b)
}

// A meterReader counts what a peer receives.
type meterReader struct {
	*joint
	from net.Conn
}

func (m meterReader) Read(b []byte) (int, error) {
	n, err := m.from.Read(b)
	if n > 0 {
		m.moved.Add(uint64(n))
		if e := m.account.pass(m.ctx, &m.account.toPeer, n); e != nil {
			return 0, e
		}
	}
	return n, err
}
