package wgo

import (
	"errors"
	"fmt"
	"sync"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/seed-86b749af/wireguard"
)

// Bind returns a wireguard.Bind for one device of this library that uses the conn.Bind b of wireguard-go. The caller must no longer
// call the methods of conn.Bind on b itself. It may still call other methods of b, such as those of conn.PeekLookAtSocketFd.
//
// b is a single socket, but a wireguard.Bind has several sockets while its device changes the port. So when the device opens
// another socket, Bind closes b and opens it again for the newest socket. The older sockets then receive nothing, and send
// through b, that is, from the port of the newest socket. When the newest socket is closed or cannot be opened, Bind opens b
// again for the previous socket, with that socket's port and mark. The previous socket then continues, but datagrams that arrived
// in between are lost. If b cannot be opened for the previous socket, the receivers of that socket return the error, and try
// again each time that they are called.
//
// If an endpoint of b is an IP address and port, the device gets an Endpoint with an Addr, and with a Source if b reports the
// local address. For any other endpoint, the device gets an Endpoint with a Link; see [ParseEndpoint]. One call of b's Send gets
// at most as many datagrams as the batch size of b. If a train needs several calls and one of them fails because the source
// address no longer exists, Bind sends the whole train again, so some datagrams can be sent twice.
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
	runs    sync.Pool // contains *run

	// The lock for writing is held during Open, Close and SetMark of inner, and guards the fields below. The lock for reading
	// is held during Send.
	mu     sync.RWMutex
	newest *socket // the socket for which inner is open, except if the socket is lost; nil if inner is closed
	left   *socket // the last socket for which inner was closed; its receivers may still be in calls of inner; nil after await
}

// Listen makes a new socket, and opens inner for it.
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

// shut closes inner, which was open for s. The caller must call await before it opens inner again. The callers of shut, await
// and reopen hold mu.
func (b *bind) shut(s *socket) error {
	b.left = s
	return b.inner.Close()
}

// await waits until no receiver is in a call of inner. inner must be closed.
func (b *bind) await() {
	if b.left != nil {
		b.left.wait()
		b.left = nil
	}
}

// reopen opens inner again for s, on the port of s. inner must be closed.
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

// revive opens inner again for s if s is lost.
func (b *bind) revive(s *socket) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !s.is(lost) {
		return nil
	}
	b.shut(s)
	return b.reopen(s)
}

// close ends s. If inner is open for s, close closes inner, and opens it again for the previous socket, if there is one.
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
