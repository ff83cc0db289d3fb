package netstack

import (
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// A connection stops for good if its first lost segment does not fit into the window that the peer announces last. gVisor sends a
// segment again only if the whole of it fits, or a full one. If neither does, it sends nothing and sets no timer (snd.go,
// maybeSendSegment): it waits for an acknowledgement, and the peer waits for the segment.
//
// A window that is smaller than what was sent has the two reasons that windows names: an edge that moves back because it is
// rounded, and an old acknowledgement. So a small window is raised to what was sent, at most to a full segment. This is safe for
// TCP: RFC 9293, section 3.8.6, lets a sender send again what it has sent, also beyond the right edge of a window that shrank. A
// window of 0 stays as it is, because gVisor probes it.

const (
	smallWindow = 128 // as announced, in units of the peer's: far more than a full segment for each usual unit
	mostSent    = 1 << 30

	sentSets = 512
	sentWays = 4

	// An entry of sentNumbers, from the low bits on: a number of 32 bits, the scale, a flag, and a tag of the connection.
	sentScale = 32
	sentFresh = 36
	sentTag   = 37
	noScale   = 15 // the largest scale is 14 (RFC 7323, section 2.3)
)

// sentNumbers holds, for up to 2,048 connections, the number after the last byte that this end has sent, and the scale of the
// peer's window. If a set is full, a new connection replaces another one, which is then served as gVisor serves it. It takes no
// lock: an entry is one word. The zero value is ready, and allocates 16 KiB for the first connection.
type sentNumbers struct {
	table atomic.Pointer[[sentSets][sentWays]atomic.Uint64]
}

// entry returns the entry of the connection f and its tag. Without one, it returns the entry to be replaced, or nil before the
// first connection.
func (s *sentNumbers) entry(f *flow) (e *atomic.Uint64, tag uint64) {
	t := s.table.Load()
	if t == nil {
		return nil, 0
	}
	h := maphash.Bytes(flowSeed, f[:])
	set, tag := &t[h%sentSets], h>>sentTag|1
	e = &set[h/sentSets%sentWays]
	for i := range set {
		switch v := set[i].Load(); {
		case v>>sentTag == tag:
			return &set[i], tag
		case v == 0:
			e = &set[i]
		}
	}
	return e, tag
}

// begin notes that a SYN of the peer announced the scale.
func (s *sentNumbers) begin(f flow, scale int) {
	if s.table.Load() == nil {
		s.table.CompareAndSwap(nil, new([sentSets][sentWays]atomic.Uint64))
	}
	if scale < 0 {
		scale = 0
	}
	e, tag := s.entry(&f)
	e.Store(tag<<sentTag | 1<<sentFresh | uint64(scale)<<sentScale)
}

// note notes that this end has sent the bytes before the number n. A SYN was noted before, unless another connection has replaced
// this one.
func (s *sentNumbers) note(f flow, n uint32) {
	e, tag := s.entry(&f)
	if e == nil {
		return
	}
	for {
		old := e.Load()
		if old>>sentTag != tag || old>>sentFresh&1 == 0 && int32(n-uint32(old)) <= 0 {
			return
		}
		if e.CompareAndSwap(old, tag<<sentTag|old>>sentScale&noScale<<sentScale|uint64(n)) {
			return
		}
	}
}

// raise raises the window of an acknowledgement of the connection f to what this end has sent, at most to full bytes.
func (s *sentNumbers) raise(f flow, tcp []byte, full int) {
	e, tag := s.entry(&f)
	if e == nil {
		return
	}
	v := e.Load()
	if v>>sentTag != tag || v>>sentFresh&1 == 1 {
		return
	}
	sent := uint32(v) - binary.BigEndian.Uint32(tcp[tcpAck:])
	if sent == 0 || sent > mostSent {
		return
	}
	scale := v >> sentScale & noScale
	units := (min(int(sent), full) + 1<<scale - 1) >> scale
	if units > int(binary.BigEndian.Uint16(tcp[tcpWindow:])) {
		binary.BigEndian.PutUint16(tcp[tcpWindow:], uint16(min(units, 65535)))
	}
}

// scaleOf returns the scale in the options of a SYN, or -1.
func scaleOf(tcp []byte) int { return header.ParseSynOptions(tcp[header.TCPMinimumSize:], false).WS }
