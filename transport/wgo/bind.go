package wgo

import (
	"errors"
	"fmt"
	"sync"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/seed-86b749af/wireguard"
)

// Bind makes a conn.Bind of wireguard-go serve as the datagram side of one device of this library. b belongs to it. The
// caller may still call methods that are not in conn.Bind, such as those of conn.PeekLookAtSocketFd.
//
// b is either open or closed, but a wireguard.Bind has several sockets while its device changes the port. So Bind opens b
// for the newest socket, on the same port if need be, and closes b for the older ones first. Those receive nothing
// meanwhile, and what they send leaves through b as it is. When the newest socket is closed or could not be opened, Bind
// opens b again for the one before, on its port and with its mark, and that socket goes on; what arrived in between is
// lost. If that fails too, the socket's receivers report it, and try again each time they are called.
//
// Endpoints of b that are an IP address and port become an Addr, with the local address to answer from if b has it. All
// other endpoints become a Link; see [ParseEndpoint]. b gets at most its batch size of datagrams at a time. If one of
// several such runs says that the source is gone, the whole train is sent again, so that datagrams can leave twice.
func Bind(b conn.Bind) wireguard.Bind {
	_, std := b.(*conn.StdNetBind)
	w := &bind{inner: b, batch: max(b.BatchSize(), 1), inPlace: std, routes: routes{bind: b}}
	w.runs.New = func() any { return newRun(w.batch) }
	return w
}

// A bind is a conn.Bind as a wireguard.Bind.
type bind struct {
	inner   conn.Bind
	batch   int
	inPlace bool // inner leaves the bytes of what it sends as they are
	routes  routes
	runs    sync.Pool // of *run

	mu     sync.RWMutex // for writing: Open, Close and SetMark of inner, and the fields below; for reading: Send
	newest *socket      // inner is open for it, unless it is lost; nil: inner is closed
	left   *socket      // inner was open for it before; its receivers may still be on their way out of there
}

// Listen opens b for a new socket.
func (b *bind) Listen(port uint16) (wireguard.Socket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.newest
	if old != nil {
		old.set(paused, nil)
		b.shut(old)
	}
	b.await()
	fns, actual, err := b.inner.Open(port)
	if err != nil {
		err = fmt.Errorf("wgo: opening port %d: %w", port, err)
		if old != nil {
			err = errors.Join(err, b.reopen(old))
		}
		return nil, err
	}
	s := &socket{bind: b, port: actual, before: old, fns: fns}
	s.changed.L = &s.mu
	b.newest = s
	return s, nil
}

// shut closes inner, which was open for s. await must come before it is opened again. The caller holds mu, as it does
// for the methods below.
func (b *bind) shut(s *socket) error {
	b.left = s
	return b.inner.Close()
}

// await waits until no receiver is in inner, which is closed.
func (b *bind) await() {
	if b.left != nil {
		b.left.wait()
		b.left = nil
	}
}

// reopen opens inner once more for s, on its port. inner is closed.
func (b *bind) reopen(s *socket) error {
	b.await()
	fns, _, err := b.inner.Open(s.port)
	if err == nil && s.mark != 0 {
		if err = b.inner.SetMark(s.mark); err != nil {
			b.shut(s)
		}
	}
	if err != nil {
		s.set(lost, nil)
		return fmt.Errorf("wgo: opening port %d again: %w", s.port, err)
	}
	s.set(running, fns)
	return nil
}

// revive reopens inner for s if that is lost.
func (b *bind) revive(s *socket) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !s.is(lost) {
		return nil
	}
	b.shut(s)
	return b.reopen(s)
}

// close closes inner if it is open for s, and gives it back to the socket before.
func (b *bind) close(s *socket) (err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.is(ended) {
		return nil
	}
	s.set(ended, nil)
	for p := &b.newest; *p != nil; p = &(*p).before {
		if *p != s {
			continue
		}
		*p = s.before
		if p == &b.newest {
			err = b.shut(s)
			if b.newest != nil {
				err = errors.Join(err, b.reopen(b.newest))
			}
		}
		break
	}
	return err
}
