package wgo

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// A stubBind makes sockets without a network. The sockets receive the trains that tests send to the stubBind's channel, and store
// the trains that are sent on them.
type stubBind struct {
	in    chan []wireguard.Train
	sent  []string // one string per train: its datagrams, separated by spaces
	fail  func(t *wireguard.Train)
	to    wireguard.Endpoint
	marks []uint32
}

type stubSocket struct {
	*stubBind
	port   uint16
	once   sync.Once
	closed chan struct{}
}

func (b *stubBind) Listen(port uint16) (wireguard.Socket, error) {
	if port == 7 {
		return nil, errors.New("port 7 is taken")
	}
	return &stubSocket{stubBind: b, port: max(port, 1), closed: make(chan struct{})}, nil
}

func (s *stubSocket) Port() uint16                    { return s.port }
func (s *stubSocket) Receivers() []wireguard.Receiver { return []wireguard.Receiver{s} }

func (s *stubSocket) SetMark(mark uint32) error {
	s.marks = append(s.marks, mark)
	return nil
}

func (s *stubSocket) Receive() ([]wireguard.Train, error) {
	select {
	case ts := <-s.in:
		if ts == nil {
			return nil, &net.OpError{Op: "read", Err: errors.New("odd")} // a net.Error that is not temporary
		}
		return ts, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *stubSocket) Send(ts []wireguard.Train) {
	for i := range ts {
		t := &ts[i]
		if s.fail != nil {
			s.fail(t)
			continue
		}
		var all [][]byte
		for data := t.Data; len(data) > 0; data = data[min(t.Size, len(data)):] {
			all = append(all, data[:min(t.Size, len(data))])
		}
		s.sent = append(s.sent, string(bytes.Join(all, []byte(" "))))
		s.to = t.Endpoint
	}
}

func (s *stubSocket) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func openConnBind(t *testing.T, b wireguard.Bind) (conn.Bind, conn.ReceiveFunc) {
	t.Helper()
	c := ConnBind(b)
	fns, _, err := c.Open(0)
	if err != nil || len(fns) != 1 {
		t.Fatal(fns, err)
	}
	t.Cleanup(func() { c.Close() })
	return c, fns[0]
}

func TestConnBindOpensOnce(t *testing.T) {
	b := &stubBind{in: make(chan []wireguard.Train, 1)}
	c := ConnBind(b)
	if err := c.Close(); err != nil {
		t.Errorf("Close of a bind that was never open, which wireguard-go does: %v", err)
	}
	if err := c.SetMark(1); err != nil {
		t.Error(err)
	}
	if _, _, err := c.Open(7); err == nil {
		t.Error("Open succeeded on a port that is in use")
	}
	for range 3 {
		fns, port, err := c.Open(51820)
		if err != nil || port != 51820 {
			t.Fatal(port, err)
		}
		if _, _, err := c.Open(1); !errors.Is(err, conn.ErrBindAlreadyOpen) {
			t.Errorf("second Open: error %v, want ErrBindAlreadyOpen", err)
		}
		if err := c.SetMark(9); err != nil || len(b.marks) == 0 {
			t.Errorf("SetMark: error %v, the socket got the marks %d; want no error and a mark", err, b.marks)
		}
		ended := make(chan error)
		go func() {
			_, err := fns[0](nil, nil, nil)
			ended <- err
		}()
		for range 2 {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := <-ended; err != net.ErrClosed {
			t.Errorf("ReceiveFunc after Close: error %v, want net.ErrClosed", err)
		}
		e, _ := c.ParseEndpoint("10.0.0.1:1")
		if err := c.Send([][]byte{{1}}, e); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Send after Close: error %v, want net.ErrClosed", err)
		}
	}
}

func TestConnBindReceives(t *testing.T) {
	b := &stubBind{in: make(chan []wireguard.Train, 1)}
	_, receive := openConnBind(t, b)
	one := wireguard.EndpointOf(netip.MustParseAddrPort("10.0.0.1:1"))
	one.Source = netip.MustParseAddr("10.0.0.9")
	two := wireguard.EndpointOf(netip.MustParseAddrPort("[fe80::1%lo]:2"))
	b.in <- []wireguard.Train{
		{Data: []byte("aaaabbbbccccdd"), Size: 4, Endpoint: one},
		{Data: []byte("too long for a buffer"), Size: 100, Endpoint: one},
		{Data: []byte("e"), Size: 4, Endpoint: two},
		{Data: []byte("nosize"), Endpoint: two},
		{Endpoint: two},
	}
	var got, from []string
	bufs, sizes, eps := make([][]byte, 3), make([]int, 3), make([]conn.Endpoint, 3)
	for len(got) < 6 {
		for i := range bufs {
			bufs[i] = make([]byte, 10)
		}
		n, err := receive(bufs, sizes, eps)
		if err != nil || n == 0 {
			t.Fatal(n, err)
		}
		for i := range n {
			got = append(got, string(bufs[i][:sizes[i]]))
			from = append(from, eps[i].DstToString()+" at "+eps[i].SrcToString())
		}
	}
	if s := strings.Join(got, " "); s != "aaaa bbbb cccc dd e nosize" {
		t.Errorf("received %q, want all datagrams but the one that is too long", s)
	}
	if from[0] != "10.0.0.1:1 at 10.0.0.9" || from[3] != from[0] || from[4] != "[fe80::1%lo]:2 at " {
		t.Errorf("the datagrams have the endpoints %q, want those of their trains", from)
	}
	b.in <- nil
	_, err := receive(bufs, sizes, eps)
	if _, ok := err.(net.Error); err == nil || ok || errors.Is(err, net.ErrClosed) {
		t.Errorf("an unknown error is returned as %T, after which wireguard-go would stop receiving for ever", err)
	}
}

func TestConnBindSends(t *testing.T) {
	b := &stubBind{}
	c, _ := openConnBind(t, b)
	e, err := c.ParseEndpoint("[::ffff:10.0.0.1]:1")
	if err != nil {
		t.Fatal(err)
	}
	send := func(want string, sizes ...int) {
		t.Helper()
		var bufs [][]byte
		for i, n := range sizes {
			bufs = append(bufs, bytes.Repeat([]byte{byte('a' + i%26)}, n))
		}
		b.sent = nil
		if err := c.Send(bufs, e); err != nil {
			t.Error(err)
		}
		if got := strings.Join(b.sent, "|"); got != want {
			t.Errorf("sizes %d: sent %.200q, want %.200q", sizes, got, want)
		}
	}
	send("aa", 2)
	send("aa bb c", 2, 2, 1)
	send("aa bb c|dd", 2, 2, 1, 2)
	send("a|bb cc", 1, 2, 2)
	send("a|cc", 1, 0, 2)
	send("aa|cc", 2, 0, 2)
	var many []int
	for range 128 {
		many = append(many, 1420)
	}
	b.sent = nil
	send128 := func() {
		var bufs [][]byte
		for range many {
			bufs = append(bufs, make([]byte, 1420))
		}
		if err := c.Send(bufs, e); err != nil {
			t.Error(err)
		}
	}
	send128()
	total := 0
	for _, s := range b.sent {
		n := strings.Count(s, " ") + 1
		if total += n; n > 64 || n*1420 > 65507 {
			t.Errorf("a train has %d datagrams of 1420 bytes, want at most 64, and at most 65507 bytes", n)
		}
	}
	if total != 128 || len(b.sent) != 3 {
		t.Errorf("%d datagrams in %d trains, want 128 in 3", total, len(b.sent))
	}
	if b.to != wireguard.EndpointOf(netip.MustParseAddrPort("10.0.0.1:1")) {
		t.Errorf("the datagrams were sent to %v, want 10.0.0.1:1", b.to)
	}

	odd := errors.New("odd")
	b.fail = func(t *wireguard.Train) {
		if t.Size == 2 {
			t.Err = odd
		}
	}
	if err := c.Send([][]byte{{1}, {1, 2}, {1, 2, 3}}, e); !errors.Is(err, odd) {
		t.Errorf("Send returned %v, want the error of the one train that failed", err)
	}
	if err := c.Send([][]byte{{1}}, &fakeEndpoint{}); !errors.Is(err, conn.ErrWrongEndpointType) {
		t.Errorf("Send to an endpoint of another bind: error %v, want ErrWrongEndpointType", err)
	}
}

// A framedStub is a stubBind that implements wireguard.Framer: it needs space for a header in front of each datagram.
type framedStub struct{ *stubBind }

func (framedStub) Headroom() int { return 3 }

// TestConnBindHeadroom checks that each datagram for a Framer has the space for its header, and that received datagrams do not
// include the header.
func TestConnBindHeadroom(t *testing.T) {
	b := &stubBind{in: make(chan []wireguard.Train, 1)}
	c, receive := openConnBind(t, framedStub{b})
	var sent []string
	b.fail = func(t *wireguard.Train) {
		for f := range t.Frames() {
			copy(f[:t.Headroom], "hhh")
			sent = append(sent, string(f))
		}
		sent = append(sent, "|")
	}
	e, err := c.ParseEndpoint("10.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Send([][]byte{[]byte("aa"), []byte("bb"), []byte("c"), []byte("dd"), {}}, e); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(sent, " "); got != "hhhaa hhhbb hhhc | hhhdd |" {
		t.Errorf("sent %q, want each datagram with 3 bytes for its header", got)
	}
	b.in <- []wireguard.Train{{Data: []byte("hhhaaaahhhbbbbhhhc"), Size: 7, Headroom: 3}, {Data: []byte("hhhdd"), Headroom: 3}, {Data: []byte("hh"), Size: 7, Headroom: 3}}
	bufs, sizes, eps := [][]byte{make([]byte, 4), make([]byte, 4), make([]byte, 4), make([]byte, 4)}, make([]int, 4), make([]conn.Endpoint, 4)
	n, err := receive(bufs, sizes, eps)
	var got []string
	for i := range n {
		got = append(got, string(bufs[i][:sizes[i]]))
	}
	if s := strings.Join(got, " "); err != nil || s != "aaaa bbbb c dd" {
		t.Errorf("received %q, error %v; want all whole datagrams, without headers", s, err)
	}
}

// TestConnBindSource checks that an endpoint has a source until wireguard-go or the socket clears it. The next received datagram
// has an endpoint with a source again.
func TestConnBindSource(t *testing.T) {
	b := &stubBind{in: make(chan []wireguard.Train, 1)}
	c, receive := openConnBind(t, b)
	from := wireguard.EndpointOf(netip.MustParseAddrPort("10.0.0.1:1"))
	from.Source, from.Interface = netip.MustParseAddr("10.0.0.9"), 3
	hear := func() conn.Endpoint {
		t.Helper()
		b.in <- []wireguard.Train{{Data: []byte("a"), Size: 1, Endpoint: from}}
		bufs, eps := [][]byte{make([]byte, 10)}, make([]conn.Endpoint, 1)
		if _, err := receive(bufs, make([]int, 1), eps); err != nil {
			t.Fatal(err)
		}
		return eps[0]
	}
	wantSource := func(e conn.Endpoint, want bool, why string) {
		t.Helper()
		if c.Send([][]byte{{1}}, e); (b.to == from) != want || e.SrcIP().IsValid() != want || (e.SrcToString() != "") != want {
			t.Errorf("a datagram was sent to %+v, SrcIP %v: %s", b.to, e.SrcIP(), why)
		}
	}
	e := hear()
	wantSource(e, true, "the endpoint has the source at which the datagram was received")
	if again := hear(); again != e {
		t.Error("two datagrams from one place have different endpoint objects")
	}
	e.ClearSrc()
	wantSource(e, false, "ClearSrc has cleared the source")
	e = hear()
	wantSource(e, true, "a new datagram has set the source again")
	b.fail = func(t *wireguard.Train) { t.Endpoint.Source, t.Endpoint.Interface = netip.Addr{}, 0 }
	c.Send([][]byte{{1}}, e)
	b.fail = nil
	wantSource(e, false, "the socket has cleared the source, which no longer exists")
	if ip, raw := e.DstIP(), e.DstToBytes(); ip != from.Addr.Addr() || !bytes.Equal(raw, []byte{10, 0, 0, 1, 1, 0}) {
		t.Errorf("DstIP is %v and DstToBytes is %v, want those of 10.0.0.1:1", ip, raw)
	}
	from = wireguard.Endpoint{Link: link{"nodekey:1"}}
	e = hear()
	c.Send([][]byte{{1}}, e)
	if key := from.Link.Key(); b.to != from || e.DstToString() != "nodekey:1" || e.DstIP() != netip.AddrFrom16(key) || !bytes.Equal(e.DstToBytes(), key[:]) {
		t.Errorf("a link has DstToString %v, DstIP %v and DstToBytes %v, want its name and its key", e.DstToString(), e.DstIP(), e.DstToBytes())
	}
	for i := range 3 * interned { // datagrams from many addresses must not use up memory
		from = wireguard.EndpointOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 1))
		hear()
	}
	for _, s := range []string{"", "10.0.0.1", "host:1", "10.0.0.1:0"} {
		if _, err := c.ParseEndpoint(s); err == nil {
			t.Errorf("ParseEndpoint(%q) succeeded, want an error", s)
		}
	}
}

func TestConnBindAllocations(t *testing.T) {
	b := &stubBind{in: make(chan []wireguard.Train, 1), fail: func(*wireguard.Train) {}}
	c, receive := openConnBind(t, b)
	data := make([]byte, 64*1000)
	ts := make([]wireguard.Train, 1)
	bufs, sizes := theirBuffers(128)
	eps := make([]conn.Endpoint, 128)
	testkit.NoAllocations(t, 100, func() {
		ts[0] = wireguard.Train{Data: data, Size: 1000, Endpoint: wireguard.EndpointOf(netip.MustParseAddrPort("10.0.0.1:1"))}
		b.in <- ts
		n, err := receive(bufs, sizes, eps)
		if n != 64 || err != nil {
			t.Fatal(n, err)
		}
		for i := range n {
			bufs[i] = bufs[i][:1000]
		}
		if err := c.Send(bufs[:n], eps[0]); err != nil {
			t.Fatal(err)
		}
	})
}
