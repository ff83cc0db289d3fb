package netstack

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

const (
	maxRuns   = 8     // flows that one coalescer keeps apart
	maxMerged = 65535 // bytes of a merged packet, headers included
)

// A coalescer joins consecutive TCP segments of one connection to one large packet, within one call of WritePackets and
// by the rules of Linux (tcp_gro_receive). The packets are borrowed until flush. The order within each connection
// is kept, also between segments that merge and those that do not.
type coalescer struct {
	link *link
	runs [maxRuns]run
	n    int // runs in use, oldest first
}

// A run is the segments of one connection so far, as one packet to be.
type run struct {
	packets [][]byte
	head    []byte // the first of them
	l3      int    // where the IP header ends, in each
	l4      int    // and where the TCP header ends
	size    int    // payload of each segment but the last
	total   int    // length of the merged packet
	next    uint32 // sequence number of what would come next
	push    bool   // the last segment had PSH
}

// segment takes the TCP packet p, whose IP header, checked, is l3 bytes long.
func (c *coalescer) segment(p []byte, l3 int) {
	l := c.link
	_, l4, ok := tcpHeaders(p)
	if !ok {
		l.drops.malformed.Add(1)
		return
	}
	tcp := p[l3:]
	if sum(tcp, checksum.Combine(pseudoSum(p[:l3]), uint16(len(tcp)))) != 0xffff {
		l.drops.checksum.Add(1)
		return
	}
	i := c.find(p, l3)
	// Only plain data merges: no SYN, FIN, RST, URG, ECE or CWR, and no IP options.
	if tcp[tcpFlags]&^tcpPSH != tcpACK || len(p) == l4 || (p[0]>>4 == 4 && l3 != header.IPv4MinimumSize) {
		if i >= 0 {
			c.end(i)
		}
		l.deliver(networkOf(p), p, l4, true)
		return
	}
	if i >= 0 {
		if r := &c.runs[i]; r.fits(p, l4) {
			if r.add(p, l4) {
				c.end(i)
			}
			return
		}
		c.end(i)
	}
	c.begin(p, l3, l4)
}

// find is the run of p's connection, or -1. p's IP header may have options, a run's has none.
func (c *coalescer) find(p []byte, l3 int) int {
	from, to := ip4Addresses, ip4Addresses+8
	if p[0]>>4 == 6 {
		from, to = ip6Addresses, ip6Addresses+32
	}
	for i := range c.runs[:c.n] {
		r := &c.runs[i]
		if r.head[0]>>4 == p[0]>>4 && bytes.Equal(r.head[r.l3:r.l3+4], p[l3:l3+4]) && bytes.Equal(r.head[from:to], p[from:to]) {
			return i
		}
	}
	return -1
}

// begin makes p a run, unless it already ends one.
func (c *coalescer) begin(p []byte, l3, l4 int) {
	if p[l3+tcpFlags]&tcpPSH != 0 {
		c.link.deliver(networkOf(p), p, l4, true)
		return
	}
	if c.n == maxRuns {
		c.end(0)
	}
	r := &c.runs[c.n]
	c.n++
	*r = run{
		head: p, l3: l3, l4: l4, size: len(p) - l4, total: len(p),
		next:    binary.BigEndian.Uint32(p[l3+tcpSeq:]) + uint32(len(p)-l4),
		packets: append(r.packets[:0], p),
	}
}

// fits reports whether p, of the same connection and with data, may be merged at the end of r.
func (r *run) fits(p []byte, l4 int) bool {
	if l4 != r.l4 || len(p)-l4 > r.size || r.total+len(p)-l4 > maxMerged {
		return false
	}
	a, b := r.head[r.l3:r.l4], p[r.l3:l4]
	if binary.BigEndian.Uint32(b[tcpSeq:]) != r.next ||
		!bytes.Equal(a[tcpAck:tcpAck+4], b[tcpAck:tcpAck+4]) ||
		!bytes.Equal(a[tcpWindow:tcpWindow+2], b[tcpWindow:tcpWindow+2]) ||
		!bytes.Equal(a[header.TCPMinimumSize:], b[header.TCPMinimumSize:]) {
		return false
	}
	if r.l3 == header.IPv4MinimumSize {
		// Type of service, don't fragment, time to live; the identification is free to do as it likes.
		return r.head[1] == p[1] && r.head[ip4Fragment] == p[ip4Fragment] && r.head[8] == p[8]
	}
	// Traffic class and flow label, hop limit.
	return bytes.Equal(r.head[:4], p[:4]) && r.head[7] == p[7]
}

// add merges p and reports whether the run is complete: PSH or a shorter segment ends it.
func (r *run) add(p []byte, l4 int) (complete bool) {
	n := len(p) - l4
	r.packets = append(r.packets, p)
	r.total += n
	r.next += uint32(n)
	r.push = p[r.l3+tcpFlags]&tcpPSH != 0
	return r.push || n < r.size
}

// flush ends all runs.
func (c *coalescer) flush() {
	for c.n > 0 {
		c.end(0)
	}
}

// end delivers run i and forgets it.
func (c *coalescer) end(i int) {
	r := &c.runs[i]
	if len(r.packets) == 1 || c.link.forwards(networkOf(r.head)) {
		for _, p := range r.packets {
			c.link.deliver(networkOf(p), p, r.l4, true)
		}
	} else {
		c.link.hand(networkOf(r.head), r.merge(), true)
	}
	clear(r.packets) // borrowed
	spare := r.packets[:0]
	c.n--
	copy(c.runs[i:], c.runs[i+1:c.n+1])
	c.runs[c.n] = run{packets: spare}
}

// merge copies the run to one packet.
func (r *run) merge() (b buffer.Buffer) {
	var headers [maxHeaders]byte
	h := headers[:copy(headers[:], r.head[:r.l4])]
	r.mend(h)
	appendHeaders(&b, h)
	left := r.total - r.l4
	v := buffer.NewView(min(left, viewSize))
	for _, p := range r.packets {
		for p = p[r.l4:]; len(p) > 0; {
			n := min(len(p), left, viewSize-v.Size())
			_, _ = v.Write(p[:n])
			p, left = p[n:], left-n
			if v.Size() == viewSize && left > 0 {
				_ = b.Append(v)
				v = buffer.NewView(min(left, viewSize))
			}
		}
	}
	_ = b.Append(v)
	return b
}

// mend makes h, the first packet's headers, those of the whole. The TCP checksum stays what it was: it has been checked,
// segment by segment, and nobody looks at it again.
func (r *run) mend(h []byte) {
	if r.push {
		h[r.l3+tcpFlags] |= tcpPSH
	}
	if h[0]>>4 == 6 {
		binary.BigEndian.PutUint16(h[ip6Length:], uint16(r.total-header.IPv6MinimumSize))
		return
	}
	binary.BigEndian.PutUint16(h[ip4Length:], uint16(r.total))
	h[ip4Checksum], h[ip4Checksum+1] = 0, 0
	binary.BigEndian.PutUint16(h[ip4Checksum:], ^sum(h[:r.l3], 0))
}
