package wireguard

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// A loop is a pair of Binds without a queue: what one end sends, the other receives on the same goroutine. It shows what
// the device itself costs.
type loop struct {
	addr    netip.AddrPort
	peer    *loop
	deliver func([]Train) // set: data goes here
	in      chan []byte   // handshake messages go here
	closed  chan struct{}
	once    sync.Once
}

func newLoop() (a, b *loop) {
	a = &loop{addr: netip.MustParseAddrPort("192.0.2.1:1"), in: make(chan []byte, 16), closed: make(chan struct{})}
	b = &loop{addr: netip.MustParseAddrPort("192.0.2.2:2"), in: make(chan []byte, 16), closed: make(chan struct{}), peer: a}
	a.peer = b
	return a, b
}

func (l *loop) Listen(uint16) (Socket, error) { return l, nil }
func (l *loop) Port() uint16                  { return l.addr.Port() }
func (l *loop) Receivers() []Receiver         { return []Receiver{l} }
func (l *loop) Close() error                  { l.once.Do(func() { close(l.closed) }); return nil }

func (l *loop) Send(ts []Train) {
	if l.peer.deliver != nil {
		for i := range ts {
			ts[i].Endpoint = EndpointOf(l.addr)
		}
		l.peer.deliver(ts)
		return
	}
	for _, t := range ts {
		l.peer.in <- append([]byte(nil), t.Data...)
	}
}

func (l *loop) Receive() ([]Train, error) {
	select {
	case m := <-l.in:
		return []Train{{Data: m, Size: len(m), Endpoint: EndpointOf(l.peer.addr)}}, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// A counter is a Tunnel that has nothing to send and counts what arrives.
type counter struct {
	n      int
	closed chan struct{}
}

func (c *counter) MTU() int                                { return 1420 }
func (c *counter) Close() error                            { close(c.closed); return nil }
func (c *counter) ReadPackets(*Batch) error                { <-c.closed; return net.ErrClosed }
func (c *counter) WritePackets(pkts [][]byte) (int, error) { c.n += len(pkts); return len(pkts), nil }

// BenchmarkDevice is a packet's whole way through two devices, on one core: into a batch, sealed, opened, to the sink.
func BenchmarkDevice(b *testing.B) {
	for _, size := range []int{1420, 64} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			from, to := newLoop()
			k1, k2 := NewPrivateKey(), NewPrivateKey()
			out, in := &counter{closed: make(chan struct{})}, &counter{closed: make(chan struct{})}
			d1, err := New(Config{PrivateKey: k1, Tunnel: out, Bind: from, Peers: []PeerConfig{{
				PublicKey: k2.Public(), Endpoint: EndpointOf(to.addr), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")},
			}}})
			if err != nil {
				b.Fatal(err)
			}
			d2, err := New(Config{PrivateKey: k2, Tunnel: in, Bind: to, Peers: []PeerConfig{{
				PublicKey: k1.Public(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")},
			}}})
			if err != nil {
				b.Fatal(err)
			}
			defer d2.Close()
			defer d1.Close()
			d1.Up()
			d2.Up()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if err := d1.Handshake(ctx, k2.Public()); err != nil {
				b.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
			var scratch inbound
			to.deliver = func(ts []Train) {
				scratch.now, scratch.table = d2.now(), d2.allowed.routes()
				for i := range ts {
					d2.receiveTrain(&scratch, &ts[i])
				}
				d2.acceptAll(&scratch)
			}
			packet := make([]byte, size)
			packet[0], packet[2], packet[3] = 0x45, byte(size>>8), byte(size)
			copy(packet[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
			batch := d1.NewBatch()
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for n := 0; n < b.N; {
				for n < b.N && batch.Append(packet) {
					n++
				}
				d1.Send(batch)
			}
			b.StopTimer()
			if in.n != b.N {
				b.Fatalf("%d of %d packets arrived", in.n, b.N)
			}
		})
	}
}

// BenchmarkCrypto is the bound: sealing and opening alone.
func BenchmarkCrypto(b *testing.B) {
	for _, size := range []int{1420, 64} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			k := newKeypair(&[32]byte{1}, &[32]byte{1}, 1, 2, true, 0)
			m := make([]byte, messageOverhead+pad(size, 1420))
			b.SetBytes(int64(size))
			for i := range b.N {
				k.seal(m, uint64(i))
				if _, ok := k.open(m); !ok {
					b.Fatal("forged")
				}
			}
		})
	}
}
