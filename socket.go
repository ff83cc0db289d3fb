package wireguard

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
)

// A running device changes from one socket to another in Wake, and when its port changes:
//
//	the new socket is open ─▶ replace: senders use it, its receivers begin ─▶ retire: the old receivers return what arrived
//	                       ─▶ finishSocket: when the old receivers have ended, close the old socket
//
// A goroutine that has loaded the old socket before replace still sends on the old socket. If the old socket refuses trains,
// because it is closed, the goroutine sends these trains on the new socket; see transmit. Down closes both sockets. An old socket
// that is not a Renewer is closed instead of retired. Wake closes such a socket before it opens the new one.

// An openSocket is a socket and the goroutines that read it.
type openSocket struct {
	Socket
	port      uint16 // what Port returned; valid even after the socket is closed
	receivers sync.WaitGroup
	ctx       context.Context // canceled when the socket is retired or closed
	end       context.CancelFunc
}

// newOpenSocket sets the mark of s, a socket that a Bind has just opened. If that fails, newOpenSocket closes s.
func newOpenSocket(s Socket, mark uint32) (*openSocket, error) {
	if mark != 0 {
		if err := setMark(s, mark); err != nil {
			s.Close()
			return nil, err
		}
	}
	o := &openSocket{Socket: s, port: s.Port()}
	o.ctx, o.end = context.WithCancel(context.Background())
	return o, nil
}

func setMark(s Socket, mark uint32) error {
	m, ok := s.(Marker)
	if !ok {
		return errorf("firewall mark %#x: the bind has no marks: %w", mark, errors.ErrUnsupported)
	}
	if err := m.SetMark(mark); err != nil {
		return errorf("firewall mark %#x: %w", mark, err)
	}
	return nil
}

// renewSocket replaces the socket of r by a new one on the same port, and returns the old socket. If the Bind may choose the
// port, and the same port cannot be opened, the new socket has another port. The caller holds mu.
func (d *Device) renewSocket(r *running) (old *openSocket, err error) {
	old = r.socket.Load()
	s := d.renewed(old)
	if s == nil {
		old.close()
		s, err = d.listen(r, old.port, d.mark.Load())
		if err != nil && d.port.Load() == 0 {
			s, err = d.listen(r, 0, d.mark.Load())
		}
	}
	if err == nil {
		d.replace(r, s)
	}
	return old, err
}

// renewed opens a second socket on the port of s while s stays open. It returns nil if that is not possible.
func (d *Device) renewed(s *openSocket) *openSocket {
	r, ok := s.Socket.(Renewer)
	if !ok || s.isClosed() {
		return nil
	}
	n, err := r.Renew()
	if err == nil {
		var renewed *openSocket
		if renewed, err = newOpenSocket(n, d.mark.Load()); err == nil {
			return renewed
		}
	}
	d.debug("no second socket on the port; the old one is closed first", "port", s.port, "err", err)
	return nil
}

// listen opens a socket on the port, and sets its mark. The sockets of r stay open, except that listen first closes a retired
// socket of r on the same port. The caller holds mu.
func (d *Device) listen(r *running, port uint16, mark uint32) (*openSocket, error) {
	for _, s := range r.retired {
		if s.port == port {
			s.close()
		}
	}
	s, err := d.bind.Listen(port)
	if err != nil {
		return nil, errorf("listen on port %d: %w", port, err)
	}
	return newOpenSocket(s, mark)
}

// replace makes s the socket of r, and retires or closes the old socket. Afterwards the caller has to call finishSocket. The
// caller holds mu.
func (d *Device) replace(r *running, s *openSocket) {
	old := r.socket.Swap(s)
	d.startReceivers(r, s)
	if old.retire() {
		r.retired = append(r.retired, old)
	}
}

// finishSocket waits until the receivers of a replaced socket have ended, and then closes the socket. The caller does not hold
// mu.
func (d *Device) finishSocket(r *running, old *openSocket) {
	old.receivers.Wait()
	d.mu.Lock()
	if i := slices.Index(r.retired, old); i >= 0 {
		old.close()
		r.retired = slices.Delete(r.retired, i, i+1)
	}
	d.mu.Unlock()
}

// sendRefused sends on s those trains that a closed socket has refused, and reports whether there were any.
func (s *openSocket) sendRefused(trains []Train) (some bool) {
	for from, to := 0, 0; from < len(trains); from++ {
		for to = from; to < len(trains) && errors.Is(trains[to].Err, net.ErrClosed); to++ {
			trains[to].Err = nil
		}
		if to > from {
			s.Send(trains[from:to])
			from, some = to, true // the train at index to was not refused
		}
	}
	return some
}

// retire is called once another socket has replaced s. It retires s if s is a Renewer, and closes s if not. It reports whether s
// is still open. The caller holds the configuration lock.
func (s *openSocket) retire() bool {
	if r, ok := s.Socket.(Renewer); ok && !s.isClosed() {
		s.end()
		r.Retire()
		return true
	}
	s.close()
	return false
}

// close closes the socket. The caller holds the configuration lock.
func (s *openSocket) close() {
	s.end()
	s.Socket.Close()
}

func (s *openSocket) isClosed() bool { return s.ctx.Err() != nil }
