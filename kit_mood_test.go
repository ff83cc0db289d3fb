package wireguard_test

import (
	"sync"
	"testing"

	"github.com/seed-86b749af/wireguard"
)

// A moodyBind is a Bind that returns the errors that the test sets. It records the ports with which the device calls Listen, and
// the marks with which it calls SetMark.
type moodyBind struct {
	wireguard.Bind

	mu     sync.Mutex // guards all fields below
	fail   error      // the error that Listen returns
	noMark error      // the error that SetMark returns
	opened []uint16
	marks  []uint32
	moods  []error // the errors that the next calls of Receive return
}

type moodySocket struct {
	wireguard.Socket
	b *moodyBind
}

type moodyReceiver struct {
	wireguard.Receiver
	b *moodyBind
}

func (b *moodyBind) Listen(port uint16) (wireguard.Socket, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened = append(b.opened, port)
	if b.fail != nil {
		return nil, b.fail
	}
	s, err := b.Bind.Listen(port)
	if err != nil {
		return nil, err
	}
	return moodySocket{s, b}, nil
}

func (s moodySocket) SetMark(mark uint32) error {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.marks = append(s.b.marks, mark)
	return s.b.noMark
}

func (s moodySocket) Receivers() []wireguard.Receiver {
	return []wireguard.Receiver{moodyReceiver{s.Socket.Receivers()[0], s.b}}
}

func (r moodyReceiver) Receive() ([]wireguard.Train, error) {
	r.b.mu.Lock()
	if len(r.b.moods) > 0 {
		err := r.b.moods[0]
		r.b.moods = r.b.moods[1:]
		r.b.mu.Unlock()
		return nil, err
	}
	r.b.mu.Unlock()
	return r.Receiver.Receive()
}

func (b *moodyBind) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

// withMood calls play with two devices: a, which has a moodyBind, and its peer b.
func withMood(t *testing.T, play func(w *world, a, b *node, mood *moodyBind)) {
	inWorld(t, func(w *world) {
		mood := &moodyBind{}
		a := w.node("a", func(c *wireguard.Config) { mood.Bind, c.Bind = c.Bind, mood })
		b := w.node("b")
		a.knows(b)
		b.knows(a)
		play(w, a, b, mood)
	})
}
