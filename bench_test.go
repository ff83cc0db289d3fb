package wireguard

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/layout"
)

// BenchmarkDevice measures a packet's whole path through two devices on one core: it is put into a batch, sealed by one device,
// opened by the other, and delivered to the Tunnel.
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
			scratch := d2.newInbound()
			to.deliver = func(ts []Train) {
				scratch.now, scratch.table = d2.now(), d2.allowed.routes()
				for i := range ts {
					d2.receiveTrain(scratch, &ts[i])
				}
				d2.acceptAll(scratch)
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

// BenchmarkCrypto measures sealing and opening alone. BenchmarkDevice cannot be faster.
func BenchmarkCrypto(b *testing.B) {
	for _, size := range []int{1420, 64} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			k := newKeypair(&[32]byte{1}, &[32]byte{1}, 1, 2, true, 0)
			m := make([]byte, messageOverhead+layout.Pad(size, 1420))
			b.SetBytes(int64(size))
			for i := range b.N {
				sealInPlace(k, m, uint64(i))
				if _, ok := k.open(m); !ok {
					b.Fatal("open refused a message that sealInPlace made")
				}
			}
		})
	}
}
