//go:build linux && !android

package tun

import (
	"encoding/binary"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/packet"
)

// A cutter copies one packet from the kernel into batches. If the packet is large, the cutter divides it into segments. The
// zero value has no packet. The cutter copies each byte once, into the memory in which the device encrypts it. It computes the
// checksum directly after copying, while the data is in the first-level cache.
type cutter struct {
	packet []byte // the caller's memory, in use until all of the packet is in batches; nil means no packet
	h      virtio
	t      packet.Template
	i, at  int // number of the next segment, and offset in the payload at which it begins
}

func (c *cutter) pending() bool { return c.packet != nil }

// begin makes p, with the virtio header h, the packet of c, and reports whether p and h are consistent. The caller must not
// change p while c is pending.
func (c *cutter) begin(h virtio, p []byte) bool {
	h.gso &^= gsoECN // needs no special treatment, since only the first segment ever has the flag CWR
	c.h, c.i, c.at = h, 0, 0
	if len(p) == 0 || h.flags&needsSum != 0 && int(h.start)+int(h.offset)+2 > len(p) || len(p) > 65535 && h.gso == gsoNone {
		return false
	}
	if h.gso != gsoNone && !c.beginLarge(h, p) {
		return false
	}
	c.packet = p
	return true
}

// beginLarge reads the headers of a packet that must be divided into segments.
func (c *cutter) beginLarge(h virtio, p []byte) bool {
	udp := h.gso == gsoUDP
	proto := uint8(packet.TCP)
	switch version := p[0] >> 4; h.gso {
	case gsoTCP4:
		if version != 4 {
			return false
		}
	case gsoTCP6:
		if version != 6 {
			return false
		}
	case gsoUDP:
		proto = packet.UDP
		if version != 4 && version != 6 {
			return false
		}
	default:
		return false
	}
	l3, ok := plainIP(p, proto)
	if h.flags&needsSum != 0 {
		l3, ok = int(h.start), startsRight(p, int(h.start))
	}
	l4 := l3 + packet.UDPHeader
	if ok && !udp {
		l4, ok = packet.TCPEnd(p, l3)
	}
	if !ok || h.size == 0 || len(p) < l4 || l4+min(int(h.size), len(p)-l4) > 65535 { // a batch has no space for such a segment
		return false
	}
	pseudo := packet.PseudoSum(p, 0)
	if at := l3 + int(h.offset); h.flags&needsSum != 0 && at+2 <= l4 {
		// The checksum field holds the sum of the pseudo-header, which includes the length of the whole packet. Remove that
		// length from the sum.
		pseudo = packet.Add(binary.BigEndian.Uint16(p[at:]), ^uint16(len(p)-l3))
	}
	return c.t.Set(p[:l4], l3, udp, pseudo)
}

// plainIP returns the length of p's IP header. ok is false if this header is not followed directly by a transport header of the
// protocol proto.
func plainIP(p []byte, proto uint8) (l3 int, ok bool) {
	if p[0]>>4 == 4 {
		l3 = int(p[0]&15) * 4
		return l3, l3 >= packet.IP4Header && len(p) >= l3 && p[packet.IP4Protocol] == proto
	}
	return packet.IP6Header, len(p) >= packet.IP6Header && p[packet.IP6Next] == proto
}

// startsRight reports whether the transport header of p can begin at the offset l3, which the kernel gave. In an IPv6 packet
// with extension headers, this offset is larger than 40.
func startsRight(p []byte, l3 int) bool {
	if p[0]>>4 == 4 {
		return l3 == int(p[0]&15)*4 && l3 >= packet.IP4Header
	}
	return l3 >= packet.IP6Header
}

// into copies the rest of the packet into b until b is full, and reports whether all of the rest fitted.
func (c *cutter) into(b *wireguard.Batch) (done bool) {
	if c.h.gso == gsoNone {
		return c.whole(b)
	}
	l4, payload := c.t.Headers(), c.packet[c.t.Headers():]
	for {
		size := min(int(c.h.size), len(payload)-c.at)
		room := b.Next(l4 + size)
		if room == nil {
			return false
		}
		last := c.at+size == len(payload)
		copy(room[l4:], payload[c.at:c.at+size])
		c.t.Put(room, c.i, c.at, last, packet.Sum(room[l4:], 0))
		b.Commit(len(room))
		if last {
			c.packet = nil
			return true
		}
		c.i, c.at = c.i+1, c.at+size
	}
}

// whole copies the packet into b without dividing it. If the kernel has left the checksum to this package, the checksum field holds
// the sum of the pseudo-header, and whole completes it.
func (c *cutter) whole(b *wireguard.Batch) (done bool) {
	room := b.Next(len(c.packet))
	if room == nil {
		return false
	}
	copy(room, c.packet)
	if c.h.flags&needsSum != 0 {
		sum := ^packet.Sum(room[c.h.start:], 0)
		if sum == 0 {
			sum = 0xffff // in UDP, 0 means no checksum; in other protocols 0 and 0xffff are equal
		}
		binary.BigEndian.PutUint16(room[int(c.h.start)+int(c.h.offset):], sum)
	}
	b.Commit(len(room))
	c.packet = nil
	return true
}
