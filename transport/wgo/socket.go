package wgo

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/seed-86b749af/wireguard"
)

var errSocketClosed = fmt.Errorf("wgo: the socket is closed: %w", net.ErrClosed)

// A state is the state of a socket. The conn.Bind that the socket uses is called the bind.
type state uint8

const (
	running state = iota // the bind is open for this socket
	paused               // the bind is open, or is being opened, for a newer socket
	lost                 // code outside this package closed the bind, or the bind could not be opened again
	ended                // Close was called
)

// A socket represents the bind while it is open on one port. The bind may be closed and opened again for the same socket.
type socket struct {
	bind   *bind
	port   uint16
	before *socket // the next older socket that is not closed; guarded by bind.mu
	mark   uint32  // guarded by bind.mu

	mu      sync.Mutex // guards the fields below; locked after bind.mu
	changed sync.Cond  // signalled when state changes, and when inside becomes 0
	state   state      // bind.mu is held when this changes, except from running to lost
	fns     []conn.ReceiveFunc
	inside  int // number of receivers that are in a call of one of fns
}

func (s *socket) set(to state, fns []conn.ReceiveFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state, s.fns = to, fns
	s.changed.Broadcast()
}

func (s *socket) is(x state) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == x
}

// wait waits until no receiver is in a call of one of fns.
func (s *socket) wait() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.inside > 0 {
		s.changed.Wait()
	}
}

// enter returns the i-th function of fns, or nil if the socket is lost. The caller must call leave after it has called this
// function. While the socket is paused, enter waits.
func (s *socket) enter(i int) (conn.ReceiveFunc, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.state == paused {
		s.changed.Wait()
	}
	switch {
	case s.state == lost:
		return nil, nil
	case s.state == ended || i >= len(s.fns): // a bind that was opened again may return fewer functions, for example without IPv6
		return nil, errSocketClosed
	}
	s.inside++
	return s.fns[i], nil
}

// leave must be called after the function that enter returned has returned err. again reports whether err only means that this
// package has closed the bind meanwhile. The caller must then call enter again.
func (s *socket) leave(err error) (again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inside--; s.inside == 0 {
		s.changed.Broadcast()
	}
	if s.state != running {
		return err != nil
	}
	if errors.Is(err, net.ErrClosed) { // code outside this package closed the bind
		s.state = lost
	}
	return false
}

// Port returns the port on which the bind was opened.
func (s *socket) Port() uint16 { return s.port }

// Close ends the receivers. If the bind is open for this socket, Close closes it, and opens it again for the previous socket,
// if there is one.
func (s *socket) Close() error { return s.bind.close(s) }

// SetMark sets the mark of the datagrams that the bind sends from now on while it is open for this socket.
func (s *socket) SetMark(mark uint32) error {
	b := s.bind
	b.mu.Lock()
	defer b.mu.Unlock()
	s.mark = mark
	if !s.is(running) {
		return nil // reopen sets the mark
	}
	return b.inner.SetMark(mark)
}

// Receivers returns a receiver for each function that the bind's Open returned.
func (s *socket) Receivers() []wireguard.Receiver {
	s.mu.Lock()
	defer s.mu.Unlock()
	rs := make([]wireguard.Receiver, len(s.fns))
	for i := range rs {
		rs[i] = &receiver{socket: s, i: i}
	}
	return rs
}

// A receiver calls the i-th of the functions that the bind's Open returned. It has memory for the datagrams that this function
// receives.
type receiver struct {
	socket *socket
	i      int

	memory []byte // the memory of bufs, which lie in it one after another
	bufs   [][]byte
	sizes  []int
	eps    []conn.Endpoint
	trains []wireguard.Train
}

// Receive calls the receiver's function until it returns datagrams, and returns these datagrams in as few trains as possible.
func (r *receiver) Receive() ([]wireguard.Train, error) {
	if r.bufs == nil {
		batch := r.socket.bind.batch
		r.memory, r.bufs = newSlots(batch)
		r.sizes, r.eps = make([]int, batch), make([]conn.Endpoint, batch)
		r.trains = make([]wireguard.Train, 0, batch)
	}
	for {
		fn, err := r.socket.enter(r.i)
		if err != nil {
			r.memory, r.bufs = nil, nil
			return nil, err
		}
		if fn == nil {
			if err := r.socket.bind.revive(r.socket); err != nil {
				return nil, err
			}
			continue
		}
		n, err := fn(r.bufs, r.sizes, r.eps)
		switch again := r.socket.leave(err); {
		case again:
		case errors.Is(err, net.ErrClosed):
			// The device has not closed the socket, so the device must not see net.ErrClosed.
			return nil, fmt.Errorf("wgo: the conn.Bind was closed from outside; leave closing it to the device: %v", err) // not wrapped, so that the device does not see net.ErrClosed
		case err != nil:
			return nil, fmt.Errorf("wgo: receiving: %w", err)
		default:
			if ts := r.collect(n); len(ts) > 0 {
				return ts, nil
			}
		}
	}
}

// collect makes trains of the datagrams in the first n buffers. Where possible, it moves datagrams so that they are contiguous
// and form one train. Moving a datagram takes less time than the device would need for processing another train.
func (r *receiver) collect(n int) []wireguard.Train {
	r.trains = r.trains[:0]
	var last *wireguard.Train
	end := 0 // offset in memory of the end of last.Data; never after the start of the next buffer
	for i := range n {
		size := r.sizes[i]
		if size == 0 || r.eps[i] == nil {
			continue
		}
		e := endpointOf(r.eps[i])
		if last != nil && e == last.Endpoint && size <= last.Size && len(last.Data)%last.Size == 0 {
			end += copy(r.memory[end:], r.bufs[i][:size])
			last.Data = r.memory[end-len(last.Data)-size : end : end]
			continue
		}
		if last == nil || e != last.Endpoint {
			r.socket.bind.routes.received(&e, r.eps[i])
		}
		end = i*slot + size
		r.trains = append(r.trains, wireguard.Train{Data: r.memory[i*slot : end : end], Size: size, Endpoint: e})
		last = &r.trains[len(r.trains)-1]
	}
	clear(r.eps[:n])
	return r.trains
}

// Send sends the trains through the bind, one after another.
func (s *socket) Send(ts []wireguard.Train) {
	b := s.bind
	b.mu.RLock()
	defer b.mu.RUnlock()
	closed := s.is(ended)
	for i := range ts {
		t := &ts[i]
		if closed {
			t.Err = errSocketClosed
			continue
		}
		err := b.send(t)
		if err != nil && t.Endpoint.Source.IsValid() && sourceGone(err) {
			t.Endpoint.Source, t.Endpoint.Interface = netip.Addr{}, 0
			err = b.send(t)
		}
		if err != nil {
			t.Err = fmt.Errorf("wgo: sending to %v: %w", t.Endpoint, err)
		}
	}
}

// sourceGone reports whether err can mean that the system does not have a datagram's source address, or that it has no route
// for this source.
func sourceGone(err error) bool {
	for _, e := range [...]error{syscall.EINVAL, syscall.EADDRNOTAVAIL, syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENODEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// send sends t with as many calls of the bind's Send as the bind's batch size requires. If a call fails, send still makes the
// remaining calls, and returns the first error. As in Train.Len, a Size of 0 or less means one datagram.
func (b *bind) send(t *wireguard.Train) error {
	ep, err := b.routes.find(&t.Endpoint)
	if err != nil {
		return err
	}
	size := t.Size
	if size <= 0 {
		size = len(t.Data)
	}
	r := b.runs.Get().(*run)
	defer b.runs.Put(r)
	for data := t.Data; len(data) > 0; {
		for r.reset(); len(data) > 0 && !r.full(); {
			n := min(size, len(data))
			b.add(r, data, n)
			data = data[n:]
		}
		if e := sent(b.inner.Send(r.bufs, ep)); e != nil && err == nil {
			err = e
		}
	}
	r.reset()
	return err
}

// add adds the first n bytes of data, which are one datagram, to r. For StdNetBind it does not copy them, and lets their
// capacity extend to the end of the train. StdNetBind appends the next datagram there, which is exactly where this datagram
// already is.
func (b *bind) add(r *run, data []byte, n int) {
	if b.inPlace {
		r.add(data[:n:len(data)])
	} else {
		r.copy(data[:n], 0)
	}
}

// sent converts an error of the bind's Send. If the first attempt of StdNetBind failed because of GSO, it returns the error of
// the second attempt, or nil if that succeeded.
func sent(err error) error {
	if disabled, ok := errors.AsType[conn.ErrUDPGSODisabled](err); ok {
		return disabled.RetryErr
	}
	return err
}
