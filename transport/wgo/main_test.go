package wgo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/seed-86b749af/wireguard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// packet returns an IPv4 packet of n bytes whose payload begins with seq.
func packet(n int, seq uint32) []byte {
	p := bytes.Repeat([]byte{byte(seq)}, n)
	p[0] = 0x45
	binary.BigEndian.PutUint16(p[2:], uint16(n))
	if n >= 24 {
		binary.BigEndian.PutUint32(p[20:], seq)
	}
	return p
}

// A fakeTUN is a tun.Device that calls the functions read and write. It checks that its caller keeps the rules for a
// tun.Device.
type fakeTUN struct {
	t      *testing.T
	batch  int
	read   func(bufs [][]byte, sizes []int, offset int) (int, error)
	write  func(bufs [][]byte, offset int) (int, error)
	events chan tun.Event

	mu     sync.Mutex
	mtu    int
	closed chan struct{}
}

func newFakeTUN(t *testing.T, batch int) *fakeTUN {
	return &fakeTUN{t: t, batch: batch, mtu: 1400, events: make(chan tun.Event), closed: make(chan struct{})}
}

func (f *fakeTUN) File() *os.File           { return nil }
func (f *fakeTUN) Name() (string, error)    { return "fake", nil }
func (f *fakeTUN) Events() <-chan tun.Event { return f.events }
func (f *fakeTUN) BatchSize() int           { return f.batch }

func (f *fakeTUN) MTU() (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mtu == 0 {
		return 0, errors.New("no MTU")
	}
	return f.mtu, nil
}

func (f *fakeTUN) setMTU(n int) {
	f.mu.Lock()
	f.mtu = n
	f.mu.Unlock()
	f.events <- tun.EventMTUUpdate
}

func (f *fakeTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if len(bufs) != f.batch || len(sizes) < len(bufs) || offset < 10 || len(bufs[0]) < slot {
		f.t.Errorf("Read called with %d buffers of %d bytes, %d sizes and the offset %d; want exactly %d buffers of 64 KiB, as many sizes, and an offset of at least 10",
			len(bufs), len(bufs[0]), len(sizes), offset, f.batch)
	}
	select {
	case <-f.closed:
		return 0, os.ErrClosed
	default:
	}
	if f.read != nil {
		if n, err := f.read(bufs, sizes, offset); n != 0 || err != nil {
			return n, err
		}
	}
	<-f.closed
	return 0, os.ErrClosed
}

func (f *fakeTUN) Write(bufs [][]byte, offset int) (int, error) {
	select {
	case <-f.closed:
		f.t.Error("Write called after Close")
	default:
	}
	if len(bufs) > f.batch || len(bufs) == 0 || offset < 10 {
		f.t.Errorf("Write called with %d buffers and the offset %d; want 1 to %d buffers and an offset of at least 10", len(bufs), offset, f.batch)
	}
	for _, b := range bufs {
		if cap(b) < slot {
			f.t.Errorf("Write called with a buffer of capacity %d, want at least 64 KiB", cap(b))
		}
		clear(b[:offset]) // a real device may overwrite these bytes too
	}
	return f.write(bufs, offset)
}

func (f *fakeTUN) Close() error {
	close(f.closed) // a second call panics, as in tun/netstack
	close(f.events)
	return nil
}

// A queue is a wireguard.Tunnel for tests that consists of two channels. ReadPackets receives packets from the channel in, and
// WritePackets sends packets to the channel out.
type queue struct {
	in, out chan []byte
	mtu     int
	once    sync.Once
	closed  chan struct{}
}

func newQueue() *queue {
	return &queue{in: make(chan []byte, 64), out: make(chan []byte, 4096), mtu: 1420, closed: make(chan struct{})}
}

func (q *queue) MTU() int { return q.mtu }

func (q *queue) ReadPackets(b *wireguard.Batch) error {
	select {
	case p := <-q.in:
		b.Append(p)
	case <-q.closed:
		return net.ErrClosed
	}
	for {
		select {
		case p := <-q.in:
			b.Append(p)
			if b.Len() == 64 {
				return nil
			}
		default:
			return nil
		}
	}
}

func (q *queue) WritePackets(pkts [][]byte) (n int, err error) {
	for _, p := range pkts {
		select {
		case q.out <- bytes.Clone(p):
			n++
		default:
		}
		for i := range p {
			p[i] = 0xdb // a Tunnel may overwrite the packets
		}
	}
	return n, nil
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}
