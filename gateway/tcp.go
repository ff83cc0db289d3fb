package gateway

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard/internal/sockets"
	"github.com/seed-86b749af/wireguard/transport/netstack"
)

// tcp joins a peer's connection with an outbound one:
//
//	dial ▶ accept ▶ copy in both directions ▶ when one connection ends its direction, half-close the other
//
// An error resets both connections.
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
	moved         atomic.Uint64           // changes with each byte in either direction, and with each half-close
	half          atomic.Bool             // one direction has ended

	mu    sync.Mutex  // guards the rest
	timer *time.Timer // calls look; nil once both directions have ended
	seen  uint64      // moved at the last look that found a change
	since time.Time   // when that look was
}

// run copies in both directions until both have ended. It resets both connections if they carry nothing for idle or, once
// one direction has ended, for transitoryIdle or idle, whichever is less.
func (j *joint) run(idle time.Duration) {
	j.watch(idle)
	defer j.unwatch()
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

// end is called when the direction towards the connection to has ended, with the error of its copy or nil. Without an error it
// closes to for writing. After an error, or if that fails, it resets both connections.
func (j *joint) end(to net.Conn, err error) {
	j.half.Store(true)
	j.moved.Add(1) // the transitory time begins now
	if err == nil {
		c, ok := to.(interface{ CloseWrite() error })
		if ok && c.CloseWrite() == nil {
			return
		}
		err = io.EOF
	}
	j.cancel(err)
}

// watch begins to look for silence.
func (j *joint) watch(idle time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	step := min(idle, transitoryIdle)
	j.seen, j.since = j.moved.Load(), time.Now()
	j.timer = time.AfterFunc(step, func() { j.look(idle, step) })
}

func (j *joint) unwatch() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.timer.Stop()
	j.timer = nil
}

// look resets both connections if they have been silent for too long, or else looks again after step.
func (j *joint) look(idle, step time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.timer == nil {
		return
	}
	now, limit := time.Now(), idle
	if j.half.Load() {
		limit = step
	}
	if n := j.moved.Load(); n != j.seen {
		j.seen, j.since = n, now
	} else if now.Sub(j.since) >= limit {
		j.cancel(context.DeadlineExceeded)
		return
	}
	j.timer.Reset(step)
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
