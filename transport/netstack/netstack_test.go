package netstack

import (
	"encoding/binary"
	"math/rand"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
)

func addrs(s ...string) (as []netip.Addr) {
	for _, s := range s {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func TestConfig(t *testing.T) {
	for _, x := range []struct {
		c    Config
		want []string // texts that the error contains; nil if the Config is valid
	}{
		{Config{Addresses: addrs("10.0.0.1")}, nil},
		{Config{Addresses: addrs("10.0.0.1", "fd00::1"), DNS: addrs("1.1.1.1", "2606:4700::1111"), MTU: 1280}, nil},
		{Config{Addresses: addrs("10.0.0.1"), MTU: 576}, nil},
		{Config{Addresses: addrs("10.0.0.1"), MTU: 65535}, nil},
		{Config{Addresses: addrs("10.0.0.1"), Search: []string{"example.com", "Corp.", "~lan", "~", "."}, Ndots: -1}, nil},
		{
			Config{Addresses: addrs("10.0.0.1"), DNS: addrs("127.0.0.53"), Search: []string{"", "a b", "ok", "-x"}, DNSTimeout: -1},
			[]string{"DNS[0] is 127.0.0.53", `Search[1] is "a b"`, `Search[3] is "-x"`, "DNSTimeout is -1ns"},
		},
		{Config{Addresses: addrs("10.0.0.1"), Memory: 1 << 20}, nil},
		{Config{Addresses: addrs("10.0.0.1"), Memory: 1<<20 - 1}, []string{"Memory is 1048575 bytes", "at least 1048576 (1 MiB), or 0"}},
		{Config{Addresses: addrs("10.0.0.1"), Memory: -1}, []string{"Memory is -1 bytes"}},
		{Config{}, []string{"Addresses is empty"}},
		{Config{Addresses: addrs("10.0.0.1", "fd00::1"), MTU: 1279}, []string{"MTU is 1279", "1280"}},
		{Config{Addresses: addrs("10.0.0.1"), MTU: 575}, []string{"MTU is 575"}},
		{Config{Addresses: addrs("10.0.0.1"), MTU: 65536}, []string{"MTU is 65536"}},
		{Config{Addresses: addrs("10.0.0.1"), MTU: -1}, []string{"MTU is -1"}},
		{
			Config{
				Addresses: append(addrs("::ffff:10.0.0.1", "fe80::1%eth0", "::", "224.0.0.1", "127.0.0.1", "10.0.0.1", "10.0.0.1"), netip.Addr{}),
				DNS:       append(addrs("0.0.0.0", "fe80::1%eth0"), netip.Addr{}),
				MTU:       1000,
			},
			[]string{
				"Addresses[0]", "Addresses[1]", "Addresses[2]", "Addresses[3]", "Addresses[4]", "Addresses[6]", "Addresses[7]",
				"DNS[0]", "DNS[1]", "DNS[2]", "MTU is 1000",
			},
		},
	} {
		n, err := New(x.c)
		if err == nil {
			if got, want := n.MTU(), x.c.mtu(); got != want {
				t.Errorf("MTU is %d, want %d", got, want)
			}
			_ = n.Close()
		}
		if (err == nil) != (x.want == nil) {
			t.Errorf("New(%+v) returned the error %v, want an error only if the Config is invalid", x.c, err)
		}
		for _, want := range x.want {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("New(%+v): the error does not contain %q: %v", x.c, want, err)
			}
		}
		if err != nil && strings.Contains(err.Error(), "Addresses[5]") {
			t.Errorf("the error complains about the valid address Addresses[5]: %v", err)
		}
	}
}

var (
	_ wireguard.Tunnel   = (*Net)(nil)
	_ wireguard.Attacher = (*Net)(nil)
)

// TestClose closes a Net with endpoints in various states. TestMain checks that no goroutine is left.
func TestClose(t *testing.T) {
	a, b := pair(t)
	c, s := connectedTCP(t, a, b, b6) // s does not read what c writes
	l := echo(t, b, ":80")
	write(t, c, "unread")
	for range 2 {
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// A read by the peer of a closed Net must fail.
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a read succeeded although the other end's Net is closed")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := a.WritePackets([][]byte{{1}}); n != 0 || err != net.ErrClosed {
		t.Errorf("WritePackets to a closed Net: %d, %v; want 0, net.ErrClosed", n, err)
	}
	_, _ = s.Close(), l.Close()
}

// TestMalformed delivers packets that no correct sender sends. It checks that the Net counts each of them, passes none of them to
// its stack, and does not panic.
func TestMalformed(t *testing.T) {
	n, in := receiver(t)
	var want Stats
	malformed := func(p []byte) {
		t.Helper()
		if want.Malformed++; len(p) >= 20 && p[0]>>4 == 4 {
			p[10], p[11] = 0, 0
			binary.BigEndian.PutUint16(p[10:], checksum(p[:min(len(p), int(p[0]&15)*4)]))
		}
		_, _ = n.WritePackets([][]byte{p})
		if got := n.Stats(); got != want || len(in.delivered) != 0 {
			t.Fatalf("packet %x: Stats are %+v, and %d packets reached the stack; want Stats %+v, and no packet", p, got, len(in.delivered), want)
		}
	}
	malformed(nil)
	malformed(make([]byte, 19))
	malformed(make([]byte, 20)) // version 0
	ip4 := func(proto byte, n int) []byte {
		p := make([]byte, 20+n)
		p[0], p[9] = 0x45, proto
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		return p
	}
	ip6 := func(next byte, n int) []byte {
		p := make([]byte, 40+n)
		p[0], p[6] = 0x60, next
		binary.BigEndian.PutUint16(p[4:], uint16(n))
		return p
	}
	for _, n := range []int{0, 1, 7} {
		malformed(ip4(protoUDP, n))
		malformed(ip6(protoUDP, n))
	}
	for _, n := range []int{0, 1, 19, 20, 30} { // the last two have a header length of 0
		malformed(ip4(protoTCP, n))
		malformed(ip6(protoTCP, n))
	}
	short := ip4(protoUDP, 8)
	short[0] = 0x44
	malformed(short)
	long := ip4(protoUDP, 8)
	long[3]++
	malformed(long)
	malformed(ip6(protoUDP, 8)[:39])
	over := ip6(protoUDP, 8)
	over[5]++
	malformed(over)
	udp := ip4(protoUDP, 8)
	udp[25] = 9 // its length field says 9 bytes, but it has 8
	malformed(udp)

	for _, at := range []int{12, 16} {
		martian := ip4(protoUDP, 8)
		martian[at] = 127
		malformed(martian)
	}

	bad := func(p []byte) {
		t.Helper()
		want.Checksum++
		_, _ = n.WritePackets([][]byte{p})
		if got := n.Stats(); got != want || len(in.delivered) != 0 {
			t.Fatalf("packet %x: Stats are %+v, and %d packets reached the stack; want Stats %+v, and no packet", p, got, len(in.delivered), want)
		}
	}
	bad(ip4(protoUDP, 8))
	udp6 := ip6(protoUDP, 8)
	udp6[45] = 8
	bad(udp6) // IPv6 does not allow a datagram without a checksum
	udp = ip4(protoUDP, 8)
	udp[25], udp[27] = 8, 1
	binary.BigEndian.PutUint16(udp[10:], checksum(udp[:20]))
	bad(udp)
	icmp := ip6(protoICMP6, 8)
	icmp[40] = 1
	bad(icmp)

	udp[27] = 0 // IPv4 allows a datagram without a checksum
	_, _ = n.WritePackets([][]byte{udp})
	if len(in.delivered) != 1 || !in.delivered[0].checked {
		t.Errorf("IPv4 datagram without a checksum: %d packets reached the stack, want 1 that counts as checked", len(in.delivered))
	}
}

// TestSilent checks that an idle Net sends no packets, so that an idle tunnel stays idle.
func TestSilent(t *testing.T) {
	n, err := New(Config{Addresses: []netip.Addr{a4, a6}})
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{to: n}
	n.link.attach(w)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if p := w.packet.Load(); p != 0 {
		t.Errorf("an idle Net sent %d packets, want 0", p)
	}
}

// TestIdleMemory checks that the memory of an idle Net stays below a bound.
func TestIdleMemory(t *testing.T) {
	const nets, limit = 20, 96 << 10
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	_ = heap()
	before, goroutines := heap(), runtime.NumGoroutine()
	var ns []*Net
	for range nets {
		n, err := New(Config{Addresses: []netip.Addr{a4, a6}})
		if err != nil {
			t.Fatal(err)
		}
		ns = append(ns, n)
	}
	each := (heap() - before) / nets
	t.Logf("%d bytes per Net", each)
	if each > limit && !testkit.Race {
		t.Errorf("a Net takes %d bytes of heap, want at most %d", each, limit)
	}
	if n := (runtime.NumGoroutine() - goroutines) / nets; n > runtime.GOMAXPROCS(0) {
		t.Errorf("a Net has %d goroutines, want at most gVisor's %d", n, runtime.GOMAXPROCS(0))
	}
	for _, n := range ns {
		_ = n.Close()
	}
}

func TestNIC(t *testing.T) {
	a, _ := pair(t)
	info := a.Stack().NICInfo()[NICID]
	if info.Name != "wg" || info.MTU != defaultMTU {
		t.Errorf("the interface has the name %q and the MTU %d, want wg and defaultMTU", info.Name, info.MTU)
	}
	for _, p := range []tcpip.NetworkProtocolNumber{ipv4.ProtocolNumber, ipv6.ProtocolNumber} {
		if on, err := a.Stack().NICForwarding(NICID, p); on || err != nil {
			t.Errorf("NICForwarding returned %v, %v; want false", on, err)
		}
	}
}

// FuzzReceive delivers arbitrary bytes as packets. It corrects their lengths and IP checksums, so that the stack parses more of
// them. It checks that nothing panics, and that the stack still answers and closes.
func FuzzReceive(f *testing.F) {
	seed := rand.New(rand.NewSource(1))
	for i := range 8 {
		p, _, _ := tcpPacket(seed, i%2 == 1, i%4, 10*i)
		f.Add(p, true)
		p[9*(1-i%2)+6*(i%2)] = []byte{protoICMP4, protoUDP, protoICMP6, 44, 0, 43, 60, 2}[i]
		f.Add(p, true)
		f.Add(hostUnreachable(p), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		n, err := New(Config{Addresses: []netip.Addr{a4, a6}})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		n.link.attach(discard{})
		l, err := n.Listen("tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := n.ListenPacket("udp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 3 { // the first packet may begin a connection or be a fragment; the later packets then belong to it
			p := slices.Clone(b)
			if mend && len(p) >= 40 {
				if p[0]>>4 == 4 {
					copy(p[16:20], a4.AsSlice())
					binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
					if l3 := int(p[0]&15) * 4; l3 >= 20 && l3+20 <= len(p) {
						binary.BigEndian.PutUint16(p[l3+2:], 80)
						mendSums(p, l3)
					}
				} else {
					p[0] = 0x60 | p[0]&15
					copy(p[24:40], a6.AsSlice())
					binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
					if len(p) >= 60 {
						binary.BigEndian.PutUint16(p[42:], 80)
						mendSums(p, 40)
					}
				}
			}
			if _, err := n.WritePackets([][]byte{p, slices.Clone(p)}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := n.Ping(t.Context(), a4); err != nil {
			t.Error(err)
		}
	})
}
