package wgo

import (
	"errors"
	"fmt"
	"sync"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/seed-86b749af/wireguard"
)

// Bind makes a conn.Bind of wireguard-go serve as the datagram side of one device of this library. It takes over b. The
// caller may still call methods of b that are not in conn.Bind, such as those of conn.PeekLookAtSocketFd.
//
// b is either open or closed, but a wireguard.Bind has several sockets while its device changes the port. So Bind
// closes b for the older sockets and opens it for the newest, on the same port if need be. The older sockets receive
// nothing meanwhile, and send through b as it is open now. When the newest socket closes or cannot be opened, Bind
// opens b again for the previous socket, with that socket's port and mark. The previous socket then continues, but
// datagrams that arrived in between are lost. If that fails too, the socket's receivers report the error, and try again
// at each call.
//
// An endpoint of b that is an IP address and port becomes an Addr, with the local address to answer from if b has it.
// Any other endpoint becomes a Link; see [ParseEndpoint]. b gets at most its batch size of datagrams per call. If one
// of several such calls fails because the source is gone, Bind sends the whole train again, so some datagrams can be
// sent twice.
func Bind(b conn.Bind) wireguard.Bind {
	_, std := b.(*conn.StdNetBind)
	w := &bind{inner: b, batch: max(b.BatchSize(), 1), inPlace: std, routes: routes{bind: b}}
	w.runs.New = func() any { return newRun(w.batch) }
	return w
}

// A bind wraps a conn.Bind as a wireguard.Bind.
type bind struct {
	inner   conn.Bind
	batch   int
	inPlace bool // inner does not change the bytes that it sends
	routes  routes
	runs    sync.Pool // of *run

	mu     sync.RWMutex // for writing: Open, Close and SetMark of inner, and the fields below; for reading: Send
	newest *socket      // inner is open for it, unless it is lost; nil if inner is closed
	left   *socket      // inner was open for it before, and its receivers may still be in inner; nil after await
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

// shut closes inner, which was open for s. Call await before inner is opened again. The caller holds mu, here and in
// the methods below.
func (b *bind) shut(s *socket) error {
	b.left = s
	return b.inner.Close()
}

// await waits until no receiver is in inner. inner must be closed.
func (b *bind) await() {
	if b.left != nil {
		b.left.wait()
		b.left = nil
	}
}

// reopen opens inner again for s, on its port. inner must be closed.
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

// revive reopens inner for s if s is lost.
func (b *bind) revive(s *socket) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !s.is(lost) {
		return nil
	}
	b.shut(s)
	return b.reopen(s)
}

// close closes inner if it is open for s, and reopens it for the previous socket.
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
