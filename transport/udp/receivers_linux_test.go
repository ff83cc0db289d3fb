package udp

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
)

const someReceivers = 4

// grouped runs a test with sockets that have several receivers, once for each variant and each family that the host has.
func grouped(t *testing.T, test func(t *testing.T, v variant, f family)) {
	for _, v := range variants {
		if v.bare {
			continue // this variant differs from the portable variant only in the control messages
		}
		v.bind.Receivers = someReceivers
		for f := range families {
			t.Run(v.name+"/"+f.String(), func(t *testing.T) {
				if !has(f) {
					t.Skipf("needs an %v loopback address", f)
				}
				v.bind.Address = loopback(f)
				test(t, v, f)
			})
		}
	}
}

// single returns a copy of v with one receiver per family.
func (v variant) single() variant { return v.with(func(b *Bind) { b.Receivers = 1 }) }

// An arrival is a datagram that one of a socket's receivers returned.
type arrival struct {
	receiver int
	datagram
}

// arrivals starts goroutines that read all receivers of e until the socket is closed. It returns the channel to which they send
// the datagrams.
func (e *end) arrivals() <-chan arrival {
	all := make(chan arrival, 4096)
	for i, r := range e.Receivers() {
		go func() {
			for {
				ts, err := r.Receive()
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						e.t.Errorf("receiver %d: %v", i, err)
					}
					return
				}
				for _, t := range ts {
					for _, d := range split(t) {
						all <- arrival{i, d}
					}
				}
			}
		}()
	}
	return all
}

// next waits for one arrival.
func next(t testing.TB, all <-chan arrival) arrival {
	t.Helper()
	select {
	case a := <-all:
		return a
	case <-time.After(20 * time.Second):
		t.Fatal("no datagram arrived within 20 s")
		panic("unreachable")
	}
}

// TestReceiversShareTheFlows checks that datagrams from many ports are spread over all receivers. The datagrams from one port all
// arrive at one receiver, in order, with their source and type of service. It also checks that all sockets send answers from the
// same port.
func TestReceiversShareTheFlows(t *testing.T) {
	grouped(t, func(t *testing.T, v variant, f family) {
		const flows, each = 64, 5
		y := v.listen(t)
		if n := len(y.Receivers()); n != someReceivers {
			t.Fatalf("%d receivers, want %d", n, someReceivers)
		}
		all := y.arrivals()
		var xs []*end
		for range flows {
			xs = append(xs, v.single().listen(t))
		}
		for n := range each {
			for i, x := range xs {
				b := binary.BigEndian.AppendUint32(nil, uint32(i))
				tr := wireguard.Train{Data: binary.BigEndian.AppendUint32(b, uint32(n)), Size: 8, TOS: 2, Endpoint: y.at(f)}
				x.send(tr)
			}
		}
		used, of := map[int]int{}, map[uint32]int{}
		seen := map[uint32]uint32{}
		from := map[uint32]wireguard.Endpoint{}
		for range flows * each {
			a := next(t, all)
			flow, n := binary.BigEndian.Uint32(a.data), binary.BigEndian.Uint32(a.data[4:])
			if r, ok := of[flow]; ok && r != a.receiver {
				t.Fatalf("datagrams of flow %d arrived at two receivers, %d and %d", flow, r, a.receiver)
			}
			if n != seen[flow] {
				t.Fatalf("flow %d: datagram %d arrived, want datagram %d next", flow, n, seen[flow])
			}
			if a.tos != 2 || a.from.Source != loopback(f) {
				t.Fatalf("type of service %d and source %v, want 2 and %v", a.tos, a.from.Source, loopback(f))
			}
			of[flow], seen[flow], from[flow] = a.receiver, n+1, a.from
			used[a.receiver]++
		}
		if len(used) != someReceivers {
			t.Errorf("datagrams per receiver: %v, want some at each of the %d receivers", used, someReceivers)
		}
		// One call of Send sends all answers, each as a train of several datagrams.
		var answers []wireguard.Train
		for i := range flows {
			answers = append(answers, trainOf(i, 300, 100, from[uint32(i)]))
		}
		y.send(answers...)
		for i, x := range xs {
			got := x.receive(f, 3)
			wantTrain(t, got, answers[i])
			if got[0].from.Addr.Port() != y.Port() {
				t.Fatalf("the answer came from port %d, want %d", got[0].from.Addr.Port(), y.Port())
			}
		}
		if st := y.Stats(); st.ReceivedDatagrams != flows*each || st.SentDatagrams != 3*flows {
			t.Errorf("Stats counted %d received and %d sent datagrams, want %d and %d", st.ReceivedDatagrams, st.SentDatagrams, flows*each, 3*flows)
		}
	})
}

// TestReceiversRenewLosesNothing checks that no datagram is lost while a socket with several receivers is renewed. A goroutine
// sends from many sockets all the time. It never has more than 100 datagrams under way, so that no buffer overflows. A datagram
// can only be lost if no socket receives it.
func TestReceiversRenewLosesNothing(t *testing.T) {
	grouped(t, func(t *testing.T, v variant, f family) {
		const flows, window, renewals = 16, 100, 5
		y := v.listen(t)
		to := y.at(f)
		var sent, received atomic.Int64
		var senders, receivers sync.WaitGroup
		read := func(s *Socket) {
			var all sync.WaitGroup
			for _, r := range s.Receivers() {
				all.Go(func() {
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
				})
			}
			receivers.Go(func() { all.Wait(); s.Close() })
		}
		read(y.Socket)
		stop := make(chan struct{})
		var xs []*end
		for range flows {
			xs = append(xs, v.single().listen(t))
		}
		senders.Go(func() {
			for n := 0; ; n++ {
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
				xs[n%flows].Send([]wireguard.Train{{Data: []byte("data"), Size: 4, Endpoint: to}})
			}
		})
		s := y.Socket
		for range renewals {
			for before := received.Load(); received.Load() < before+50; {
				time.Sleep(50 * time.Microsecond) // lets the sender run
			}
			n, err := s.Renew()
			if err != nil {
				t.Fatal(err)
			}
			old := s
			s = n.(*Socket)
			if len(s.Receivers()) != someReceivers || s.Port() != old.Port() {
				t.Fatalf("the new socket has %d receivers on port %d, want %d on %d", len(s.Receivers()), s.Port(), someReceivers, old.Port())
			}
			read(s)
			old.Retire()
		}
		close(stop)
		senders.Wait()
		for begin := time.Now(); received.Load() < sent.Load() && time.Since(begin) < 5*time.Second; {
			time.Sleep(time.Millisecond)
		}
		if received.Load() != sent.Load() {
			t.Errorf("%d of %d datagrams arrived, want all", received.Load(), sent.Load())
		}
		// Check that the flows are spread over the renewed sockets too.
		before := make([]uint64, 0, someReceivers)
		for _, p := range s.all() {
			before = append(before, p.socket().in.datagrams.Load())
		}
		for range 4 {
			for _, x := range xs {
				x.send(trainOf(1, 4, 4, to))
			}
		}
		want := sent.Load() + 4*flows
		for begin := time.Now(); received.Load() < want && time.Since(begin) < 5*time.Second; {
			time.Sleep(time.Millisecond)
		}
		used := 0
		i := 0
		for _, p := range s.all() {
			if p.socket().in.datagrams.Load() > before[i] {
				used++
			}
			i++
		}
		if used < 2 {
			t.Errorf("%d of %d renewed sockets received datagrams of the %d flows, want at least 2", used, someReceivers, flows)
		}
		s.Close()
		receivers.Wait()
	})
}

// reusing is a function for Bind.Control that sets SO_REUSEPORT.
func reusing(_, _ string, c syscall.RawConn) (err error) {
	if e := c.Control(func(fd uintptr) { _, err = setReuse(fd, true) }); e != nil {
		return e
	}
	return err
}

// TestReceiversPortInUse checks that Listen fails on a port that is in use, whatever options the sockets on the port have,
// before and after a renewal.
func TestReceiversPortInUse(t *testing.T) {
	grouped(t, func(t *testing.T, v variant, f family) {
		refused := func(what string, b Bind, port uint16) {
			t.Helper()
			if s, err := b.Listen(port); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("%s: error %v, want EADDRINUSE", what, err)
				if err == nil {
					s.Close()
				}
			}
		}
		x := v.listen(t)
		n, err := x.Renew()
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		for range 2 {
			refused("one socket beside several sockets", v.single().bind, x.Port())
			refused("several sockets beside several sockets", v.bind, x.Port())
			x.Close() // in the second round, only the renewed sockets are open
		}
		// Open several sockets with SO_REUSEPORT on another port, as another program of the same user could.
		theirs := v.with(func(b *Bind) { b.Control = reusing })
		other, err := theirs.bind.Listen(0)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		refused("several sockets beside those of another program", v.bind, other.Port())
	})
}

// TestReceiversShareWithNobody checks that a socket that another program of the same user binds to the port with SO_REUSEPORT
// receives no datagram.
func TestReceiversShareWithNobody(t *testing.T) {
	grouped(t, func(t *testing.T, v variant, f family) {
		y := v.listen(t)
		all := y.arrivals()
		theirs := v.single().with(func(b *Bind) { b.Control = reusing })
		thief, err := theirs.bind.Listen(y.Port())
		if err != nil {
			t.Fatal(err)
		}
		stolen := (&end{thief.(*Socket), t}).arrivals()
		defer thief.Close()
		for i := range 64 {
			v.single().listen(t).send(trainOf(i, 10, 10, y.at(f)))
			next(t, all)
		}
		select {
		case <-stolen:
			t.Error("the socket of another program received a datagram")
		default:
		}
	})
}

// TestReceiversLeaveSharingToControl checks that a Bind with Receivers zero opens only one socket per family if Control sets
// SO_REUSEPORT. The program then decides itself which sockets share the port.
func TestReceiversLeaveSharingToControl(t *testing.T) {
	b := Bind{Address: loopback(ipv4), Control: reusing, count: someReceivers}
	s, err := b.listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n := len(s.Receivers()); n != 1 {
		t.Errorf("the socket has %d receivers, want 1", n)
	}
}

// TestReceiversClose checks that no descriptor is open after Close, and that the port is free again.
func TestReceiversClose(t *testing.T) {
	grouped(t, func(t *testing.T, v variant, f family) {
		before := descriptors(t)
		s, err := v.bind.Listen(0)
		if err != nil {
			t.Fatal(err)
		}
		n, err := s.(*Socket).Renew()
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		n.Close()
		n.Close()
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors are open, want %d", after, before)
		}
		one := v.single()
		again, err := one.bind.Listen(s.Port())
		if err != nil {
			t.Fatalf("the port is not free after Close: %v", err)
		}
		again.Close()
	})
}

// descriptors returns how many file descriptors this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestReceiversFail checks that a Renew that cannot open one of its sockets leaves no new socket open, and restores the options
// of the old sockets. It also checks that a later Renew succeeds.
func TestReceiversFail(t *testing.T) {
	refused := errors.New("no more sockets")
	calls, limit := 0, someReceivers
	b := Bind{Address: loopback(ipv4), Receivers: someReceivers, Control: func(string, string, syscall.RawConn) error {
		if calls++; calls > limit {
			return refused
		}
		return nil
	}}
	s, err := b.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	x := s.(*Socket)
	before := descriptors(t)
	calls, limit = 0, 2
	if _, err := x.Renew(); !errors.Is(err, refused) {
		t.Fatalf("Renew failed with %v, want the error of Control", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open after a failed Renew, want %d", after, before)
	}
	for _, p := range x.all() {
		if was, err := p.socket().share(false); was || err != nil {
			t.Errorf("a failed Renew left SO_REUSEADDR set: %v (error %v)", was, err)
		}
		if was, err := p.socket().reuse(true); !was || err != nil {
			t.Errorf("SO_REUSEPORT of an old socket is set: %v (error %v), want true", was, err)
		}
	}
	calls, limit = 0, someReceivers
	n, err := x.Renew()
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
}

func TestReceiversMark(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to set a mark")
	}
	s, err := (&Bind{Address: loopback(ipv4), Receivers: someReceivers}).Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.(*Socket).SetMark(7); err != nil {
		t.Fatal(err)
	}
	for _, p := range s.(*Socket).all() {
		if got := markOf(p.socket().raw); got != 7 {
			t.Errorf("mark %d, want 7", got)
		}
	}
}

// TestReceiversWatchRoutesOnce checks that all IPv4 sockets of a Socket use the same value of type routes, so that only one
// goroutine watches the system's routes.
func TestReceiversWatchRoutesOnce(t *testing.T) {
	s, err := (&Bind{Address: netip.IPv4Unspecified(), Receivers: someReceivers}).Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, p := range s.(*Socket).others[ipv4] {
		if first := s.(*Socket).paths[ipv4].(*linuxPath); p.(*linuxPath).routes != first.routes || p.socket().also != nil {
			t.Error("another IPv4 socket of the same Socket watches the routes itself")
		}
	}
}

func TestReceiversByCores(t *testing.T) {
	for cores, want := range map[int]int{1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 8: 4, 16: 8, 64: 32, 1024: 256} {
		if got := receiversFor(cores); got != want {
			t.Errorf("%d cores: %d receivers, want %d", cores, got, want)
		}
	}
	for _, n := range []int{-1, maxReceivers + 1} {
		b := Bind{Receivers: n}
		if s, err := b.Listen(0); err == nil {
			s.Close()
			t.Errorf("Listen accepted Receivers: %d", n)
		}
	}
}
