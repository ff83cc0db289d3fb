//go:build linux && !android

package tun

import (
	"bytes"
	"encoding/binary"
	"math/rand"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// This file is a slow reference. It does what a network card does, to the letter.

// checksum returns the checksum over the pieces of bs together. It is 0 if they include the right checksum.
func checksum(bs ...[]byte) uint16 { return ^packet.Sum(bytes.Join(bs, nil), 0) }

// A shape tells the parts of a packet.
type shape struct {
	l3, l4 int
	udp    bool
}

func (s shape) proto() byte {
	if s.udp {
		return 17
	}
	return 6
}

// sumAt returns where the transport checksum is.
func (s shape) sumAt() int {
	if s.udp {
		return s.l3 + 6
	}
	return s.l3 + 16
}

// pseudo returns the pseudo-header of p. Extension headers do not matter to it.
func (s shape) pseudo(p []byte) []byte {
	addresses := p[12:20]
	if p[0]>>4 == 6 {
		addresses = p[8:40]
	}
	n := binary.BigEndian.AppendUint32(nil, uint32(len(p)-s.l3))
	return append(append(bytes.Clone(addresses), n...), 0, 0, 0, s.proto())
}

// mend writes the lengths and checksums of p.
func (s shape) mend(p []byte) {
	if p[0]>>4 == 4 {
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], checksum(p[:s.l3]))
	} else {
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	}
	if s.udp {
		binary.BigEndian.PutUint16(p[s.l3+4:], uint16(len(p)-s.l3))
	}
	binary.BigEndian.PutUint16(p[s.sumAt():], 0)
	sum := checksum(s.pseudo(p), p[s.l3:])
	if s.udp && sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(p[s.sumAt():], sum)
}

// partial writes the sum of the pseudo-header in place of the checksum, as a kernel does that leaves the rest to the
// hardware.
func (s shape) partial(p []byte) {
	binary.BigEndian.PutUint16(p[s.sumAt():], ^checksum(s.pseudo(p)))
}

// split returns the segments that a network card makes of p.
func (s shape) split(p []byte, size int) (out [][]byte) {
	payload := p[s.l4:]
	for i := 0; i == 0 || len(payload) > 0; i++ {
		part := payload[:min(size, len(payload))]
		payload = payload[len(part):]
		q := append(bytes.Clone(p[:s.l4]), part...)
		if q[0]>>4 == 4 {
			binary.BigEndian.PutUint16(q[4:], binary.BigEndian.Uint16(p[4:])+uint16(i))
		}
		if !s.udp {
			binary.BigEndian.PutUint32(q[s.l3+4:], binary.BigEndian.Uint32(p[s.l3+4:])+uint32(i*size))
			if len(payload) > 0 {
				q[s.l3+13] &^= 0x09 // FIN and PSH belong to the last
			}
			if i > 0 {
				q[s.l3+13] &^= 0x80 // CWR to the first
			}
		}
		s.mend(q)
		out = append(out, q)
	}
	return out
}

// newPacket returns a packet with fields from rnd and n bytes of payload. words is the number of words of TCP options
// or, with UDP, of an IPv6 extension header.
func newPacket(rnd *rand.Rand, v6, udp bool, words, n int) ([]byte, shape) {
	s := shape{l3: 20, udp: udp}
	if v6 {
		s.l3 = 40
		if udp && words > 0 {
			s.l3 += 8 * words
		}
	}
	s.l4 = s.l3 + 8
	if !udp {
		s.l4 = s.l3 + 20 + 4*words
	}
	p := make([]byte, s.l4+n)
	rnd.Read(p)
	if v6 {
		p[0] = 0x60 | p[0]&15
		if p[6] = s.proto(); s.l3 > 40 {
			p[6], p[40], p[41] = 60, s.proto(), byte((s.l3-40)/8-1) // destination options
		}
	} else {
		p[0], p[6], p[7], p[9] = 0x45, 0x40, 0, s.proto()
	}
	if !udp {
		p[s.l3+12] = byte(5+words)<<4 | p[s.l3+12]&1
	}
	s.mend(p)
	return p, s
}
