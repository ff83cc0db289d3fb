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

// handle accepts f and passes its connection to serve, a function of the program.
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
	cancel        context.CancelCauseFunc // resets both connections
	moved         atomic.Uint64           // a counter that grows with each byte in either direction, and with each half-close
	waits         atomic.Int32            // how many directions wait because of the peer's rate
	half          atomic.Bool             // whether at least one direction has ended

	mu    sync.Mutex  // guards the rest
	timer *time.Timer // calls look; nil once both directions have ended
	seen  uint64      // the value of moved when look last found a change
	since time.Time   // when look found that change
}

// run copies in both directions until both have ended. It resets both connections if they carry nothing for the duration
// idle. Once one direction has ended, the duration is the lesser of idle and transitoryIdle.
func (j *joint) run(idle time.Duration) {
	j.watch(idle)
	defer j.unwatch()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// io.Copy uses the methods WriteTo and ReadFrom of netstack's connection, which save one copy of the bytes. A wrapper
		// would hide these methods, so only the remote connection is wrapped in a meterWriter or a meterReader.
		_, err := io.Copy(meterWriter{j, j.remote}, j.local)
		j.end(j.remote, err)
	}()
	_, err := io.Copy(j.local, meterReader{j, j.remote})
	j.end(j.local, err)
	<-ended
}

// end is called when the copy to one connection (to) has ended, with the error of the copy or nil. If err is nil, end closes that
// connection for writing. If err is not nil, or if the connection cannot be closed for writing, end resets both connections.
func (j *joint) end(to net.Conn, err error) {
	j.half.Store(true)
	j.moved.Add(1) // transitoryIdle is measured from now on
	if err == nil {
		c, ok := to.(interface{ CloseWrite() error })
		if ok && c.CloseWrite() == nil {
			return
		}
		err = io.EOF
	}
	j.cancel(err)
}

// watch starts the timer that looks for idle connections.
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

// look resets both connections if they have carried nothing for too long. Otherwise it sets the timer to run look again after
// step.
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
	if n := j.moved.Load(); n != j.seen || j.waits.Load() > 0 {
		j.seen, j.since = n, now
	} else if now.Sub(j.since) >= limit {
		j.cancel(context.DeadlineExceeded)
		return
	}
	j.timer.Reset(step)
}

// A meterWriter counts the bytes that a peer sends, and limits their rate.
type meterWriter struct {
	*joint
	to net.Conn
}

func (m meterWriter) Write(b []byte) (int, error) {
	m.waits.Add(1)
	err := m.account.pass(m.ctx, &m.account.fromPeer, len(b))
	m.waits.Add(-1)
	if err != nil {
		return 0, err
	}
	m.moved.Add(uint64(len(b)))
	return m.to.Write(b)
}

// A meterReader counts the bytes that a peer receives, and limits their rate.
type meterReader struct {
	*joint
	from net.Conn
}

func (m meterReader) Read(b []byte) (int, error) {
	n, err := m.from.Read(b)
	if n > 0 {
		m.moved.Add(uint64(n))
		m.waits.Add(1)
		e := m.account.pass(m.ctx, &m.account.toPeer, n)
		m.waits.Add(-1)
		if e != nil {
			return 0, e
		}
	}
	return n, err
}
