package netstack

import (
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// A wire is an outlet that passes packets directly to another Net, in place of two devices.
type wire struct {
	to     *Net
	cut    atomic.Bool
	tap    func(pkt []byte) (drop bool)
	sends  atomic.Int64
	packet atomic.Int64
}

func (w *wire) NewBatch() *wireguard.Batch { return new(wireguard.Batch) }

func (w *wire) Send(b *wireguard.Batch) error {
	defer b.Reset()
	w.sends.Add(1)
	w.packet.Add(int64(b.Len()))
	if w.cut.Load() {
		return nil
	}
	pkts := make([][]byte, 0, b.Len())
	for i := range b.Len() {
		if p := b.Packet(i); w.tap == nil || !w.tap(p) {
			pkts = append(pkts, p)
		}
	}
	_, err := w.to.WritePackets(pkts)
	for _, p := range pkts { // the packets are valid only until Send returns
		for i := range p {
			p[i] = 0xdb
		}
	}
	return err
}

var (
	a4, b4 = netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("10.8.0.2")
	a6, b6 = netip.MustParseAddr("fd08::1"), netip.MustParseAddr("fd08::2")
)

// pair returns two connected Nets. Both use the addresses of b as their name servers.
func pair(t testing.TB) (a, b *Net) {
	t.Helper()
	a, b, _, _ = wired(t, 0)
	return a, b
}

// deepPair is like pair, but its Nets have 1 GiB of memory each, so that no test of datagrams reaches the limit.
func deepPair(t testing.TB) (a, b *Net) {
	t.Helper()
	a, b, _, _ = wiredWith(t, Config{Memory: 1 << 30})
	return a, b
}

func wired(t testing.TB, mtu int) (a, b *Net, ab, ba *wire) {
	t.Helper()
	return wiredWith(t, Config{MTU: mtu})
}

func wiredWith(t testing.TB, c Config) (a, b *Net, ab, ba *wire) {
	t.Helper()
	make := func(addrs ...netip.Addr) *Net {
		c.Addresses, c.DNS = addrs, []netip.Addr{b4, b6}
		n, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.Close() })
		return n
	}
	a, b = make(a4, a6), make(b4, b6)
	ab, ba = &wire{to: b}, &wire{to: a}
	a.link.attach(ab)
	b.link.attach(ba)
	return a, b, ab, ba
}
