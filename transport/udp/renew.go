package udp

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// A socket is replaced by another one on its port in these steps, so that there is a socket for each datagram:
//
//	Renew: open the new socket beside the old one. The system gives all datagrams to the new one from here on
//	       (share_linux.go)
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
// can bind to the port too. Before and after that the port is taken, as it is after Listen.
func (s *Socket) Renew() (wireguard.Socket, error) {
	var was [families]bool // whether the ports were shared before, because of Bind.Control
	var changed []*conn
	restore := func() {
		for _, c := range changed {
			c.share(false)
		}
	}
	for f, p := range s.paths {
		if p == nil {
			continue
		}
		before, err := p.socket().share(true)
		if err != nil {
			restore()
			return nil, fmt.Errorf("udp: open a second socket on port %d: %w", s.port, err)
		}
		if was[f] = before; !before {
			changed = append(changed, p.socket())
		}
	}
	b := *s.bind
	b.shared = true
	n, err := b.listen(s.port)
	if err != nil {
		restore()
		return nil, b.explain(err, s.port)
	}
	n.bind = s.bind
	for f, p := range n.paths {
		if p != nil && !was[f] {
			p.socket().share(false) // s stays as it is: its renewal may itself be renewed before s is closed
		}
	}
	return n, nil
}

// Retire lets the receivers return what has arrived until now. Then they fail with an error that wraps net.ErrClosed. If
// datagrams still arrive, the receivers end after a second. Send works until Close.
func (s *Socket) Retire() {
	for _, p := range s.paths {
		if p != nil {
			c := p.socket()
			c.retired.CompareAndSwap(nil, &retirement{until: time.Now().Add(retireTime)})
			c.udp.SetReadDeadline(time.Unix(1, 0)) // wakes a receiver that waits
		}
	}
}

// A retirement is the end of a retired socket's receiver, which alone changes it.
type retirement struct {
	until time.Time // the receiver reads no more after this
	vain  int       // looks in a row that found nothing
}

func (r *retirement) isLate() bool { return !time.Now().Before(r.until) }

// isOver counts a look that found nothing, and reports whether the receiver is to end: after as many such looks in a row as
// last says. Otherwise it waits a little before it returns.
func (r *retirement) isOver(last int) bool {
	if r.vain++; r.vain >= last {
		return true
	}
	time.Sleep(retirePause)
	return false
}

// isRetired reports whether err ended a wait because the socket was retired.
func (c *conn) isRetired(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) && c.retired.Load() != nil
}

// share lets another socket of this process be bound to the port of c, or ends that. It returns what was set before.
func (c *conn) share(on bool) (was bool, err error) {
	if e := c.raw.Control(func(fd uintptr) { was, err = setShared(fd, on) }); e != nil {
		return false, closedOr(e)
	}
	return was, err
}
