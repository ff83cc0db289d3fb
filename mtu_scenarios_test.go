package wireguard_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/transport/pipe"
)

// packetOf returns a packet of size bytes from n to o. It is an IPv6 packet if six is set. If whole is set, the packet must not
// be fragmented.
func (n *node) packetOf(o *node, size int, six, whole bool) []byte {
	src, dst, headers := n.addr, o.addr, 28
	if six {
		src, dst, headers = n.addr6, o.addr6, 48
	}
	p := pipe.UDPPacket(netip.AddrPortFrom(src, 7), netip.AddrPortFrom(dst, 7), bytes.Repeat([]byte{'x'}, size-headers))
	if whole && !six {
		p[6] |= 0x40
	}
	return p
}

// wantTooBig asserts that n delivered exactly one packet to its tunnel: an ICMP error about the packet p that reports the given
// MTU.
func (n *node) wantTooBig(p []byte, mtu int, why string) {
	n.w.Helper()
	n.w.settle()
	r, l3, kind, code, quoted := n.tun.TryReceive(), 20, byte(3), byte(4), 576-28
	if p[0]>>4 == 6 {
		l3, kind, code, quoted = 40, 2, 0, 1280-48
	}
	if r == nil {
		n.w.Fatalf("at %v: %s delivered no ICMP error: %s", n.w.now(), n.name, why)
	}
	if icmp := r[l3:]; icmp[0] != kind || icmp[1] != code || int(binary.BigEndian.Uint32(icmp[4:])) != mtu || !bytes.Equal(icmp[8:], p[:min(quoted, len(p))]) {
		n.w.Fatalf("at %v: %s delivered an error with ICMP type %d, code %d and MTU %d, want %d, %d and %d, and a quote of the packet: %s", n.w.now(), n.name, icmp[0], icmp[1], binary.BigEndian.Uint32(icmp[4:]), kind, code, mtu, why)
	}
	if r := n.tun.TryReceive(); r != nil {
		n.w.Fatalf("at %v: %s delivered another packet: %x", n.w.now(), n.name, r)
	}
}

// The device drops a packet that is larger than its peer's MTU, and sends an ICMP error to the packet's sender. It sends an IPv4
// packet that may be fragmented even if the packet is too large.
func TestMTUOfPeer(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b, c := w.node("a"), w.node("b"), w.node("c")
		a.knows(b, func(c *wireguard.PeerConfig) { c.MTU = 1300 })
		a.knows(c)
		b.knows(a)
		c.knows(a)
		if s := a.status(b); s.MTU != 1300 {
			t.Fatalf("the peer's status has MTU %d, want 1300", s.MTU)
		}
		wantSize := func(n *node, size int, why string) {
			t.Helper()
			w.settle()
			if p := n.tun.TryReceive(); len(p) != size {
				t.Fatalf("at %v: a packet of %d bytes arrived at %s, want %d: %s", w.now(), len(p), n.name, size, why)
			}
		}
		wantDropped := func(count uint64, why string) {
			t.Helper()
			a.wantDrops(wireguard.DropTooBig, count, why)
			if got := a.status(b).Drops[wireguard.DropTooBig]; got != count {
				t.Fatalf("the peer's status counts %d packets that were too large, want %d: %s", got, count, why)
			}
		}
		for _, six := range []bool{false, true} {
			a.inject(a.packetOf(b, 1300, six, true))
			wantSize(b, 1300, "the packet is as large as the peer's MTU")
			large := a.packetOf(b, 1301, six, true)
			a.inject(large)
			a.wantTooBig(large, 1300, "the packet is one byte larger than the peer's MTU")
			a.inject(a.packetOf(c, 1301, six, true))
			wantSize(c, 1301, "the other peer has the tunnel's MTU")
			a.inject(a.packetOf(b, 100, six, true), a.packetOf(b, 1420, six, true), a.packetOf(c, 1420, six, true), a.packetOf(b, 200, six, true))
			wantSize(b, 100, "the packet is in front of the one that is too large, in the same batch")
			wantSize(b, 200, "the packet is behind the one that is too large, in the same batch")
			wantSize(c, 1420, "the packet in the same batch is for another peer")
			a.wantTooBig(a.packetOf(b, 1420, six, true), 1300, "the packet that is too large is in the middle of a batch")
			w.advance(time.Second) // so that the rate limit allows more ICMP errors
		}
		wantDropped(4, "two IPv4 packets and two IPv6 packets were too large")
		a.inject(a.packetOf(b, 1400, false, false))
		wantSize(b, 1400, "a packet that may be fragmented is sent as a whole")

		a.update(b, wireguard.PeerChange{MTU: ptr(600)})
		large := a.packetOf(b, 601, false, true)
		a.inject(large)
		a.wantTooBig(large, 600, "the peer's MTU is 600 now")
		a.inject(a.packetOf(b, 1280, true, true))
		wantSize(b, 1280, "IPv6 has no MTU below 1280")
		large = a.packetOf(b, 1281, true, true)
		a.inject(large)
		a.wantTooBig(large, 1280, "the ICMP error does not report an MTU below 1280")
		wantDropped(6, "one more IPv4 packet and one more IPv6 packet were too large")
		a.update(b, wireguard.PeerChange{PersistentKeepalive: ptr(time.Duration(0))})
		a.inject(a.packetOf(b, 601, false, true))
		a.wantTooBig(a.packetOf(b, 601, false, true), 600, "another change keeps the peer's MTU")
		a.update(b, wireguard.PeerChange{MTU: ptr(0)})
		a.inject(a.packetOf(b, 1420, false, true))
		wantSize(b, 1420, "the peer does not have its own MTU any more")
		wantDropped(7, "seven packets were too large in all")
	})
}

// Padding must not make a packet larger than the peer's MTU or the tunnel's MTU. The test checks packets that waited for a
// handshake, consecutive packets to one peer in a batch, and packets that alternate with packets to another peer.
func TestMTUClampsPadding(t *testing.T) {
	for _, test := range []struct{ mtu, size, want int }{
		{1301, 1300, 1301 + 32}, {1301, 1297, 1301 + 32}, {1301, 1296, 1296 + 32}, {1301, 100, 112 + 32}, {0, 1300, 1312 + 32}, {9000, 1419, 1420 + 32},
	} {
		inWorld(t, func(w *world) {
			a, b, c := w.node("a"), w.node("b"), w.node("c")
			a.knows(b, func(c *wireguard.PeerConfig) { c.MTU = test.mtu })
			a.knows(c)
			b.knows(a)
			c.knows(a)
			count := 0
			check := func(why string, packets ...[]byte) {
				t.Helper()
				before := len(w.past)
				a.inject(packets...)
				w.script()
				for _, m := range w.past[before:] {
					if m.kind != pipe.TypeData || m.dst != b.at().Addr {
						continue
					}
					if count++; len(m.data) != test.want {
						t.Fatalf("MTU %d, a packet of %d bytes: the message has %d bytes, want %d: %s", test.mtu, test.size, len(m.data), test.want, why)
					}
				}
			}
			p := a.packetOf(b, test.size, false, true)
			check("staged", p, p)
			check("back to back", p, p, p)
			check("in alternation with packets to another peer", p, a.packetOf(c, 500, false, true), p, a.packetOf(c, 1300, false, true), p)
			if count != 8 {
				t.Fatalf("the device sent %d data messages to b, want 8", count)
			}
			if got := len(b.arrived()); got != 8 {
				t.Fatalf("%d packets arrived, want 8", got)
			}
		})
	}
}
