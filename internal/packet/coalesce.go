package packet

import (
	"bytes"
	"encoding/binary"
)

const (
	MaxRuns      = 8     // flows that one Coalescer can merge at the same time
	maxMerged    = 65535 // the largest merged packet in bytes, headers included
	maxSegments  = 512   // the most TCP segments in a merged packet; a system call accepts 1,024 buffers
	maxDatagrams = 64    // the most UDP datagrams in a merged packet (UDP_GRO_CNT_MAX of Linux)
)

// A Sink gets the packets that leave a Coalescer.
type Sink interface {
	// Single gets a packet that was not merged, whose headers together are l4 bytes long.
	Single(p []byte, l4 int)
	// Merged gets a run of two or more packets. The run is valid until Merged returns.
	Merged(r *Run)
}

// A Coalescer joins consecutive segments of one flow, within one call of WritePackets, by the rules of Linux (tcp_gro_receive,
// udp_gro_receive_segment, inet_gro_receive). It refers to the added packets, without a copy, until Flush returns. It keeps the
// order within each flow, even between segments that it merges and segments that it does not merge.
//
// The zero value is ready. Only one goroutine at a time may use a Coalescer.
type Coalescer struct {
	runs [MaxRuns]Run
	n    int // the number of runs in use; the oldest is runs[0]
}

// A Run is the segments of one flow that are to become one packet.
type Run struct {
	Packets [][]byte
	L3, L4  int // the offsets in each packet at which the IP header and the transport header end
	UDP     bool
	Size    int // the payload length of each segment except the last
	Total   int // length of the merged packet

	head    []byte // the first packet
	next    uint32 // TCP: the sequence number of the segment that would follow
	push    bool   // TCP: whether the last segment had PSH
	checked bool   // whether the checksums of the first packet are known to be right
}

// Add takes the packet p, whose IP header is l3 bytes long and whose headers together are l4 bytes long. p must contain both
// headers completely, be as long as its IP header says, and not be a fragment. If checked is false, Add verifies the checksums
// before it merges p, and does not merge a packet with a wrong checksum.
func (c *Coalescer) Add(s Sink, p []byte, l3, l4 int, udp, checked bool) {
	i := c.find(p, l3, udp)
	if !plain(p, l3, l4, udp) {
		if i >= 0 {
			c.end(s, i)
		}
		s.Single(p, l4)
		return
	}
	if i >= 0 {
		if r := &c.runs[i]; r.fits(p, l4) && (checked || r.sumsRight(p)) {
			if r.add(p, l4) {
				c.end(s, i)
			}
			return
		}
		c.end(s, i)
	}
	c.begin(s, p, l3, l4, udp, checked)
}

// plain reports whether p may be merged at all. p must have data and no IP options. A TCP segment must have ACK, and no SYN, FIN,
// RST, URG, ECE or CWR. A UDP datagram must have a checksum, and nothing may follow it in the IP packet.
func plain(p []byte, l3, l4 int, udp bool) bool {
	if len(p) == l4 || (p[0]>>4 == 4 && l3 != IP4Header) {
		return false
	}
	l := p[l3:]
	if udp {
		return int(binary.BigEndian.Uint16(l[UDPLength:])) == len(l) && binary.BigEndian.Uint16(l[UDPChecksum:]) != 0
	}
	return l[TCPFlags]&^PSH == ACK
}

// find returns the index of the run of p's flow, or -1 if there is none. p may have IP options; the packets of a run have none.
func (c *Coalescer) find(p []byte, l3 int, udp bool) int {
	from, to := IP4Addresses, IP4Addresses+8
	if p[0]>>4 == 6 {
		from, to = IP6Addresses, IP6Addresses+32
	}
	for i := range c.runs[:c.n] {
		r := &c.runs[i]
		if r.UDP == udp && r.head[0]>>4 == p[0]>>4 && bytes.Equal(r.head[r.L3:r.L3+4], p[l3:l3+4]) && bytes.Equal(r.head[from:to], p[from:to]) {
			return i
		}
	}
	return -1
}

// begin starts a run with p. If p has PSH, which ends a run, begin passes p to s as a single packet instead.
func (c *Coalescer) begin(s Sink, p []byte, l3, l4 int, udp, checked bool) {
	if !udp && p[l3+TCPFlags]&PSH != 0 {
		s.Single(p, l4)
		return
	}
	if c.n == MaxRuns {
		c.end(s, 0)
	}
	r := &c.runs[c.n]
	c.n++
	*r = Run{
		head: p, L3: l3, L4: l4, UDP: udp, Size: len(p) - l4, Total: len(p), checked: checked,
		Packets: append(r.Packets[:0], p),
	}
	if !udp {
		r.next = binary.BigEndian.Uint32(p[l3+TCPSeq:]) + uint32(len(p)-l4)
	}
}

// fits reports whether p may be merged at the end of r. The caller has checked that plain(p) is true and that p belongs to the flow
// of r.
func (r *Run) fits(p []byte, l4 int) bool {
	if l4 != r.L4 || len(p)-l4 > r.Size || r.Total+len(p)-l4 > maxMerged {
		return false
	}
	if !r.UDP {
		a, b := r.head[r.L3:r.L4], p[r.L3:l4]
		if binary.BigEndian.Uint32(b[TCPSeq:]) != r.next ||
			!bytes.Equal(a[TCPAck:TCPFlags], b[TCPAck:TCPFlags]) ||
			!bytes.Equal(a[TCPWindow:TCPWindow+2], b[TCPWindow:TCPWindow+2]) ||
			!bytes.Equal(a[TCPUrgent:], b[TCPUrgent:]) {
			return false
		}
	}
	if r.head[0]>>4 == 6 {
		// These bytes are the traffic class, the flow label and the hop limit.
		return bytes.Equal(r.head[:4], p[:4]) && r.head[IP6HopLimit] == p[IP6HopLimit]
	}
	// These bytes are the type of service, the fragmentation flags and the time to live.
	return r.head[1] == p[1] && r.head[IP4Fragment] == p[IP4Fragment] && r.head[IP4TTL] == p[IP4TTL] && r.follows(p)
}

// follows reports whether the identification of the IPv4 packet p is one more than that of the run's last packet, as when a network
// card cuts a large segment. If p forbids fragmentation, follows accepts any identification: "the IPv4 ID field MUST NOT be used
// for purposes other than fragmentation and reassembly" (RFC 6864, section 4.1).
func (r *Run) follows(p []byte) bool {
	const dontFragment = 0x40
	return p[IP4Fragment]&dontFragment != 0 ||
		binary.BigEndian.Uint16(p[IP4ID:]) == binary.BigEndian.Uint16(r.head[IP4ID:])+uint16(len(r.Packets))
}

// sumsRight reports whether the checksums of p and of the first packet are right. After the merge, no code checks the transport
// checksums again.
func (r *Run) sumsRight(p []byte) bool {
	r.checked = r.checked || sumsRight(r.head, r.L3)
	return r.checked && sumsRight(p, r.L3)
}

func sumsRight(p []byte, l3 int) bool {
	return (p[0]>>4 == 6 || Sum(p[:l3], 0) == 0xffff) && TransportSum(p, l3) == 0xffff
}

// add merges p, and reports whether the run is complete. It is complete if p has PSH, if p has less payload than the segments
// before it, or if the run now has the largest number of segments.
func (r *Run) add(p []byte, l4 int) (complete bool) {
	n := len(p) - l4
	r.Packets = append(r.Packets, p)
	r.Total += n
	if r.UDP {
		return n < r.Size || len(r.Packets) == maxDatagrams
	}
	r.next += uint32(n)
	r.push = p[r.L3+TCPFlags]&PSH != 0
	return r.push || n < r.Size || len(r.Packets) == maxSegments
}

// Flush ends all runs.
func (c *Coalescer) Flush(s Sink) {
	for c.n > 0 {
		c.end(s, 0)
	}
}

// end passes run i to s, and removes the run.
func (c *Coalescer) end(s Sink, i int) {
	r := &c.runs[i]
	if len(r.Packets) == 1 {
		s.Single(r.head, r.L4)
	} else {
		s.Merged(r)
	}
	clear(r.Packets) // the packets belong to the caller of Add, so no reference may remain
	spare := r.Packets[:0]
	c.n--
	copy(c.runs[i:], c.runs[i+1:c.n+1])
	c.runs[c.n] = Run{Packets: spare}
}

// Headers writes the headers of the merged packet to h, and returns how long they are. The transport checksum is that of the
// first packet.
func (r *Run) Headers(h []byte) int {
	h = h[:copy(h, r.head[:r.L4])]
	setLength(h, r.Total)
	if h[0]>>4 == 4 {
		h[IP4Checksum], h[IP4Checksum+1] = 0, 0
		binary.BigEndian.PutUint16(h[IP4Checksum:], ^Sum(h[:r.L3], 0))
	}
	switch {
	case r.UDP:
		binary.BigEndian.PutUint16(h[r.L3+UDPLength:], uint16(r.Total-r.L3))
	case r.push:
		h[r.L3+TCPFlags] |= PSH
	}
	return len(h)
}
