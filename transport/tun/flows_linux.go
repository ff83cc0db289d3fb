//go:build linux && !android

package tun

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// Flows pair each flow with one queue, in both directions. The kernel sends a flow out by the queue that its last packet
// came in by (tun_flow_update), or, while there was none, by one of its own choice. To write the flow to another one
// would move what it sends over, while earlier packets still wait to be read: they would be overtaken. So a packet is
// written to the queue that its flow's packets were read from last, and that of a flow which nothing was read from to
// one that its addresses and ports choose; then the kernel follows.
//
// The table has a slot for each of 4,096 hashes, as the kernel's has (MAX_TAP_FLOWS); flows that share one take it from
// each other. The zero value is empty.
type flows struct {
	slots [4096]atomic.Uint32 // upper 23 bits of the hash, and 1 + queue; 0: free
}

// seen notes that the packet p was read from a queue.
func (f *flows) seen(p []byte, queue int) {
	h := flowHash(p)
	slot := &f.slots[h%uint32(len(f.slots))]
	if now := h&^0x1ff | uint32(queue+1); slot.Load() != now {
		slot.Store(now)
	}
}

// queue is where to write the packet p.
func (f *flows) queue(p []byte, queues int) int {
	h := flowHash(p)
	if slot := f.slots[h%uint32(len(f.slots))].Load(); slot&0x1ff != 0 && slot&^0x1ff == h&^0x1ff {
		return min(int(slot&0x1ff), queues) - 1
	}
	return int(uint64(h) * uint64(queues) >> 32)
}

// flowHash is the same for both directions of a flow: its addresses, and the ports of TCP and UDP.
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
			l3 = len(p) // its parts are one flow
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
