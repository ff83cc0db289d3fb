//go:build linux && !android

package tun

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// flows keeps each flow on one queue, in both directions. The kernel delivers the packets of a flow on the queue to which this
// package last wrote a packet of the flow (tun_flow_update). Before the first write, the kernel chooses the queue. A write to
// another queue would move the flow to that queue while earlier packets are still on the old one, and later packets would
// overtake them. So this package writes a packet to the queue from which it last read a packet of the same flow. If it has read
// none, it chooses the queue from a hash of the flow's addresses and ports, and the kernel then uses the same queue.
//
// The table has 4,096 slots, like the kernel's table (MAX_TAP_FLOWS). If several flows have the same slot, the table stores only
// the flow of which a packet was read last. The zero value is empty.
type flows struct {
	slots [4096]atomic.Uint32 // upper 23 bits of the hash, and 1 + the queue's number in the other bits; 0 means free
}

// seen stores that the packet p was read from the queue with this number.
func (f *flows) seen(p []byte, queue int) {
	h := flowHash(p)
	slot := &f.slots[h%uint32(len(f.slots))]
	if now := h&^0x1ff | uint32(queue+1); slot.Load() != now {
		slot.Store(now)
	}
}

// queue returns the number of the queue to which the packet p must be written. queues is how many queues there are.
func (f *flows) queue(p []byte, queues int) int {
	h := flowHash(p)
	if slot := f.slots[h%uint32(len(f.slots))].Load(); slot&0x1ff != 0 && slot&^0x1ff == h&^0x1ff {
		return min(int(slot&0x1ff), queues) - 1
	}
	return int(uint64(h) * uint64(queues) >> 32)
}

// flowHash returns a hash of the packet's addresses and protocol, and of the ports of TCP and UDP. Both directions of a flow
// have the same hash.
func flowHash(p []byte) uint32 {
	if len(p) < packet.IP4Header {
		return 0
	}
	var x uint64
	l3, proto := int(p[0]&15)*4, p[packet.IP4Protocol]
	switch {
	case p[0]>>4 == 4:
		a := p[packet.IP4Addresses:]
		x = uint64(binary.BigEndian.Uint32(a)) + uint64(binary.BigEndian.Uint32(a[4:]))
		if binary.BigEndian.Uint16(p[packet.IP4Fragment:])&0x3fff != 0 {
			l3 = len(p) // ignore the ports, so that all fragments of a packet have the same hash
		}
	case len(p) >= packet.IP6Header:
		a := p[packet.IP6Addresses:]
		x = binary.BigEndian.Uint64(a) + binary.BigEndian.Uint64(a[16:])
		x = mix(x) + binary.BigEndian.Uint64(a[8:]) + binary.BigEndian.Uint64(a[24:])
		l3, proto = packet.IP6Header, p[packet.IP6Next]
	}
	if (proto == packet.TCP || proto == packet.UDP) && len(p) >= l3+4 {
		x = mix(x) + uint64(binary.BigEndian.Uint16(p[l3:])) + uint64(binary.BigEndian.Uint16(p[l3+2:]))
	}
	return uint32(mix(x+uint64(proto)) >> 32)
}

// mix makes each bit of the result depend on all bits of x. It is the finalizer of MurmurHash3.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
