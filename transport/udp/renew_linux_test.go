package udp

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// TestRenewLosesNothing checks that no datagram is lost while the receiving socket is renewed ten times. The sender never has
// more than 100 datagrams under way, so that no buffer overflows. A datagram can only be lost if no socket receives it.
func TestRenewLosesNothing(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		x, y := v.pair(t, f)
		const window = 100
		var sent, received atomic.Int64
		stop := make(chan struct{})
		var sender, receivers sync.WaitGroup
		read := func(r wireguard.Receiver) {
			for {
				ts, err := r.Receive()
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("Receive: %v", err)
					}
					return
				}
				for i := range ts {
					received.Add(int64(ts[i].Len()))
				}
			}
		}
		receivers.Go(func() { read(y.receiver(f)); y.Close() })
		to := y.at(f)
		sender.Go(func() {
			for n := uint32(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if sent.Load()-received.Load() >= window {
					time.Sleep(50 * time.Microsecond)
					continue
				}
				sent.Add(1)
				x.Send([]wireguard.Train{{Data: binary.BigEndian.AppendUint32(nil, n), Size: 4, Endpoint: to}})
			}
		})
		s := y.Socket
		for range 10 {
			for before := received.Load(); received.Load() < before+50; {
				time.Sleep(50 * time.Microsecond) // lets the sender run
			}
			next, err := s.Renew()
			if err != nil {
				t.Fatal(err)
			}
			old := s
			s = next.(*Socket)
			if s.Port() != old.Port() {
				t.Fatalf("the new socket has port %d, want %d", s.Port(), old.Port())
			}
			r := (&end{s, t}).receiver(f)
			receivers.Go(func() { read(r); next.Close() })
			old.Retire()
		}
		close(stop)
		sender.Wait()
		for begin := time.Now(); received.Load() < sent.Load() && time.Since(begin) < 5*time.Second; {
			time.Sleep(time.Millisecond)
		}
		s.Close()
		receivers.Wait()
		if received.Load() != sent.Load() {
			t.Errorf("%d of %d datagrams arrived, want all", received.Load(), sent.Load())
		}
	})
}

// TestRenewKeepsThePort checks that no other Bind can listen on the port of a socket before, during or after its renewal.
func TestRenewKeepsThePort(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		v.bind.Address = loopback(f)
		x := v.listen(t)
		refused := func(when string, change func(b *Bind)) {
			t.Helper()
			b := v.bind
			change(&b)
			if s, err := b.Listen(x.Port()); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("%s: Listen returned %v, want EADDRINUSE", when, err)
				if err == nil {
					s.Close()
				}
			}
		}
		others := map[string]func(b *Bind){"plain": func(*Bind) {}, "shared": func(b *Bind) { b.shared = true }}
		check := func(when string) {
			for name, change := range others {
				refused(when+", "+name, change)
			}
		}
		check("before the renewal")
		y, err := x.Renew()
		if err != nil {
			t.Fatal(err)
		}
		defer y.Close()
		check("while both sockets are open")
		z, err := y.(*Socket).Renew() // x is still open
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		check("while three sockets are open")
		x.Close()
		y.Close()
		check("while only the last socket is open")
		if _, err := x.Renew(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Renew of a closed socket: error %v, want net.ErrClosed", err)
		}
	})
}

// TestRenewKeepsOptionsOfControl checks that a renewal leaves SO_REUSEADDR set if Bind.Control has set it.
func TestRenewKeepsOptionsOfControl(t *testing.T) {
	b := Bind{Address: loopback(ipv4), Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) { _, err = setShared(fd, true) })
		return err
	}}
	x, err := b.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	y, err := x.(*Socket).Renew()
	if err != nil {
		t.Fatal(err)
	}
	defer y.Close()
	if was, err := y.(*Socket).paths[ipv4].socket().share(true); !was || err != nil {
		t.Errorf("SO_REUSEADDR is %v (error %v) after Renew, want it still set", was, err)
	}
}

// TestRenewFails checks that Renew restores the options of the old socket if the new socket cannot be opened.
func TestRenewFails(t *testing.T) {
	refused := errors.New("no more sockets")
	var fail bool
	b := Bind{Control: func(network, _ string, c syscall.RawConn) error {
		if fail && network == "udp6" {
			return refused
		}
		return nil
	}}
	x, err := b.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	s := x.(*Socket)
	if s.paths[ipv4] == nil || s.paths[ipv6] == nil {
		t.Skip("the host does not have both families")
	}
	fail = true
	if _, err := s.Renew(); !errors.Is(err, refused) {
		t.Fatalf("Renew failed with %v, want the error of Control", err)
	}
	for f, p := range s.paths {
		if was, err := p.socket().share(false); was || err != nil {
			t.Errorf("%v: a failed Renew left SO_REUSEADDR set: %v (error %v)", family(f), was, err)
		}
	}
	fail = false
	y, err := s.Renew()
	if err != nil {
		t.Fatal(err)
	}
	y.Close()
}

// TestRetire checks that the receiver of a retired socket returns the datagrams that have arrived, and then fails. The socket
// can still send.
func TestRetire(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		x, y := v.pair(t, f)
		var ts []wireguard.Train
		for i := range 40 {
			ts = append(ts, trainOf(i, 100, 100, y.at(f)))
		}
		x.send(ts...)
		y.Retire()
		got := y.receive(f, len(ts))
		for i := range ts {
			wantTrain(t, got[i:i+1], ts[i])
		}
		if _, err := y.receiver(f).Receive(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Receive on a retired socket that is empty: error %v, want net.ErrClosed", err)
		}
		y.send(trainOf(1, 10, 10, x.at(f)))
		x.receive(f, 1)

		waits := make(chan error)
		go func() {
			_, err := x.receiver(f).Receive()
			waits <- err
		}()
		time.Sleep(10 * time.Millisecond)
		x.Retire()
		x.Retire()
		if err := <-waits; !errors.Is(err, net.ErrClosed) {
			t.Errorf("a receiver waited while its socket was retired: error %v, want net.ErrClosed", err)
		}
	})
}

// TestRetireEndsUnderLoad checks that the receiver of a retired socket ends even if datagrams still arrive.
func TestRetireEndsUnderLoad(t *testing.T) {
	both(t, func(t *testing.T, v variant, f family) {
		x, y := v.pair(t, f)
		y.Retire()
		r := y.paths[f].socket().retired.Load()
		y.paths[f].socket().retired.Store(&retirement{until: r.until.Add(50*time.Millisecond - retireTime)})
		begin := time.Now()
		for n := 0; ; n++ {
			x.send(trainOf(n, 10, 10, y.at(f)))
			if _, err := y.receiver(f).Receive(); errors.Is(err, net.ErrClosed) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if time.Since(begin) > 10*time.Second {
				t.Fatalf("the receiver of the retired socket still runs after 10 s and %d datagrams", n)
			}
		}
	})
}
