package main

import (
	"net/netip"
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

// A rivalTun adapts a plain to the tun.Device of a wireguard-go device.
type rivalTun struct {
	plain  *plain
	events chan tun.Event
	once   sync.Once
}

func (t *rivalTun) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	f := t.plain.out
	first, n := f.take(len(bufs), t.plain.down)
	if n == 0 {
		return 0, os.ErrClosed
	}
	for i := range n {
		f.fill(bufs[i][offset:offset+len(f.template)], first+int64(i))
		sizes[i] = len(f.template)
	}
	return n, nil
}

func (t *rivalTun) Write(bufs [][]byte, offset int) (int, error) {
	tally := t.plain.in.begin()
	for _, b := range bufs {
		tally.add(b[offset:])
	}
	tally.end()
	return len(bufs), nil
}

func (t *rivalTun) Close() error {
	t.plain.close()
	t.once.Do(func() { close(t.events) })
	return nil
}

func (t *rivalTun) File() *os.File           { return nil }
func (t *rivalTun) MTU() (int, error)        { return t.plain.mtu, nil }
func (t *rivalTun) Name() (string, error)    { return "bench", nil }
func (t *rivalTun) Events() <-chan tun.Event { return t.events }
func (t *rivalTun) BatchSize() int           { return conn.IdealBatchSize }

// A rivalRelay passes each packet from Write to the next Read through a channel, as wireguard-go's own tun/netstack does.
type rivalRelay struct {
	packets chan *[]byte
	free    sync.Pool
	down    chan struct{}
	events  chan tun.Event
	once    sync.Once
}

func newRivalRelay() *rivalRelay {
	return &rivalRelay{
		packets: make(chan *[]byte, 4*window),
		free:    sync.Pool{New: func() any { return new([]byte) }},
		down:    make(chan struct{}),
		events:  make(chan tun.Event, 1),
	}
}

func (t *rivalRelay) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	var p *[]byte
	select {
	case p = <-t.packets:
	case <-t.down:
		return 0, os.ErrClosed
	}
	for {
		sizes[n] = copy(bufs[n][offset:], *p)
		n++
		t.free.Put(p)
		if n == len(bufs) {
			return n, nil
		}
		select {
		case p = <-t.packets:
		default:
			return n, nil
		}
	}
}

func (t *rivalRelay) Write(bufs [][]byte, offset int) (int, error) {
	for i, b := range bufs {
		p := t.free.Get().(*[]byte)
		*p = append((*p)[:0], b[offset:]...)
		select {
		case t.packets <- p:
		default:
			return i, nil
		}
	}
	return len(bufs), nil
}

func (t *rivalRelay) Close() error {
	t.once.Do(func() { close(t.down); close(t.events) })
	return nil
}

func (t *rivalRelay) File() *os.File           { return nil }
func (t *rivalRelay) MTU() (int, error)        { return mtu, nil }
func (t *rivalRelay) Name() (string, error)    { return "bench", nil }
func (t *rivalRelay) Events() <-chan tun.Event { return t.events }
func (t *rivalRelay) BatchSize() int           { return conn.IdealBatchSize }

// A rivalBind adapts an end of a wire to a device of wireguard-go.
type rivalBind struct {
	end    *end
	socket *wireSocket // nil until Open
}

func (b *rivalBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	s := b.end.open()
	b.socket = s
	from := &rivalEndpoint{s.remote}
	l := &landing{}
	receive := func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		l.bufs = bufs
		got, err := s.land(l)
		if err != nil {
			return 0, err
		}
		for i := range got.n {
			sizes[i], eps[i] = got.size[i], from
		}
		return got.n, nil
	}
	return []conn.ReceiveFunc{receive}, s.addr.Port(), nil
}

// Close does nothing before Open, because the device calls Close before each Open.
func (b *rivalBind) Close() error {
	if b.socket != nil {
		b.socket.close()
	}
	return nil
}

func (b *rivalBind) Send(bufs [][]byte, _ conn.Endpoint) error {
	if b.socket.swallow(len(bufs)) {
		return nil
	}
	c := crossing{s: b.socket}
	defer c.end()
	for _, buf := range bufs {
		if err := c.put(buf); err != nil {
			return err
		}
	}
	return nil
}

func (b *rivalBind) SetMark(uint32) error { return nil }
func (b *rivalBind) BatchSize() int       { return wireBatch }

func (b *rivalBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return &rivalEndpoint{a}, err
}

// A rivalEndpoint is the address of a peer. It is as large as the endpoint of wireguard-go's own bind, so that it costs the same
// memory.
type rivalEndpoint struct{ netip.AddrPort }

func (e *rivalEndpoint) ClearSrc()           {}
func (e *rivalEndpoint) SrcToString() string { return "" }
func (e *rivalEndpoint) DstToString() string { return e.String() }
func (e *rivalEndpoint) DstToBytes() []byte  { b, _ := e.MarshalBinary(); return b }
func (e *rivalEndpoint) DstIP() netip.Addr   { return e.Addr() }
func (e *rivalEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }
