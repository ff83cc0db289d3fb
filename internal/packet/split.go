package packet

import "encoding/binary"

// A Template writes the headers of the segments into which one large packet is cut, each in front of its payload. The caller copies
// the payload of a segment, and sums it right after that, while it is in the first-level cache. A single loop that copies and sums
// was measured to take as long as one loop that copies and one that sums: 54 ns for 1,368 bytes.
//
// The zero value is empty. A Template allocates nothing and does not keep the memory that it is given.
type Template struct {
	headers [MaxHeaders + maxExtensions]byte
	l3, l4  int
	udp     bool
	flags   uint8
	seq     uint32
	id      uint16
	ip      uint16 // sum of the fields that all IP headers share
	fixed   uint16 // sum of the fields that all transport headers and pseudo-headers share
}

// maxExtensions is the room for the extension headers of an IPv6 packet, in bytes.
const maxExtensions = 136

// Headers returns the length of the headers of each segment.
func (t *Template) Headers() int { return t.l4 }

// Set prepares t to cut the packet that has the given headers. The IP header, which may have options or extensions, is l3 bytes
// long; a TCP header follows it, or a UDP header if udp is set. pseudo is the sum of the pseudo-header without the length. Set
// reports whether the headers are whole and not too long.
func (t *Template) Set(headers []byte, l3 int, udp bool, pseudo uint16) bool {
	least := TCPHeader
	if udp {
		least = UDPHeader
	}
	if len(headers) > len(t.headers) || len(headers) < l3+least {
		return false
	}
	t.l3, t.l4, t.udp = l3, len(headers), udp
	h := t.headers[:t.l4]
	copy(h, headers)
	if h[0]>>4 == 4 {
		t.id = binary.BigEndian.Uint16(h[IP4ID:])
		clear(h[IP4Length : IP4ID+2])
		clear(h[IP4Checksum : IP4Checksum+2])
		t.ip = Sum(h[:l3], 0)
	}
	l := h[l3:]
	if udp {
		clear(l[UDPLength : UDPChecksum+2])
	} else {
		t.seq, t.flags = binary.BigEndian.Uint32(l[TCPSeq:]), l[TCPFlags]
		clear(l[TCPSeq : TCPSeq+4])
		clear(l[TCPChecksum : TCPChecksum+2])
		l[TCPFlags] = 0
	}
	t.fixed = Sum(l, pseudo)
	return true
}

// Put writes the headers of segment i to the front of p, whose payload is already behind them. The segment's payload begins at
// offset "at" in the payload of the whole packet, and the parameter payload is the sum of that payload.
func (t *Template) Put(p []byte, i, at int, last bool, payload uint16) {
	copy(p, t.headers[:t.l4])
	setLength(p, len(p))
	if p[0]>>4 == 4 {
		id := t.id + uint16(i)
		binary.BigEndian.PutUint16(p[IP4ID:], id)
		binary.BigEndian.PutUint16(p[IP4Checksum:], ^Add(Add(t.ip, uint16(len(p))), id))
	}
	l := p[t.l3:]
	sum := Add(t.fixed, payload)
	if t.udp {
		n := uint16(len(l))
		binary.BigEndian.PutUint16(l[UDPLength:], n)
		sum = ^Add(sum, Add(n, n)) // the length is in the UDP header and in the pseudo-header
		if sum == 0 {
			sum = 0xffff // 0 would mean that the datagram has no checksum
		}
		binary.BigEndian.PutUint16(l[UDPChecksum:], sum)
		return
	}
	flags := t.flags
	if !last {
		flags &^= FIN | PSH
	}
	if i > 0 {
		flags &^= CWR
	}
	seq := t.seq + uint32(at)
	binary.BigEndian.PutUint32(l[TCPSeq:], seq)
	l[TCPFlags] = flags
	sum = Add(Add(sum, uint16(seq>>16)), Add(uint16(seq), uint16(flags)))
	binary.BigEndian.PutUint16(l[TCPChecksum:], ^Add(sum, uint16(len(l))))
}
