package pipe

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

func TestTunnelBurstIsOneBatch(t *testing.T) {
	tun := NewTunnel(0)
	if tun.MTU() != 1420 {
		t.Errorf("the MTU is %d, want 1420", tun.MTU())
	}
	burst := [][]byte{[]byte("one"), []byte("two"), []byte("three")}
	if err := tun.Send(t.Context(), burst...); err != nil {
		t.Fatal(err)
	}
	for _, p := range burst {
		clear(p) // Send has copied the packets, so this changes nothing
	}
	var b wireguard.Batch
	if err := tun.ReadPackets(&b); err != nil || b.Len() != 3 {
		t.Fatalf("ReadPackets returned %d packets, error %v; want 3", b.Len(), err)
	}
	for i, want := range []string{"one", "two", "three"} {
		if got := string(b.Packet(i)); got != want {
			t.Errorf("packet %d is %q, want %q", i, got, want)
		}
	}
	tun.SetMTU(1280)
	if tun.MTU() != 1280 {
		t.Errorf("the MTU is %d, want 1280", tun.MTU())
	}
}

func TestTunnelFillsBatchAfterBatch(t *testing.T) {
	tun := NewTunnel(0)
	for i := range 300 {
		if !tun.TrySend([]byte(numbered(i, 1000))) {
			t.Fatal("TrySend refused a packet, although 300 packets fit the queue")
		}
	}
	var lens, got []int
	for len(got) < 300 {
		var b wireguard.Batch
		if err := tun.ReadPackets(&b); err != nil {
			t.Fatal(err)
		}
		lens = append(lens, b.Len())
		for i := range b.Len() {
			got = append(got, numbers([]string{string(b.Packet(i))})...)
		}
	}
	if !equal(got, upTo(300)) || len(lens) > 4 {
		t.Errorf("packets are missing or out of order, or the batches %v are more than 4", lens)
	}
}

func TestTunnelDelivers(t *testing.T) {
	tun := NewTunnel(0)
	pkts := [][]byte{[]byte("one"), []byte("two")}
	if n, err := tun.WritePackets(pkts); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	clear(pkts[0])
	if _, n := tun.Queued(); n != 2 {
		t.Errorf("%d packets are queued for Receive, want 2", n)
	}
	p, err := tun.Receive(t.Context())
	if string(p) != "one" || err != nil {
		t.Errorf("Receive returned %q, error %v; want the first packet", p, err)
	}
	if q := tun.TryReceive(); string(q) != "two" || string(p) != "one" {
		t.Errorf("TryReceive returned %q, want the second packet; the first, which the caller owns, is %q", q, p)
	}
	if p := tun.TryReceive(); p != nil {
		t.Errorf("TryReceive returned %q from an empty queue", p)
	}
}

func TestTunnelQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tun := NewTunnel(0)
		many := make([][]byte, tunnelPackets+10)
		for i := range many {
			many[i] = []byte("x")
		}
		if n, err := tun.WritePackets(many); n != tunnelPackets || err != nil || tun.Dropped() != 10 {
			t.Errorf("WritePackets wrote %d packets and dropped %d, error %v; want 10 dropped and no error", n, tun.Dropped(), err)
		}
		for tun.TryReceive() != nil {
		}
		jumbo := make([][]byte, 2*tunnelBytes/65535)
		for i := range jumbo {
			jumbo[i] = make([]byte, 65535)
		}
		if n, _ := tun.WritePackets(jumbo); n != tunnelBytes/65535 {
			t.Errorf("WritePackets wrote %d packets of 64 KiB, want as many as fit 4 MiB", n)
		}

		if !tun.TrySend(many...) {
			t.Error("TrySend refused a burst, although the queue is empty")
		}
		if tun.TrySend([]byte("x")) {
			t.Error("TrySend accepted a packet, although the queue is full")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := tun.Send(ctx, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Send: error %v, want context.DeadlineExceeded", err)
		}
		sent := make(chan error)
		go func() { sent <- tun.Send(t.Context(), []byte("x")) }()
		synctest.Wait()
		var b wireguard.Batch
		if err := tun.ReadPackets(&b); err != nil || b.Len() != 128 {
			t.Errorf("ReadPackets returned %d packets, error %v; want 128", b.Len(), err)
		}
		if err := <-sent; err != nil {
			t.Errorf("Send failed with %v, although the queue has room", err)
		}
		if n, _ := tun.Queued(); n != len(many)-128+1 {
			t.Errorf("%d packets are queued, want all but the 128 that were read", n)
		}
	})
}

func TestTunnelRefusesWhatIsNoPacket(t *testing.T) {
	tun := NewTunnel(0)
	for _, p := range [][]byte{nil, make([]byte, 65536)} {
		if err := tun.Send(t.Context(), []byte("x"), p); err == nil {
			t.Errorf("Send accepted a packet of %d bytes", len(p))
		}
		if tun.TrySend(p) {
			t.Errorf("TrySend accepted a packet of %d bytes", len(p))
		}
	}
	if n, _ := tun.Queued(); n != 0 {
		t.Errorf("%d packets are queued, want none of the refused burst", n)
	}
}

func TestTunnelCloseEndsEveryWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tun, full := NewTunnel(0), NewTunnel(0)
		many := make([][]byte, tunnelPackets)
		for i := range many {
			many[i] = []byte("x")
		}
		full.TrySend(many...)
		errs := make(chan error, 3)
		go func() { errs <- tun.ReadPackets(new(wireguard.Batch)) }()
		go func() { _, err := tun.Receive(context.Background()); errs <- err }()
		go func() { errs <- full.Send(context.Background(), []byte("x")) }()
		synctest.Wait()
		for range 2 {
			tun.Close()
			full.Close()
		}
		for range 3 {
			if err := <-errs; !errors.Is(err, net.ErrClosed) {
				t.Errorf("a call that waited for Close returned %v, want net.ErrClosed", err)
			}
		}
		if err := full.Send(t.Context(), []byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Send: %v, want net.ErrClosed", err)
		}
		if n, err := tun.WritePackets(many); n != 0 || !errors.Is(err, net.ErrClosed) || tun.Dropped() != uint64(len(many)) {
			t.Errorf("WritePackets after Close: %d written, error %v, %d dropped; want all dropped and net.ErrClosed", n, err, tun.Dropped())
		}
	})
}

func TestTunnelKeepsWhatCameBeforeClose(t *testing.T) {
	tun := NewTunnel(0)
	tun.WritePackets([][]byte{[]byte("last")})
	tun.Close()
	if p, err := tun.Receive(t.Context()); string(p) != "last" || err != nil {
		t.Errorf("Receive after Close returned %q, error %v; want the queued packet", p, err)
	}
	if _, err := tun.Receive(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Receive from the closed, empty queue: error %v, want net.ErrClosed", err)
	}
}

func TestTunnelReceiveEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := NewTunnel(0).Receive(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Receive: error %v, want context.DeadlineExceeded", err)
		}
	})
}

func TestTunnelReadsWithoutAllocations(t *testing.T) {
	tun := NewTunnel(0)
	p := make([]byte, 1420)
	var b wireguard.Batch
	round := func() {
		for range 64 {
			tun.TrySend(p)
		}
		tun.ReadPackets(&b)
		b.Reset()
	}
	round()
	if n := testing.AllocsPerRun(100, round); n > 1 { // the memory of the batch is allocated if a sync.Pool is empty
		t.Errorf("%v allocations for 64 packets, want at most 1: memory must be reused", n)
	}
}

// TestUDPPacket checks the fields and checksums of packets. A checksum is correct if the sum over all data that it covers,
// including the checksum, consists of ones only (RFC 1071).
func TestUDPPacket(t *testing.T) {
	for _, tc := range []struct{ src, dst string }{
		{"10.0.0.1:1234", "10.0.0.2:80"},
		{"[2001:db8::1]:1234", "[2001:db8::2]:80"},
	} {
		src, dst := netip.MustParseAddrPort(tc.src), netip.MustParseAddrPort(tc.dst)
		for n := range 300 {
			payload := bytes.Repeat([]byte{byte(n)}, n)
			p := UDPPacket(src, dst, payload)
			udp := p[len(p)-n-8:]
			if !bytes.Equal(udp[8:], payload) || int(udp[4])<<8|int(udp[5]) != n+8 {
				t.Fatalf("from %v with %d bytes: wrong payload or UDP length in %x", src, n, p)
			}
			if packet.TransportSum(p, len(p)-len(udp)) != 0xffff {
				t.Fatalf("from %v with %d bytes: wrong UDP checksum", src, n)
			}
			if src.Addr().Is4() && (packet.Sum(p[:20], 0) != 0xffff || int(p[2])<<8|int(p[3]) != len(p)) {
				t.Fatalf("%d bytes: wrong IPv4 header %x", n, p[:20])
			}
			if src.Addr().Is6() && int(p[4])<<8|int(p[5]) != len(udp) {
				t.Fatalf("%d bytes: wrong IPv6 header %x", n, p[:40])
			}
		}
	}
	v4, v6 := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("[2001:db8::1]:1")
	wantPanic(t, "addresses of two families", func() { UDPPacket(v4, v6, nil) })
	wantPanic(t, "no source address", func() { UDPPacket(netip.AddrPort{}, v6, nil) })
	wantPanic(t, "payload too long for UDP", func() { UDPPacket(v4, v4, make([]byte, 65508)) })
}

// TestUDPPacketVector checks a packet whose checksums were computed by hand. Without the checksum, the words of the IPv4 header
// add up to 0x8332. The words of the UDP pseudo-header and header add up to 0xfe2a.
func TestUDPPacketVector(t *testing.T) {
	p := UDPPacket(netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2"), []byte{0, 0})
	want := []byte{0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0x7c, 0xcd, 127, 0, 0, 1, 127, 0, 0, 1, 0, 1, 0, 2, 0, 10, 1, 0xd5, 0, 0}
	if !bytes.Equal(p, want) {
		t.Errorf("the packet is %x, want %x", p, want)
	}
	p = UDPPacket(netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2"), []byte{0x01, 0xd5})
	if p[26] != 0xff || p[27] != 0xff {
		t.Errorf("the checksum is %x, want ffff, because 0000 means that there is no checksum", p[26:28])
	}
}
