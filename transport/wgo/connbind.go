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
	trainBytes     = 65507 // maximum number of bytes of UDP payload in an IPv4 packet; an IPv6 packet can hold more
	trainDatagrams = 64    // maximum number of datagrams in a train; the smallest value of UDP_MAX_SEGMENTS in any version of Linux

	interned = 256 // maximum number of endpoints that an intake stores
)

// ConnBind returns a conn.Bind for wireguard-go's device that uses the wireguard.Bind b. If wireguard-go sends several
// datagrams of equal size, the conn.Bind copies them into a train, so that b can send them with one system call. It copies
// received datagrams out of their trains. It allocates nothing per packet, and one endpoint for each new source address. If b
// is a wireguard.Framer, it copies all datagrams that it sends, since wireguard-go provides no space in front of them.
//
// SetMark does nothing if the sockets of b do not implement wireguard.Marker. ParseEndpoint accepts only an address and port,
// so wireguard-go can get an endpoint with a Link only from a received datagram. All datagrams are sent with a type of service
// of 0.
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
	headroom int       // headroom that inner needs, in bytes
	sends    sync.Pool // contains *outgoing

	mu     sync.Mutex // locked during Open, Close and SetMark
	socket atomic.Pointer[wireguard.Socket]
}

// Open opens a socket. It fails while another socket is open.
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

// SetMark sets the mark of the datagrams that are sent from now on, if the socket supports marks.
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

// BatchSize returns the same batch size as StdNetBind.
func (c *connBind) BatchSize() int { return conn.IdealBatchSize }

// ParseEndpoint parses an address and port.
func (c *connBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	e, err := wireguard.ParseEndpoint(s)
	if err != nil {
		return nil, err
	}
	return &endpoint{Endpoint: e}, nil
}

// An endpoint wraps a wireguard.Endpoint as a conn.Endpoint. Only noSource ever changes, because wireguard-go calls ClearSrc
// while other goroutines send to the endpoint.
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

// DstIP returns the destination address, which wireguard-go uses to limit handshakes per address. For a Link, which has no
// address, it returns an address that is made from the Link's key.
func (e *endpoint) DstIP() netip.Addr {
	if e.Link != nil {
		return netip.AddrFrom16(e.Link.Key())
	}
	return e.Addr.Addr()
}

// DstToBytes returns the destination in binary form, from which wireguard-go computes cookies.
func (e *endpoint) DstToBytes() []byte {
	if e.Link != nil {
		key := e.Link.Key()
		return key[:]
	}
	b, _ := e.Addr.MarshalBinary() // never fails
	return b
}

// to returns the wireguard.Endpoint to send to, without its source after ClearSrc.
func (e *endpoint) to() wireguard.Endpoint {
	to := e.Endpoint
	if e.noSource.Load() {
		to.Source, to.Interface = netip.Addr{}, 0
	}
	return to
}

// An intake divides the trains of one receiver into single datagrams. Only one goroutine at a time may use it.
type intake struct {
	bind     *connBind
	socket   *wireguard.Socket
	receiver wireguard.Receiver

	trains []wireguard.Train // trains that have not been returned yet; valid until the next call of the receiver
	known  map[wireguard.Endpoint]*endpoint
	last   *endpoint // the endpoint that was returned last
}

// receive copies datagrams to bufs. It takes them from in.trains, and receives new trains if in.trains is empty. It is a
// conn.ReceiveFunc.
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

// received converts an error of a receiver for wireguard-go. For an error that wraps net.ErrClosed, it returns net.ErrClosed
// itself. It wraps any other error, so that the result is not a net.Error: wireguard-go stops receiving for ever after a
// net.Error that is not temporary.
func received(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return net.ErrClosed
	}
	return fmt.Errorf("wgo: receiving: %w", err)
}

// endpoint returns e as a conn.Endpoint. It returns the same conn.Endpoint as for an earlier call with e, if that one is still
// stored and its ClearSrc was not called.
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

// An outgoing holds the temporary data of one call of Send.
type outgoing struct {
	data   []byte
	trains []wireguard.Train
}

// Send sends bufs as trains and returns the error of the first train that failed.
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
			e.ClearSrc() // the socket has cleared the source, because the host no longer has this address
		}
	}
	clear(o.trains)
	return err
}

// assemble makes trains of bufs, in order. The datagrams of a train have equal sizes, except that the last one may be shorter.
// assemble copies the datagrams, except for a train that has one datagram and no headroom.
func (o *outgoing) assemble(bufs [][]byte, headroom int, to wireguard.Endpoint) {
	o.data, o.trains = o.data[:0], o.trains[:0]
	for len(bufs) > 0 {
		n, bytes := trainLen(bufs, headroom)
		t := wireguard.Train{Data: bufs[0], Size: headroom + len(bufs[0]), Headroom: headroom, Endpoint: to}
		if n > 1 || headroom > 0 {
			if cap(o.data)-len(o.data) < bytes {
				o.data = make([]byte, 0, max(bytes, 2*cap(o.data))) // earlier trains still use the old memory
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

// trainLen returns how many of the first bufs can be one train, and the size of this train including headroom, in bytes.
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
