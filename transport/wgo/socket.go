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

// A state is the state of a socket.
type state uint8

const (
	running state = iota // the bind is open for it
	paused               // the bind is open for a newer socket, or about to be
	lost                 // someone else closed the bind, or it did not open again
	ended                // closed
)

// A socket is one opening of a bind, including the times that the bind is reopened for it.
type socket struct {
	bind   *bind
	port   uint16
	before *socket // the next older socket that is not closed; guarded by bind.mu
	mark   uint32  // guarded by bind.mu

	mu      sync.Mutex // guards the fields below; taken after bind.mu
	changed sync.Cond  // signals a change of state, or of inside to 0
	state   state      // changes with bind.mu held, except from running to lost
	fns     []conn.ReceiveFunc
	inside  int // receivers that are in one of fns
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

// wait waits until no receiver is in one of fns.
func (s *socket) wait() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.inside > 0 {
		s.changed.Wait()
	}
}

// enter returns the i-th function to receive with, or nil if the socket is lost. The caller calls leave afterwards.
// enter waits while another socket has the bind.
func (s *socket) enter(i int) (conn.ReceiveFunc, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.state == paused {
		s.changed.Wait()
	}
	switch {
	case s.state == lost:
		return nil, nil
	case s.state == ended || i >= len(s.fns): // a reopened bind may have fewer families
		return nil, errSocketClosed
	}
	s.inside++
	return s.fns[i], nil
}

// leave notes that a function from enter has returned err. again reports whether err only means that the bind was
// closed under the socket. The caller then calls enter again.
func (s *socket) leave(err error) (again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inside--; s.inside == 0 {
		s.changed.Broadcast()
	}
	if s.state != running {
		return err != nil
	}
	if errors.Is(err, net.ErrClosed) { // someone else closed the bind
		s.state = lost
	}
	return false
}

// Port is the port that the bind chose.
func (s *socket) Port() uint16 { return s.port }

// Close ends the receivers and closes the bind, or reopens it for the previous socket.
func (s *socket) Close() error { return s.bind.close(s) }

// SetMark marks the datagrams that the bind sends from now on.
func (s *socket) SetMark(mark uint32) error {
	b := s.bind
	b.mu.Lock()
	defer b.mu.Unlock()
	s.mark = mark
	if !s.is(running) {
		return nil // reopen does it
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

// A receiver holds one function from a bind's Open, and memory for the datagrams that it receives.
type receiver struct {
	socket *socket
	i      int

	memory []byte // of all bufs, consecutive
	bufs   [][]byte
	sizes  []int
	eps    []conn.Endpoint
	trains []wireguard.Train
}

// Receive calls the bind's function once and returns the datagrams in as few trains as possible.
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
			return nil, fmt.Errorf("wgo: the conn.Bind was closed from outside; leave closing it to the device: %v", err) // not wrapped
		case err != nil:
			return nil, fmt.Errorf("wgo: receiving: %w", err)
		default:
			if ts := r.collect(n); len(ts) > 0 {
				return ts, nil
			}
		}
	}
}

// collect makes trains of the first n buffers. It moves datagrams together into one train where possible, because
// moving a datagram costs less than the device's work for each train.
func (r *receiver) collect(n int) []wireguard.Train {
	r.trains = r.trains[:0]
	var last *wireguard.Train
	end := 0 // where last's data ends in memory; never beyond the start of the next buffer
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

// Send hands the trains to the bind, one after another.
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

// sourceGone reports whether err says that the system does not have a datagram's source address, or that it has no
// route from it.
func sourceGone(err error) bool {
	for _, e := range [...]error{syscall.EINVAL, syscall.EADDRNOTAVAIL, syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENODEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// send sends all of t, in runs of the bind's batch size. It sends each run even if an earlier run failed. As for
// Train.Len, a Size of 0 or less means one datagram.
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

// add puts the first n bytes of data into r. Without a copy, their capacity reaches to the end of the train: StdNetBind
// appends the next datagram there, which is exactly where it already is.
func (b *bind) add(r *run, data []byte, n int) {
	if b.inPlace {
		r.add(data[:n:len(data)])
	} else {
		r.copy(data[:n], 0)
	}
}

// sent returns the final error of a Send: nil if the bind sent the datagrams at its second attempt.
func sent(err error) error {
	if disabled, ok := errors.AsType[conn.ErrUDPGSODisabled](err); ok {
		return disabled.RetryErr
	}
	return err
}
