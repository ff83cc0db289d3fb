//go:build linux && !android

package tun

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// Flows pair each flow with one queue, in both directions. The kernel hands over a flow's packets on the queue that the
// flow was last written to (tun_flow_update). Before the first write, the kernel chooses a queue. A write to another
// queue would move the flow there while earlier packets still wait on the old queue, and later packets would overtake
// them. So this package writes a packet to the queue from which it last read a packet of the flow. If it has read none,
// the addresses and ports of the flow choose the queue, and the kernel follows.
//
// The table has a slot for each of 4,096 hashes, as the kernel's table has (MAX_TAP_FLOWS). Flows that share a slot
// take it from each other. The zero value is empty.
type flows struct {
	slots [4096]atomic.Uint32 // upper 23 bits of the hash, and 1 + queue; 0 means free
}

// seen notes that the packet p was read from a queue.
func (f *flows) seen(p []byte, queue int) {
	h := flowHash(p)
	slot := &f.slots[h%uint32(len(f.slots))]
	if now := h&^0x1ff | uint32(queue+1); slot.Load() != now {
		slot.Store(now)
	}
}

// queue returns the queue to write the packet p to.
func (f *flows) queue(p []byte, queues int) int {
	h := flowHash(p)
	if slot := f.slots[h%uint32(len(f.slots))].Load(); slot&0x1ff != 0 && slot&^0x1ff == h&^0x1ff {
		return min(int(slot&0x1ff), queues) - 1
	}
	return int(uint64(h) * uint64(queues) >> 32)
}

// flowHash hashes the addresses of a flow, and the ports of TCP and UDP. Both directions of a flow have the same hash.
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
			l3 = len(p) // the fragments of a packet are one flow
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

// mix spreads x over all bits (the finalizer of MurmurHash3).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
