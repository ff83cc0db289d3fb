package udp

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// A socket is replaced by another one on its port in these steps, so that at every moment some socket receives the
// datagrams for the port:
//
//	Renew: open the new socket beside the old one. The system gives all datagrams to the new one from here on
//	       (share_linux.go). With several receivers, the first new socket gets all of them. Then the old sockets leave
//	       their group, and the other new sockets join the first one
//	the device sends and receives on the new one, and calls
//	Retire: the receivers of the old one return what had arrived there, and then fail
//	Close

const (
	// retireTime limits how long the receivers of a retired socket go on, if datagrams still arrive there.
	retireTime = time.Second

	// retirePause is how long a retired receiver waits before it looks into the socket again. Another core may have chosen
	// this socket for a datagram before the new socket was bound, and be about to queue the datagram.
	retirePause = time.Millisecond
)

// Renew opens another socket of the same Bind on the port of s, while s is open. On Linux all datagrams arrive at the
// new socket from then on. Other systems do not say which of two sockets on one port receives a datagram, and there
// the error wraps errors.ErrUnsupported. While Renew binds the new socket, a program on this host that sets SO_REUSEADDR
// can bind to the port too. Before and after that, the port is in use as it is after Listen; see Bind.Receivers.
func (s *Socket) Renew() (wireguard.Socket, error) {
	var undo []func()
	n, err := s.renew(&undo)
	if err != nil {
		for _, f := range undo {
			f()
		}
		return nil, err
	}
	return n, nil
}

// renew is Renew, except that it does not clean up after an error. It appends to undo what the caller must then call.
func (s *Socket) renew(undo *[]func()) (*Socket, error) {
	var was [families]bool // whether the ports were shared before, because of Bind.Control
	for f, p := range s.all() {
		c := p.socket()
		before, err := c.share(true)
		if err != nil {
			return nil, fmt.Errorf("udp: open a second socket on port %d: %w", s.port, err)
		}
		if was[f] = before; !before {
			*undo = append(*undo, func() { c.share(false) })
		}
	}
	b := *s.bind
	b.shared = true
	n, err := b.listen(s.port)
	if err != nil {
		return nil, b.explain(err, s.port)
	}
	*undo = append(*undo, func() { n.Close() })
	if err := s.leave(undo); err != nil {
		return nil, err
	}
	for f, p := range n.paths {
		if p == nil {
			continue
		}
		if err := n.join(family(f)); err != nil {
			return nil, b.explain(err, s.port)
		}
	}
	for f, p := range n.all() {
		if !was[f] {
			p.socket().share(false) // s stays shared, since n may be renewed before s is closed
		}
	}
	b.shared = false
	return n, nil
}

// leave keeps other sockets from joining the group of s. All new datagrams arrive at the new socket, so it does not
// matter that the kernel no longer spreads them over the sockets of s.
func (s *Socket) leave(undo *[]func()) error {
	for f, p := range s.all() {
		if len(s.others[f]) == 0 {
			continue
		}
		c := p.socket()
		if _, err := c.reuse(false); err != nil {
			return err
		}
		*undo = append(*undo, func() { c.reuse(true) })
	}
	return nil
}

// Retire lets the receivers return what has arrived until now. Then they fail with an error that wraps net.ErrClosed. If
// datagrams still arrive, the receivers end after a second. Send works until Close.
func (s *Socket) Retire() {
	for _, p := range s.all() {
		c := p.socket()
		c.retired.CompareAndSwap(nil, &retirement{until: time.Now().Add(retireTime)})
		c.udp.SetReadDeadline(time.Unix(1, 0)) // wakes a receiver that waits
	}
}

// A retirement says when the receiver of a retired socket ends. Only that receiver changes it.
type retirement struct {
	until time.Time // the receiver reads no more after this
	vain  int       // consecutive reads that found nothing
}

func (r *retirement) isLate() bool { return !time.Now().Before(r.until) }

// isOver counts a read that found nothing, and reports whether the receiver must end, which is so after limit such reads
// in a row. Otherwise it waits a little before it returns.
func (r *retirement) isOver(limit int) bool {
	if r.vain++; r.vain >= limit {
		return true
	}
	time.Sleep(retirePause)
	return false
}

// isRetired reports whether err ended a wait because the socket was retired.
func (c *conn) isRetired(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) && c.retired.Load() != nil
}

// share lets another socket be bound to the port of c, or forbids that again. It returns what was set before.
func (c *conn) share(on bool) (was bool, err error) {
	if e := c.raw.Control(func(fd uintptr) { was, err = setShared(fd, on) }); e != nil {
		return false, closedOr(e)
	}
	return was, err
}

// reuse lets other sockets be bound beside c and take a share of its flows, or forbids that again. It returns what was
// set before.
func (c *conn) reuse(on bool) (was bool, err error) {
	if e := c.raw.Control(func(fd uintptr) { was, err = setReuse(fd, on) }); e != nil {
		return false, closedOr(e)
	}
	return was, err
}

// spread spreads the flows over the n sockets of the group of c, if the system can.
func (c *conn) spread(n int) {
	c.raw.Control(func(fd uintptr) { setSpread(fd, c.family, n) })
}
