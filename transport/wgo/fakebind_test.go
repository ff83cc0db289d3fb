package wgo

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/seed-86b749af/wireguard"
)

// A fakeBind is a conn.Bind that checks that its caller keeps the rules for a conn.Bind. Open returns two functions. The first
// function returns the datagrams that a test sends to the fakeBind's channel. The second function waits until Close.
type fakeBind struct {
	t     *testing.T
	batch int
	in    chan fakeDatagrams
	send  func(bufs [][]byte, ep conn.Endpoint) error // nil means that the datagrams are appended to sent
	sent  [][]byte

	sending atomic.Int32
	mu      sync.Mutex
	closed  chan struct{} // nil while the fakeBind is not open
	inside  int
	refused map[uint16]bool // ports that cannot be opened
	opened  []uint16
	marks   []uint32
}

type fakeDatagrams struct {
	data [][]byte
	from conn.Endpoint
}

// A fakeEndpoint is an endpoint of a type that only the fakeBind knows. Its name is an address and port, or any other string.
type fakeEndpoint struct {
	name string
	src  netip.Addr
}

func (e *fakeEndpoint) ClearSrc()             { panic("ClearSrc called on an endpoint that others use") }
func (e *fakeEndpoint) SrcToString() string   { return e.src.String() }
func (e *fakeEndpoint) DstToString() string   { return e.name }
func (e *fakeEndpoint) DstToBytes() []byte    { return []byte(e.name) }
func (e *fakeEndpoint) DstIP() (a netip.Addr) { return }
func (e *fakeEndpoint) SrcIP() netip.Addr     { return e.src }

func newFakeBind(t *testing.T) *fakeBind {
	return &fakeBind{t: t, batch: 4, in: make(chan fakeDatagrams, 16), refused: map[uint16]bool{}}
}

func (f *fakeBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed != nil || f.inside > 0 || f.sending.Load() > 0 {
		f.t.Errorf("Open called while the bind is open: %v, with %d receivers running and %d senders; want false, 0 and 0", f.closed != nil, f.inside, f.sending.Load())
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	if f.refused[port] {
		return nil, 0, syscall.EADDRINUSE
	}
	if port == 0 {
		port = 1000 + uint16(len(f.opened))
	}
	f.opened = append(f.opened, port)
	f.closed = make(chan struct{})
	return []conn.ReceiveFunc{f.receiver(f.closed, f.in), f.receiver(f.closed, nil)}, port, nil
}

func (f *fakeBind) receiver(closed chan struct{}, in chan fakeDatagrams) conn.ReceiveFunc {
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		f.mu.Lock()
		f.inside++
		f.mu.Unlock()
		defer func() {
			f.mu.Lock()
			f.inside--
			f.mu.Unlock()
		}()
		if len(bufs) != f.batch || len(sizes) != f.batch || len(eps) != f.batch || len(bufs[0]) != slot {
			f.t.Error("ReceiveFunc called without exactly BatchSize buffers of 64 KiB, BatchSize sizes and BatchSize endpoints")
		}
		select {
		case <-closed:
			return 0, net.ErrClosed
		case d := <-in:
			if d.data == nil {
				return 0, errors.New("odd socket error")
			}
			for i := range d.data {
				sizes[i], eps[i] = copy(bufs[i], d.data[i]), d.from
			}
			return len(d.data), nil
		}
	}
}

func (f *fakeBind) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sending.Load() > 0 {
		f.t.Error("Close called while Send runs")
	}
	if f.closed != nil {
		close(f.closed)
		f.closed = nil
	}
	return nil
}

func (f *fakeBind) SetMark(mark uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed == nil || f.sending.Load() > 0 {
		f.t.Error("SetMark called while the bind is closed or Send runs")
	}
	f.marks = append(f.marks, mark)
	return nil
}

func (f *fakeBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	f.sending.Add(1)
	defer f.sending.Add(-1)
	if len(bufs) == 0 || len(bufs) > f.batch {
		f.t.Errorf("Send called with %d buffers, want 1 to %d", len(bufs), f.batch)
	}
	if f.send != nil {
		return f.send(bufs, ep)
	}
	for i, b := range bufs {
		f.sent = append(f.sent, append([]byte(nil), b...))
		for j := range b {
			b[j] ^= 0xff // a conn.Bind may change the datagrams
		}
		bufs[i] = append(b, "trailer"...)
	}
	return nil
}

func (f *fakeBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	if s == "" {
		return nil, errors.New("empty")
	}
	return &fakeEndpoint{name: s}, nil
}

func (f *fakeBind) BatchSize() int { return f.batch }

func (f *fakeBind) refuse(ports ...uint16) {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.refused)
	for _, p := range ports {
		f.refused[p] = true
	}
}

// An inbox holds the results of the receivers of one socket.
type inbox struct {
	trains chan wireguard.Train // with copies of their data
	errs   chan error           // all errors but the last of each receiver
	ended  chan error           // the last error of each receiver
}

// receive starts a goroutine for each receiver of s that reads it as a device does. After an error, the goroutine waits until
// the test has received the error.
func receive(s wireguard.Socket) *inbox {
	in := &inbox{make(chan wireguard.Train, 256), make(chan error), make(chan error, 8)}
	for _, r := range s.Receivers() {
		go func() {
			for {
				ts, err := r.Receive()
				if errors.Is(err, net.ErrClosed) {
					in.ended <- err
					return
				}
				if err != nil {
					in.errs <- err
					continue
				}
				for _, t := range ts {
					data := append([]byte(nil), t.Data...)
					for i := range t.Data {
						t.Data[i] = 0xdb // a device may overwrite the data, for example when it decrypts in place
					}
					t.Data = data
					in.trains <- t
				}
			}
		}()
	}
	return in
}

func (in *inbox) discard() {
	for range in.trains {
	}
}
