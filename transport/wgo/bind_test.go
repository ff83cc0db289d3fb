package wgo

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

func listen(t *testing.T, b wireguard.Bind, port uint16) wireguard.Socket {
	t.Helper()
	s, err := b.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (f *fakeBind) deliver(from string, data ...string) {
	d := fakeDatagrams{from: &fakeEndpoint{name: from}}
	for _, s := range data {
		d.data = append(d.data, []byte(s))
	}
	f.in <- d
}

func wantTrain(t *testing.T, in *inbox, data string, size int) wireguard.Train {
	t.Helper()
	select {
	case got := <-in.trains:
		if string(got.Data) != data || got.Size != size {
			t.Errorf("received a train of %q with size %d, want %q with size %d", got.Data, got.Size, data, size)
		}
		return got
	case err := <-in.ended:
		t.Fatalf("a receiver ended with %v, want the train %q", err, data)
	}
	return wireguard.Train{}
}

func wantEnded(t *testing.T, in *inbox, n int) {
	t.Helper()
	for range n {
		<-in.ended
	}
}

func wantState(t *testing.T, s wireguard.Socket, want state, why string) {
	t.Helper()
	if !s.(*socket).is(want) {
		t.Errorf("the socket on port %d is in the wrong state, want state %d: %s", s.Port(), want, why)
	}
}

func trainTo(to string, data string, size int) []wireguard.Train {
	return []wireguard.Train{{Data: []byte(data), Size: size, Endpoint: wireguard.EndpointOf(netip.MustParseAddrPort(to))}}
}

func TestBindJoinsWhatItReceives(t *testing.T) {
	f := newFakeBind(t)
	s := listen(t, Bind(f), 0)
	in := receive(s)
	f.deliver("10.0.0.1:1", "aaaa", "bbbb", "", "cc")
	a := wantTrain(t, in, "aaaabbbbcc", 4)
	f.deliver("10.0.0.1:1", "aaaa", "bb", "cc", "dddd")
	wantTrain(t, in, "aaaabb", 4)
	wantTrain(t, in, "cc", 2)
	wantTrain(t, in, "dddd", 4)
	f.in <- fakeDatagrams{data: [][]byte{{}}} // Receive must skip an empty datagram
	f.deliver("[::ffff:10.0.0.1]:1", "aaaa")  // the same address as an IPv4-mapped address
	if b := wantTrain(t, in, "aaaa", 4); b.Endpoint != a.Endpoint || b.Endpoint.Addr.Addr().Is4In6() {
		t.Errorf("the endpoint is %v, want %v, with an IPv4 address", b.Endpoint, a.Endpoint)
	}
	f.in <- fakeDatagrams{} // a value without data makes the fakeBind return an error
	if err := <-in.errs; errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "odd") {
		t.Errorf("Receive returned %v, want the bind's error, and not net.ErrClosed", err)
	}
	f.deliver("10.0.0.1:1", "on it goes")
	wantTrain(t, in, "on it goes", 10)
	s.Close()
	wantEnded(t, in, 2)
}

func TestBindSendsCopies(t *testing.T) {
	f := newFakeBind(t)
	s := listen(t, Bind(f), 0)
	ts := append(trainTo("10.0.0.1:1", "aaaabbbbccccddddeeeeff", 4), trainTo("10.0.0.2:2", "g", 4)...)
	for range 2 { // in the second round, the copies are in memory that the bind has overwritten
		f.sent = nil
		s.Send(ts)
		if got := string(bytes.Join(f.sent, []byte(" "))); got != "aaaa bbbb cccc dddd eeee ff g" {
			t.Errorf("the bind sent %q, want the seven datagrams of both trains", got)
		}
		if string(ts[0].Data) != "aaaabbbbccccddddeeeeff" || ts[0].Err != nil || ts[1].Err != nil {
			t.Errorf("after Send, the data of the first train is %q, want it unchanged; its error is %v, want none for either train", ts[0].Data, ts[0].Err)
		}
	}
	s.Close()
	if s.Send(ts); !errors.Is(ts[0].Err, net.ErrClosed) || !errors.Is(ts[1].Err, net.ErrClosed) {
		t.Errorf("Send on a closed socket: error %v, want net.ErrClosed for both trains", ts[0].Err)
	}
}

// TestBindSendsOddSizes checks that a train is sent as one datagram if its Size is 0 or less, or larger than the data.
func TestBindSendsOddSizes(t *testing.T) {
	for _, size := range []int{-1, 0, 1000} {
		f := newFakeBind(t)
		s := listen(t, Bind(f), 0)
		ts := append(trainTo("10.0.0.1:1", "aabbcc", size), trainTo("10.0.0.1:1", "", size)...)
		s.Send(ts)
		if got := string(bytes.Join(f.sent, []byte(" "))); got != "aabbcc" || ts[0].Err != nil || ts[1].Err != nil {
			t.Errorf("size %d: the bind sent %q, want one datagram; errors %v and %v, want none", size, got, ts[0].Err, ts[1].Err)
		}
	}
}

func TestBindSendErrors(t *testing.T) {
	odd := errors.New("odd")
	src := netip.MustParseAddr("10.9.9.9")
	for _, c := range []struct {
		name       string
		err        func(ep *fakeEndpoint, call int) error
		want       error
		wantSource netip.Addr
		wantCalls  int
	}{
		{"fine", func(*fakeEndpoint, int) error { return nil }, nil, src, 2},
		{"a part failed", func(_ *fakeEndpoint, call int) error {
			if call == 0 {
				return odd
			}
			return nil
		}, odd, src, 2},
		{"offload disabled, then sent", func(*fakeEndpoint, int) error { return conn.ErrUDPGSODisabled{} }, nil, src, 2},
		{"offload disabled, then failed", func(*fakeEndpoint, int) error { return conn.ErrUDPGSODisabled{RetryErr: odd} }, odd, src, 2},
		{"source gone", func(ep *fakeEndpoint, _ int) error {
			if ep.src.IsValid() {
				return syscall.EINVAL
			}
			return nil
		}, nil, netip.Addr{}, 4},
		{"source gone, and no way at all", func(*fakeEndpoint, int) error { return syscall.ENETUNREACH }, syscall.ENETUNREACH, netip.Addr{}, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFakeBind(t)
			s := listen(t, Bind(f), 0)
			in := receive(s)
			f.in <- fakeDatagrams{[][]byte{[]byte("hello")}, &fakeEndpoint{"10.0.0.1:1", src}}
			heard := wantTrain(t, in, "hello", 5).Endpoint
			if heard.Source != src {
				t.Fatalf("the received endpoint is %+v, want one with the source 10.9.9.9", heard)
			}
			calls := 0
			f.send = func(bufs [][]byte, ep conn.Endpoint) error {
				calls++
				return c.err(ep.(*fakeEndpoint), calls-1)
			}
			ts := []wireguard.Train{{Data: []byte("aabbccddee"), Size: 2, Endpoint: heard}} // two calls: at most 4 datagrams each
			if s.Send(ts); !errors.Is(ts[0].Err, c.want) || (c.want == nil) != (ts[0].Err == nil) {
				t.Errorf("Send set the error %v, want %v", ts[0].Err, c.want)
			}
			if ts[0].Endpoint.Source != c.wantSource || calls != c.wantCalls {
				t.Errorf("the source is %v after %d calls of the bind's Send, want %v after %d calls", ts[0].Endpoint.Source, calls, c.wantSource, c.wantCalls)
			}
		})
	}
}

// TestBindLinks checks that endpoints with the same name are equal, even if the bind makes a new object for the name each time.
func TestBindLinks(t *testing.T) {
	f := newFakeBind(t)
	s := listen(t, Bind(f), 0)
	in := receive(s)
	f.deliver("nodekey:1", "a")
	f.deliver("nodekey:1", "b")
	f.deliver("nodekey:2", "c")
	a, b, c := wantTrain(t, in, "a", 1).Endpoint, wantTrain(t, in, "b", 1).Endpoint, wantTrain(t, in, "c", 1).Endpoint
	if a != b || a == c || !a.SamePlace(b) || a.Link.Key() == c.Link.Key() || a.Link.Key() != b.Link.Key() {
		t.Errorf("the endpoints are %v, %v and %v; want the first two equal and the third different", a, b, c)
	}
	configured, err := ParseEndpoint(f, "nodekey:1")
	if err != nil || configured != a || configured.String() != "nodekey:1" {
		t.Errorf("ParseEndpoint returned %v, error %v; want %v", configured, err, a)
	}
	if e, err := ParseEndpoint(f, "[fe80::1%eth0]:5"); err != nil || e.Addr != netip.MustParseAddrPort("[fe80::1%eth0]:5") {
		t.Errorf("ParseEndpoint of an address returned %v, error %v; want that address", e, err)
	}
	if _, err := ParseEndpoint(f, ""); err == nil {
		t.Error("ParseEndpoint succeeded, want the bind's error")
	}
	var to []string
	f.send = func(_ [][]byte, ep conn.Endpoint) error {
		to = append(to, ep.DstToString())
		return nil
	}
	unheard := wireguard.Endpoint{Link: link{"nodekey:3"}}
	ts := []wireguard.Train{{Data: []byte("x"), Size: 1, Endpoint: c}, {Data: []byte("x"), Size: 1, Endpoint: unheard}}
	if s.Send(ts); len(to) != 2 || to[0] != "nodekey:2" || to[1] != "nodekey:3" {
		t.Errorf("the bind sent to %q, want nodekey:2 and nodekey:3", to)
	}
}

// TestBindChangesPort checks the two sockets of a Bind that are open while the device changes its port. The receivers of the
// older socket wait, and the older socket sends through the conn.Bind, which is then open on the port of the newer socket.
func TestBindChangesPort(t *testing.T) {
	for _, port := range []uint16{0, 7, 1000} { // 1000 is the port of the first socket
		f := newFakeBind(t)
		b := Bind(f)
		old := listen(t, b, 0)
		oldIn := receive(old)
		f.deliver("10.0.0.1:1", "first")
		wantTrain(t, oldIn, "first", 5)

		s := listen(t, b, port)
		in := receive(s)
		if port != 0 && s.Port() != port {
			t.Errorf("the new socket has port %d, want %d", s.Port(), port)
		}
		f.deliver("10.0.0.1:1", "second")
		wantTrain(t, in, "second", 6)
		f.sent = nil
		ts := trainTo("10.0.0.1:1", "through the old one", 100)
		if old.Send(ts); ts[0].Err != nil || len(f.sent) != 1 {
			t.Errorf("Send on the old socket: error %v, want one datagram sent and no error", ts[0].Err)
		}
		old.Close()
		wantEnded(t, oldIn, 2)
		f.deliver("10.0.0.1:1", "third")
		wantTrain(t, in, "third", 5)
		s.Close()
		s.Close()
		wantEnded(t, in, 2)
		if len(f.opened) != 2 {
			t.Errorf("the bind was opened on the ports %d, want two openings", f.opened)
		}
	}
}

func TestBindGoesBackToTheOldPort(t *testing.T) {
	for _, c := range []struct {
		name string
		undo func(t *testing.T, f *fakeBind, b wireguard.Bind)
	}{
		{"the new port is taken", func(t *testing.T, f *fakeBind, b wireguard.Bind) {
			f.refuse(7)
			if _, err := b.Listen(7); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("Listen on a port that is in use: error %v, want EADDRINUSE", err)
			}
		}},
		{"the new socket is closed again", func(t *testing.T, f *fakeBind, b wireguard.Bind) {
			s := listen(t, b, 7)
			in := receive(s)
			s.Close()
			wantEnded(t, in, 2)
		}},
		{"of three the middle one is closed first", func(t *testing.T, f *fakeBind, b wireguard.Bind) {
			middle, last := listen(t, b, 7), listen(t, b, 8)
			middle.Close()
			last.Close()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFakeBind(t)
			b := Bind(f)
			s := listen(t, b, 5)
			in := receive(s)
			s.(wireguard.Marker).SetMark(42)
			c.undo(t, f, b)
			wantState(t, s, running, "the failed or undone change of port must not affect it")
			f.deliver("10.0.0.1:1", "as before")
			wantTrain(t, in, "as before", 9)
			if n := len(f.opened); f.opened[n-1] != 5 {
				t.Errorf("the bind was opened on the ports %d, want 5 as the last", f.opened)
			}
			if n := len(f.marks); n < 2 || f.marks[n-1] != 42 {
				t.Errorf("the bind got the marks %d, want 42 again as the last", f.marks)
			}
			s.Close()
			wantEnded(t, in, 2)
		})
	}
}

// TestBindRevives checks a socket whose bind could not be opened again, or was closed by code outside this package. The socket's
// receivers return an error, and work again when the bind can be opened.
func TestBindRevives(t *testing.T) {
	f := newFakeBind(t)
	b := Bind(f)
	s := listen(t, b, 5)
	in := receive(s)
	f.refuse(5, 7)
	if _, err := b.Listen(7); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "port 5 again") {
		t.Errorf("Listen: error %v, want EADDRINUSE and that port 5 could not be opened again", err)
	}
	for range 4 {
		if err := <-in.errs; !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("Receive on a lost socket: error %v, want EADDRINUSE", err)
		}
	}
	f.refuse()
	for back := false; !back; {
		select {
		case <-in.errs: // a receiver had this error before
		case <-time.After(time.Millisecond):
			back = s.(*socket).is(running)
		}
	}
	f.deliver("10.0.0.1:1", "back")
	wantTrain(t, in, "back", 4)

	f.Close()
	if err := <-in.errs; errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "from outside") {
		t.Errorf("the bind was closed from outside: error %v, want one that says so, and not net.ErrClosed", err)
	}
	f.deliver("10.0.0.1:1", "back again")
	wantTrain(t, in, "back again", 10)
	f.refuse(5)
	f.Close()
	<-in.errs
	s.Close() // the socket is lost
	for ended := 0; ended < 2; {
		select {
		case <-in.errs:
		case <-in.ended:
			ended++
		}
	}
}

// TestBindUnderLoad checks that the adapter keeps the rules for a conn.Bind while goroutines send, change the port and close
// sockets at the same time. The fakeBind reports violations.
func TestBindUnderLoad(t *testing.T) {
	f := newFakeBind(t)
	f.send = func([][]byte, conn.Endpoint) error { return nil }
	b := Bind(f)
	first := listen(t, b, 0)
	stop := make(chan struct{})
	var all sync.WaitGroup
	current := make(chan wireguard.Socket, 1)
	current <- first
	for range 3 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				case s := <-current:
					current <- s
					ts := trainTo("10.0.0.1:1", "aabbcc", 2)
					s.Send(ts)
					if err := ts[0].Err; err != nil && !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			case f.in <- fakeDatagrams{[][]byte{[]byte("hello")}, &fakeEndpoint{name: "10.0.0.1:1"}}:
			}
		}
	})
	in := receive(first)
	for range 50 {
		s := listen(t, b, 0)
		old := <-current
		current <- s
		go in.discard()
		old.Close()
		wantEnded(t, in, 2)
		close(in.trains)
		in = receive(s)
	}
	go in.discard()
	close(stop)
	(<-current).Close()
	wantEnded(t, in, 2)
	close(in.trains)
	all.Wait()
}

// TestRoutesAreBounded checks that the number of entries in routes (the stored conn.Endpoints) is limited, however many addresses
// there are, and that the entry of a peer in use is not dropped.
func TestRoutesAreBounded(t *testing.T) {
	f := newFakeBind(t)
	r := routes{bind: f}
	peer := wireguard.EndpointOf(netip.MustParseAddrPort("10.0.0.1:1"))
	peer.Source = netip.MustParseAddr("10.0.0.2")
	mine := &fakeEndpoint{"10.0.0.1:1", peer.Source}
	r.received(&peer, mine)
	for i := range 5 * routeLimit {
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		stranger := wireguard.EndpointOf(netip.AddrPortFrom(a, 1))
		r.received(&stranger, &fakeEndpoint{name: stranger.String()})
		if i%1000 == 0 {
			if ep, err := r.find(&peer); err != nil || ep != conn.Endpoint(mine) {
				t.Fatalf("after %d strangers, find returned %v, error %v for the peer; want the peer's endpoint", i, ep, err)
			}
		}
	}
	if n := len(r.now) + len(r.old); n > 2*routeLimit {
		t.Errorf("%d routes are stored, want at most %d", n, 2*routeLimit)
	}
	for range 2 { // in the second round, the route is stored
		peer.Source = netip.MustParseAddr("10.0.0.3")
		if ep, err := r.find(&peer); err != nil || ep.DstToString() != "10.0.0.1:1" || ep.SrcIP().IsValid() {
			t.Errorf("a peer with an unknown source: find returned %v, error %v; want an endpoint without source", ep, err)
		}
	}
	if _, err := r.find(&wireguard.Endpoint{Link: link{""}}); err == nil {
		t.Error("find succeeded for an endpoint that the bind cannot parse")
	}
}

func TestBindAllocations(t *testing.T) {
	f := newFakeBind(t)
	f.batch = 64
	f.send = func([][]byte, conn.Endpoint) error { return nil }
	s := listen(t, Bind(f), 0)
	r := s.Receivers()[0]
	d := fakeDatagrams{from: &conn.StdNetEndpoint{AddrPort: netip.MustParseAddrPort("10.0.0.1:1")}}
	for range 64 {
		d.data = append(d.data, make([]byte, 1400))
	}
	testkit.NoAllocations(t, 100, func() {
		f.in <- d
		ts, err := r.Receive()
		if err != nil || len(ts) != 1 || ts[0].Len() != 64 {
			t.Fatal(len(ts), err)
		}
		if s.Send(ts); ts[0].Err != nil {
			t.Fatal(ts[0].Err)
		}
	})
}
