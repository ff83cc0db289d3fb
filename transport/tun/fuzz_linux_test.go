//go:build !android

package tun

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"slices"
	"testing"
)

// A script makes packets from fuzzed bytes. Most packets are valid and continue their flow. Some bytes make the script change a
// field or damage the packet.
type script struct {
	b     []byte
	flows [16]scriptFlow
}

type scriptFlow struct {
	shape
	size int
	p    []byte // the flow's last packet
}

func (s *script) byte() byte {
	if len(s.b) == 0 {
		return 0
	}
	b := s.b[0]
	s.b = s.b[1:]
	return b
}

// next returns another packet and the number of its flow. If the packet need not stay in order, flow is -1.
func (s *script) next() (p []byte, flow int) {
	flow = int(s.byte()) % len(s.flows)
	f := &s.flows[flow]
	if f.p == nil {
		f.size = 1 + int(s.byte())*11
		f.p, f.shape = newPacket(rand.New(rand.NewSource(int64(flow))), flow&1 != 0, flow&2 != 0, flow/4%2*(1-flow>>1&1)*3, f.size)
		if !f.udp {
			f.p[f.l3+13] = 0x10
		}
		f.mend(f.p)
		return bytes.Clone(f.p), flow
	}
	l3, n, odd := f.l3, f.size, s.byte()
	switch odd {
	case 1:
		n = int(s.byte()) * 12
	case 2:
		n = 0
	case 3:
		n = f.size / 2
	}
	p = append(bytes.Clone(f.p[:f.l4]), make([]byte, n)...)
	for i := f.l4; i < len(p); i++ {
		p[i] = byte(i * n)
	}
	v4 := p[0]>>4 == 4
	if v4 {
		binary.BigEndian.PutUint16(p[4:], binary.BigEndian.Uint16(p[4:])+1)
	}
	if !f.udp {
		seq := binary.BigEndian.Uint32(f.p[l3+4:]) + uint32(len(f.p)-f.l4)
		binary.BigEndian.PutUint32(p[l3+4:], seq)
	}
	rest := 0
	switch x := int(s.byte()); odd {
	case 4:
		p[l3+7]++ // the last byte of TCP's sequence number, or of UDP's checksum, which mend corrects
	case 5, 6, 7:
		if !f.udp {
			p[l3+13] ^= 1 << (x % 8) // flags
		}
	case 8:
		if f.l4 > l3+8 {
			p[l3+8+x%(f.l4-l3-8)]++ // acknowledgement, offset, window, urgent pointer, options
		}
	case 9:
		p[1] += byte(x) // type of service or traffic class
	case 10:
		if v4 {
			p[8]++ // time to live
		} else {
			p[7]++ // hop limit
		}
	case 11:
		if v4 {
			p[6] ^= 0x40 // the flag "don't fragment", also for later packets of the flow
		} else {
			p[3]++ // flow label
		}
	case 12:
		if v4 {
			p[5] += byte(x) // identification
		}
	case 13:
		if !f.udp {
			p[l3+13] |= 0x08
		}
	case 14:
		if v4 {
			p[7]++ // makes the packet a fragment
			rest = -1
		}
	}
	shape := f.shape
	if !f.udp { // the changes above may have changed the header length
		shape.l4 = l3 + int(p[l3+12]>>4)*4
	}
	f.mend(p)
	f.p = bytes.Clone(p)
	if v4 {
		f.p[6], f.p[7] = f.p[6]&0x40, 0
	}
	if !f.udp {
		f.p[l3+12], f.p[l3+13] = byte((f.l4-l3)/4)<<4, 0x10
		if shape.l4 != f.l4 && (shape.l4 < l3+20 || shape.l4 > len(p)) {
			rest = -1 // not a valid TCP packet
		}
	}
	switch odd {
	case 15:
		p[int(s.byte())%len(p)] ^= 1 << (s.byte() % 8) // damage
		rest = -1
	case 16:
		p = p[:int(s.byte())%len(p)] // cut off the rest of the packet
		rest = -1
	case 17:
		if f.udp {
			p[l3+6], p[l3+7] = 0, 0 // no checksum
		}
	case 18:
		p[len(p)-1] ^= 1 // this damage leaves the packet in its flow
	}
	if rest < 0 {
		flow = -1
	}
	return p, flow
}

// FuzzMerge checks that the kernel receives exactly the packets that are written, and in the same order within each flow, for
// an arbitrary sequence of packets.
func FuzzMerge(f *testing.F) {
	f.Add([]byte{})
	for flow := range byte(16) {
		f.Add(bytes.Repeat([]byte{flow, 100, 0, 0}, 60))
		f.Add(bytes.Repeat([]byte{flow, 0, 0, flow + 1, 0, 0}, 60))
	}
	for odd := range byte(19) {
		every := []byte{}
		for flow := range byte(16) {
			every = append(every, flow, 60, flow, 0, 0, flow, 0, 0, flow, odd, 7, 9, flow, 0, 0, flow, 0, 0)
		}
		f.Add(every)
	}
	for seed := range int64(20) {
		b := make([]byte, 600)
		rand.New(rand.NewSource(seed)).Read(b)
		for i := range b {
			if b[i] > 60 {
				b[i] = 0
			}
		}
		f.Add(b)
	}
	d, k := dry(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		s := script{b: b}
		var pkts, others [][]byte
		var flows [16][][]byte
		for len(s.b) > 0 && len(pkts) < 300 {
			p, flow := s.next()
			pkts = append(pkts, p)
			if flow < 0 {
				others = append(others, bytes.Clone(p))
			} else {
				flows[flow] = append(flows[flow], bytes.Clone(p))
			}
		}
		k.written = nil
		if n, err := d.WritePackets(pkts); n != len(pkts) || err != nil {
			t.Fatalf("WritePackets wrote %d of %d packets, error %v; want all", n, len(pkts), err)
		}
		n := 0
	next:
		for _, w := range k.written {
			for i, p := range receive(t, w) {
				n++
				for flow := range flows {
					if ps := flows[flow]; len(ps) > 0 && same(ps[0], p) {
						flows[flow] = ps[1:]
						if i == 0 && getVirtio(w).gso == gsoNone {
							continue next
						}
						p = nil
						break
					}
				}
				if p == nil {
					continue
				}
				at := slices.IndexFunc(others, func(o []byte) bool { return bytes.Equal(o, p) })
				if at < 0 || getVirtio(w).gso != gsoNone {
					t.Fatalf("packet %d, of %d bytes, is not the next packet of any flow (header %+v):\n%x", n, len(p), getVirtio(w), p[:min(100, len(p))])
				}
				others = slices.Delete(others, at, at+1)
			}
		}
		if n != len(pkts) {
			t.Fatalf("the kernel received %d packets, want %d", n, len(pkts))
		}
	})
}
