package wireguard

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A renewingBind makes sockets that implement Renewer, and records which of their methods the device calls.
type renewingBind struct {
	mu     sync.Mutex
	did    []string
	n      int   // number of sockets made
	fail   error // the error of the next call of Renew
	noMark error // the error of the next call of SetMark
	drains time.Duration
}

// A renewingSocket is its own receiver.
type renewingSocket struct {
	b       *renewingBind
	name    string
	port    uint16
	once    sync.Once
	retired chan struct{}
	closed  chan struct{}
}

func (b *renewingBind) do(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.did = append(b.did, fmt.Sprintf(format, args...))
}

func (b *renewingBind) open(port uint16) *renewingSocket {
	b.n++
	return &renewingSocket{b: b, name: string(rune('a' + b.n - 1)), port: port, retired: make(chan struct{}), closed: make(chan struct{})}
}

func (b *renewingBind) Listen(port uint16) (Socket, error) {
	s := b.open(port)
	b.do("listen %d %s", port, s.name)
	return s, nil
}

func (s *renewingSocket) Renew() (Socket, error) {
	if err := s.b.fail; err != nil {
		s.b.do("renew %s fails", s.name)
		return nil, err
	}
	n := s.b.open(s.port)
	s.b.do("renew %s %s", s.name, n.name)
	return n, nil
}

func (s *renewingSocket) Retire() {
	s.b.do("retire %s", s.name)
	close(s.retired)
}

func (s *renewingSocket) Close() error {
	s.once.Do(func() {
		s.b.do("close %s", s.name)
		close(s.closed)
	})
	return nil
}

func (s *renewingSocket) SetMark(mark uint32) error {
	s.b.do("mark %s %d", s.name, mark)
	return s.b.noMark
}

func (s *renewingSocket) Port() uint16          { return s.port }
func (s *renewingSocket) Receivers() []Receiver { return []Receiver{s} }
func (s *renewingSocket) Send([]Train)          {}

// Receive waits until the socket is closed. After Retire, it returns after a while (the field drains of the renewingBind).
func (s *renewingSocket) Receive() ([]Train, error) {
	select {
	case <-s.closed:
	case <-s.retired:
		select {
		case <-time.After(s.b.drains):
			s.b.do("drained %s", s.name)
		case <-s.closed:
		}
	}
	return nil, net.ErrClosed
}

// TestRenewSocket checks which methods of Renewer sockets the device calls, and in which order.
func TestRenewSocket(t *testing.T) {
	port := func(n uint16) Change { return Change{ListenPort: &n} }
	for _, c := range []struct {
		why, want string
		play      func(d *Device, b *renewingBind)
	}{
		{"Wake closes the old socket last", "renew a b, retire a, drained a, close a", func(d *Device, b *renewingBind) { d.Wake() }},
		{"so does a change of port", "listen 2 b, retire a, drained a, close a", func(d *Device, b *renewingBind) { d.Configure(port(2)) }},
		{"again and again", "renew a b, retire a, drained a, close a, renew b c, retire b, drained b, close b", func(d *Device, b *renewingBind) {
			d.Wake()
			d.Wake()
		}},
		{"Wake amid Wake", "renew a b, retire a, renew b c, retire b, drained a, close a, drained b, close b", func(d *Device, b *renewingBind) {
			go d.Wake()
			time.Sleep(b.drains / 2)
			d.Wake()
		}},
		{"a renewal that fails falls back", "renew a fails, close a, listen 1 b", func(d *Device, b *renewingBind) {
			b.fail = errors.New("no second socket")
			d.Wake()
		}},
		{"the new socket gets the mark", "mark a 7, renew a b, mark b 7, retire a, drained a, close a", func(d *Device, b *renewingBind) {
			mark := uint32(7)
			d.Configure(Change{FirewallMark: &mark})
			d.Wake()
		}},
		{"without a mark the new socket is of no use", "mark a 7, renew a b, mark b 7, close b, close a, listen 1 c, mark c 7, close c", func(d *Device, b *renewingBind) {
			mark := uint32(7)
			d.Configure(Change{FirewallMark: &mark})
			b.noMark = errors.New("no marks")
			if err := d.Wake(); !errors.Is(err, b.noMark) {
				t.Errorf("Wake returned %v, want the error of SetMark", err)
			}
			b.noMark = nil
		}},
		{"Down does not wait for what still arrives", "renew a b, retire a, close b, close a", func(d *Device, b *renewingBind) {
			go d.Wake()
			time.Sleep(b.drains / 2)
			begin := time.Now()
			d.Down()
			if time.Since(begin) != 0 {
				t.Error("Down waited for the retired socket")
			}
		}},
		{"neither does Close", "renew a b, retire a, close b, close a", func(d *Device, b *renewingBind) {
			go d.Wake()
			time.Sleep(b.drains / 2)
			d.Close()
		}},
		{"nor a change back to the port", "listen 2 b, retire a, close a, listen 1 c, retire b, drained b, close b", func(d *Device, b *renewingBind) {
			go d.Configure(port(2))
			time.Sleep(b.drains / 2)
			d.Configure(port(1))
		}},
	} {
		t.Run(c.why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &renewingBind{drains: time.Second}
				d, err := New(Config{Bind: b, Tunnel: newDrain(), Clock: &handClock{}, ListenPort: 1})
				if err == nil {
					err = d.Up()
				}
				if err != nil {
					t.Fatal(err)
				}
				b.did = nil
				events := d.Subscribe(EventBindTrouble)
				defer events.Close()
				c.play(d, b)
				synctest.Wait()
				if got := strings.Join(b.did, ", "); got != c.want {
					t.Errorf("the device did\n%s, want\n%s", got, c.want)
				}
				if r := d.running.Load(); r != nil && len(r.retired) != 0 {
					t.Errorf("the device still keeps %d retired sockets, want none", len(r.retired))
				}
				if got := unreadEvents(t, events); len(got) != 0 && b.fail == nil && !strings.Contains(c.why, "without a mark") {
					t.Errorf("the device published the events %+v about sockets that it replaced", got)
				}
				d.Close()
				if open := b.n - strings.Count(strings.Join(b.did, ", "), "close "); open != 0 {
					t.Errorf("%d of %d sockets were not closed: %v", open, b.n, slices.Clone(b.did))
				}
			})
		})
	}
}

// TestTransmitAmidWakes checks that if a socket is closed while it is sending trains, the device sends the trains through the
// next socket, even if that happens several times.
func TestTransmitAmidWakes(t *testing.T) {
	e := up(t, testKey(1))
	r := e.running.Load()
	last := r.socket.Load()
	sockets := []*openSocket{last}
	for range 3 {
		s, err := e.listen(new(running), 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		sockets = append(sockets, s)
	}
	r.socket.Store(sockets[1])
	calls := 0
	e.line.send = func(ts []Train) {
		if calls++; calls < len(sockets) {
			r.socket.Store(sockets[(1+calls)%len(sockets)])
			for i := range ts {
				ts[i].Err = net.ErrClosed
			}
		}
	}
	ts := []Train{{Data: []byte{1}, Size: 1}}
	if e.transmit(r, ts); calls != len(sockets) || ts[0].Err != nil || r.socket.Load() != last {
		t.Errorf("Send was called %d times, with the error %v; want that the last socket sends the train", calls, ts[0].Err)
	}
}
