//go:build linux && !android

package tun

import (
	"bytes"
	"encoding/binary"
	"math/rand"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// This file is a simple, slow implementation of what a network card does with large packets. Tests compare results with it.

// checksum returns the Internet checksum of the concatenation of bs. The result is 0 if the data already contains its correct
// checksum.
func checksum(bs ...[]byte) uint16 { return ^packet.Sum(bytes.Join(bs, nil), 0) }

// A shape holds the offsets of the transport header (l3) and of the payload (l4) of a packet.
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

// sumAt returns the offset of the transport checksum.
func (s shape) sumAt() int {
	if s.udp {
		return s.l3 + 6
	}
	return s.l3 + 16
}

// pseudo returns the pseudo-header of p, which does not depend on extension headers.
func (s shape) pseudo(p []byte) []byte {
	addresses := p[12:20]
	if p[0]>>4 == 6 {
		addresses = p[8:40]
	}
	n := binary.BigEndian.AppendUint32(nil, uint32(len(p)-s.l3))
	return append(append(bytes.Clone(addresses), n...), 0, 0, 0, s.proto())
}

// mend writes the correct lengths and checksums into p.
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

// partial writes the sum of the pseudo-header into the field of the transport checksum. A kernel does this if the network card
// has to compute the checksum.
func (s shape) partial(p []byte) {
	binary.BigEndian.PutUint16(p[s.sumAt():], ^checksum(s.pseudo(p)))
}

// split returns the segments into which a network card divides p. size is the length of their payload.
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
				q[s.l3+13] &^= 0x09 // only the last segment has FIN and PSH
			}
			if i > 0 {
				q[s.l3+13] &^= 0x80 // only the first segment has CWR
			}
		}
		s.mend(q)
		out = append(out, q)
	}
	return out
}

// newPacket returns a packet with random fields from rnd and n bytes of payload. For TCP, words is the length of the options in
// units of 4 bytes. For UDP over IPv6, it is the length of an extension header in units of 8 bytes.
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
