package wgo

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/seed-86b749af/wireguard"
)

const (
	trainBytes     = 65507 // of UDP payload in one IPv4 packet; an IPv6 packet holds more
	trainDatagrams = 64    // the smallest UDP_MAX_SEGMENTS of Linux

	interned = 256 // endpoints that a receiver remembers
)

// ConnBind makes a datagram side of this library serve wireguard-go's device. It copies runs of datagrams of equal size,
// as wireguard-go sends them, into trains, so that b can send each run with one system call. It copies received datagrams
// out of their trains. It allocates nothing per packet, and one endpoint per new source address. It copies all datagrams for a
// b that is a wireguard.Framer, since wireguard-go leaves no room in front of them.
//
// SetMark does nothing if the sockets of b do not implement wireguard.Marker. Endpoints with a Link come only from
// received datagrams, because ParseEndpoint takes an address and port. The type of service of all datagrams is 0.
func ConnBind(b wireguard.Bind) conn.Bind {
	c := &connBind{inner: b}
	if f, ok := b.(wireguard.Framer); ok {
		c.headroom = f.Headroom()
	}
	c.sends.New = func() any { return new(outgoing) }
	return c
}

// A connBind wraps a wireguard.Bind as a conn.Bind.
type connBind struct {
	inner    wireguard.Bind
	headroom int       // of inner
	sends    sync.Pool // of *outgoing

	mu     sync.Mutex // held by Open and Close
	socket atomic.Pointer[wireguard.Socket]
}

// Open makes a socket. It fails while the previous socket is open.
func (c *connBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.socket.Load() != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	s, err := c.inner.Listen(port)
	if err != nil {
		return nil, 0, err
	}
	c.socket.Store(&s)
	var fns []conn.ReceiveFunc
	for _, r := range s.Receivers() {
		in := &intake{bind: c, socket: &s, receiver: r}
		fns = append(fns, in.receive)
	}
	return fns, s.Port(), nil
}

// Close closes the socket, if one is open.
func (c *connBind) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.socket.Swap(nil); s != nil {
		return (*s).Close()
	}
	return nil
}

// SetMark marks the datagrams that are sent, if the socket supports marks.
func (c *connBind) SetMark(mark uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.socket.Load(); s != nil {
		if m, ok := (*s).(wireguard.Marker); ok {
			return m.SetMark(mark)
		}
	}
	return nil
}

// BatchSize returns the batch size of StdNetBind.
func (c *connBind) BatchSize() int { return conn.IdealBatchSize }

// ParseEndpoint parses an address and port.
func (c *connBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	e, err := wireguard.ParseEndpoint(s)
	if err != nil {
		return nil, err
	}
	return &endpoint{Endpoint: e}, nil
}

// An endpoint wraps an Endpoint as a conn.Endpoint. It never changes, except that it drops its source: wireguard-go
// calls ClearSrc while other goroutines send to it.
type endpoint struct {
	wireguard.Endpoint
	noSource atomic.Bool
}

func (e *endpoint) ClearSrc()           { e.noSource.Store(true) }
func (e *endpoint) DstToString() string { return e.Endpoint.String() }

func (e *endpoint) SrcIP() netip.Addr {
	if e.noSource.Load() {
		return netip.Addr{}
	}
	return e.Source
}

func (e *endpoint) SrcToString() string {
	if src := e.SrcIP(); src.IsValid() {
		return src.String()
	}
	return ""
}

// DstIP returns the address by which wireguard-go limits handshakes. A Link has no address, so its key serves instead.
func (e *endpoint) DstIP() netip.Addr {
	if e.Link != nil {
		return netip.AddrFrom16(e.Link.Key())
	}
	return e.Addr.Addr()
}

// DstToBytes returns the bytes that cookies are bound to.
func (e *endpoint) DstToBytes() []byte {
	if e.Link != nil {
		key := e.Link.Key()
		return key[:]
	}
	b, _ := e.Addr.MarshalBinary() // never fails
	return b
}

// to returns the endpoint to send to.
func (e *endpoint) to() wireguard.Endpoint {
	to := e.Endpoint
	if e.noSource.Load() {
		to.Source, to.Interface = netip.Addr{}, 0
	}
	return to
}

// An intake turns the trains of one receiver into single datagrams. One goroutine uses it.
type intake struct {
	bind     *connBind
	socket   *wireguard.Socket
	receiver wireguard.Receiver

	trains []wireguard.Train // trains still to hand on; borrowed from the receiver until its next call
	known  map[wireguard.Endpoint]*endpoint
	last   *endpoint // the newest endpoint
}

// receive copies the rest of the last trains, or the next trains, to bufs. It is a conn.ReceiveFunc.
func (in *intake) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (n int, err error) {
	for n == 0 {
		if in.bind.socket.Load() != in.socket {
			return 0, net.ErrClosed
		}
		if len(in.trains) == 0 {
			if in.trains, err = in.receiver.Receive(); err != nil {
				in.trains = nil
				return 0, received(err)
			}
		}
		for n < len(bufs) && len(in.trains) > 0 {
			t := &in.trains[0]
			size := min(t.Size, len(t.Data))
			if size <= 0 {
				size = len(t.Data) // one datagram, as in Train.Len
			}
			if m := t.Data[min(t.Headroom, size):size]; len(m) > 0 && len(m) <= len(bufs[n]) {
				sizes[n], eps[n] = copy(bufs[n], m), in.endpoint(&t.Endpoint)
				n++
			}
			if t.Data = t.Data[size:]; len(t.Data) == 0 {
				in.trains = in.trains[1:]
			}
		}
	}
	return n, nil
}

// received returns err in the form for wireguard-go. net.ErrClosed is not wrapped. No other error is a net.Error, since
// a net.Error that is not temporary would end wireguard-go's receiver for ever.
func received(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return net.ErrClosed
	}
	return fmt.Errorf("wgo: receiving: %w", err)
}

// endpoint returns e as a conn.Endpoint. It returns the same one as before, if that still has its source.
func (in *intake) endpoint(e *wireguard.Endpoint) *endpoint {
	if in.last != nil && in.last.Endpoint == *e && !in.last.noSource.Load() {
		return in.last
	}
	ep := in.known[*e]
	if ep == nil || ep.noSource.Load() {
		ep = &endpoint{Endpoint: *e}
		if in.known == nil || len(in.known) >= interned {
			in.known = make(map[wireguard.Endpoint]*endpoint)
		}
		in.known[*e] = ep
	}
	in.last = ep
	return ep
}

// An outgoing is the scratch memory of one call of Send.
type outgoing struct {
	data   []byte
	trains []wireguard.Train
}

// Send sends bufs as trains and returns their first error.
func (c *connBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	e, ok := ep.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	s := c.socket.Load()
	if s == nil {
		return net.ErrClosed
	}
	o := c.sends.Get().(*outgoing)
	defer c.sends.Put(o)
	o.assemble(bufs, c.headroom, e.to())
	(*s).Send(o.trains)
	var err error
	for i := range o.trains {
		t := &o.trains[i]
		if t.Err != nil && err == nil {
			err = t.Err
		}
		if !t.Endpoint.Source.IsValid() && e.Source.IsValid() {
			e.ClearSrc() // the socket found the source gone
		}
	}
	clear(o.trains)
	return err
}

// assemble makes trains of bufs to one endpoint, in order. The datagrams of a train are equal in size, except for a
// shorter last one. A train of one datagram is not copied, unless it needs headroom.
func (o *outgoing) assemble(bufs [][]byte, headroom int, to wireguard.Endpoint) {
	o.data, o.trains = o.data[:0], o.trains[:0]
	for len(bufs) > 0 {
		n, bytes := trainLen(bufs, headroom)
		t := wireguard.Train{Data: bufs[0], Size: headroom + len(bufs[0]), Headroom: headroom, Endpoint: to}
		if n > 1 || headroom > 0 {
			if cap(o.data)-len(o.data) < bytes {
				o.data = make([]byte, 0, max(bytes, 2*cap(o.data))) // earlier trains keep the old memory
			}
			at := len(o.data)
			for _, b := range bufs[:n] {
				o.data = append(o.data[:len(o.data)+headroom], b...)
			}
			t.Data = o.data[at:len(o.data):len(o.data)]
		}
		if bufs = bufs[n:]; bytes > n*headroom {
			o.trains = append(o.trains, t)
		}
	}
}

// trainLen returns how many of the first bufs make one train, and their bytes with headroom.
func trainLen(bufs [][]byte, headroom int) (n, bytes int) {
	size := len(bufs[0])
	for n < len(bufs) && n < trainDatagrams {
		b := len(bufs[n])
		if n > 0 && (b > size || b == 0 || bytes+headroom+b > trainBytes) {
			break
		}
		n, bytes = n+1, bytes+headroom+b
		if b < size {
			break
		}
	}
	return n, bytes
}
