package udp

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// The device replaces a socket by another one on the same port in these steps. At every moment, some socket receives the
// datagrams for the port:
//
//	Renew: open the new socket while the old one is open. From then on, the system gives all datagrams to the new one
//	       (share_linux.go). With several receivers, the first new socket gets all datagrams until the others are
//	       bound beside it
//	The device sends and receives on the new socket
//	Retire: the receivers of the old socket return the datagrams that had arrived there, and then fail
//	Close: the device closes the old socket

const (
	// retireTime is how long the receivers of a retired socket continue if datagrams still arrive there.
	retireTime = time.Second

	// retirePause is how long the receiver of a retired socket waits between two reads that find nothing. Another core may have
	// chosen this socket for a datagram before the new socket was bound, and may not have queued the datagram yet.
	retirePause = time.Millisecond
)

// Renew opens another socket of the same Bind on the port of s, while s is open. On Linux, the new socket receives all
// datagrams from then on. Other systems do not document which of two sockets on one port receives a datagram. There, Renew
// fails with an error that wraps errors.ErrUnsupported. While Renew binds the new socket, a program on this host that sets
// SO_REUSEADDR can bind to the port too. At all other times, programs can bind to the port only in the case that Bind.Receivers
// describes.
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

// renew does the work of Renew, but does not clean up after an error. It appends to undo the functions that the caller must
// call after an error.
func (s *Socket) renew(undo *[]func()) (*Socket, error) {
	var was [families]bool // whether Bind.Control had already set SO_REUSEADDR
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
			p.socket().share(false) // s keeps SO_REUSEADDR, since n may be renewed before s is closed
		}
	}
	b.shared = false
	return n, nil
}

// leave clears SO_REUSEPORT on all sockets of s, so that the new sockets do not become members of the same group. The kernel
// then no longer spreads datagrams over the sockets of s. This does not matter, because the new socket already receives all
// datagrams.
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

// Retire lets the receivers return the datagrams that have already arrived. Then the receivers fail with an error that wraps
// net.ErrClosed, at the latest one second after Retire. Send works until Close.
func (s *Socket) Retire() {
	for _, p := range s.all() {
		c := p.socket()
		c.retired.CompareAndSwap(nil, &retirement{until: time.Now().Add(retireTime)})
		c.udp.SetReadDeadline(time.Unix(1, 0)) // ends the wait of a receiver
	}
}

// A retirement determines when the receiver of a retired socket ends. Only that receiver changes it.
type retirement struct {
	until time.Time // the receiver does not read after this time
	vain  int       // number of consecutive reads that found no datagram
}

func (r *retirement) isLate() bool { return !time.Now().Before(r.until) }

// isOver counts a read that found no datagram. After limit such reads in a row, it returns true, and the receiver must end.
// Otherwise it waits for retirePause and returns false.
func (r *retirement) isOver(limit int) bool {
	if r.vain++; r.vain >= limit {
		return true
	}
	time.Sleep(retirePause)
	return false
}

// isRetired reports whether err is the error of a read that ended because the socket was retired.
func (c *conn) isRetired(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) && c.retired.Load() != nil
}

// share sets or clears SO_REUSEADDR on c. Two sockets that both have this option may be bound to one port. It returns the
// previous setting.
func (c *conn) share(on bool) (was bool, err error) {
	if e := c.raw.Control(func(fd uintptr) { was, err = setShared(fd, on) }); e != nil {
		return false, closedOr(e)
	}
	return was, err
}

// reuse sets whether other sockets with SO_REUSEPORT may be bound to the port of c and receive some of its datagrams. It
// returns the previous setting.
func (c *conn) reuse(on bool) (was bool, err error) {
	if e := c.raw.Control(func(fd uintptr) { was, err = setReuse(fd, on) }); e != nil {
		return false, closedOr(e)
	}
	return was, err
}

// spread makes the kernel spread the datagrams over the first n sockets of the group of c, if the kernel can.
func (c *conn) spread(n int) {
	c.raw.Control(func(fd uintptr) { setSpread(fd, c.family, n) })
}
