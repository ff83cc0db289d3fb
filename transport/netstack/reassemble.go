package netstack

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// gVisor's reassembly does not count its overhead, and when it is full, it drops the oldest packets of any peer. So one peer that
// sends only first fragments could prevent the reassembly of all other peers' packets. Therefore the link reassembles packets
// itself, before it checks their payload:
//
//	fragment ▶ reassemble ▶ a piece of a partial ▶ complete ▶ receive, like any other packet
//
// The memory of partials and pieces counts as fragments in heldMemory. If a peer exceeds its limit, the link drops the oldest
// partials of the same peer. If a fragment overlaps another one, the link drops the packet to which both belong, as RFC 5722
// says.

const (
	// reassemblyTime is how long the link waits for all fragments of a packet. Linux waits as long.
	reassemblyTime = 30 * time.Second
	// partialCost is how many bytes of memory a partial takes without its pieces, and pieceCost how many each piece takes without
	// its data.
	partialCost = 512
	pieceCost   = 64
)

// A reassembler holds the packets of which fragments are still missing.
type reassembler struct {
	patience time.Duration // reassemblyTime, except in a test

	mu       sync.Mutex // guards the fields below; a goroutine that holds it may lock the budget
	partials map[fragmentKey]*partial
	oldest   map[party][]*partial // the partials of each party, oldest first
	timer    *time.Timer          // calls expire when the time of the oldest partial ends
	armed    bool
	closed   bool
}

// A fragmentKey identifies the packet to which a fragment belongs. For IPv6, proto is 0, because RFC 8200, section 4.5, does not
// compare protocols.
type fragmentKey struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

// A partial is a packet of which some fragments have arrived.
type partial struct {
	key    fragmentKey
	from   party
	born   time.Time
	first  []byte  // the first fragment, with its headers; nil until it has arrived
	l3     int     // how many bytes of headers first has
	pieces []piece // in order, without overlaps
	got    int     // how many bytes of data pieces contain
	end    int     // bytes of data in the whole packet; 0 until the last fragment has arrived
	cost   int
}

type piece struct {
	at   int
	data []byte
}

// A part is a received fragment with its parsed headers.
type part struct {
	key  fragmentKey
	p    []byte
	head int // bytes of headers in front of the fragment's data that also belong to the whole packet
	data []byte
	at   int
	more bool
}

// part4 parses the IPv4 fragment p, whose header has l3 bytes.
func part4(p []byte, l3 int) (f part, ok bool) {
	flags := binary.BigEndian.Uint16(p[ip4Fragment:])
	src, dst := addressesOf(p)
	f = part{
		key: fragmentKey{src, dst, uint32(binary.BigEndian.Uint16(p[ip4ID:])), p[ip4Protocol]}, p: p,
		head: l3, data: p[l3:], at: int(flags&0x1fff) * 8, more: flags&(uint16(header.IPv4FlagMoreFragments)<<13) != 0,
	}
	return f, f.ok(65535 - l3)
}

// part6 parses the IPv6 fragment p, whose fragment header begins at l4. The part does not include the fragment header.
func part6(p []byte, l4 int) (f part, ok bool) {
	if len(p) < l4+header.IPv6FragmentHeaderSize {
		return f, false
	}
	flags := binary.BigEndian.Uint16(p[l4+2:])
	src, dst := addressesOf(p)
	f = part{
		key: fragmentKey{src: src, dst: dst, id: binary.BigEndian.Uint32(p[l4+4:])}, p: p,
		head: l4, data: p[l4+header.IPv6FragmentHeaderSize:], at: int(flags &^ 7), more: flags&1 != 0,
	}
	return f, f.ok(65535 - (l4 - header.IPv6MinimumSize))
}

// ok reports whether the size and the offset of f are as the standards require. most is how many bytes of data the whole packet
// may have.
func (f *part) ok(most int) bool {
	return len(f.data) > 0 && f.at+len(f.data) <= most && (!f.more || len(f.data)%8 == 0)
}

// fragment6 returns where the fragment header of the IPv6 packet p begins, if it has one.
func fragment6(p []byte) (at int, ok bool) {
	at = header.IPv6MinimumSize
	for next := p[ip6Next]; ; {
		switch next {
		case ip6Fragments:
			return at, true
		case ip6HopByHop, ip6Routing, ip6Destination:
		default:
			return 0, false
		}
		if len(p) < at+8 {
			return 0, false
		}
		next, at = p[at], at+8+8*int(p[at+1])
		if at > len(p) {
			return 0, false
		}
	}
}

// reassemble stores a copy of the fragment f. It returns the whole packet if f was the last missing fragment, and nil otherwise.
func (l *link) reassemble(f part) (whole []byte) {
	if f.at == 0 && !f.more {
		return f.whole(f.p, f.head, [][]byte{f.data})
	}
	r := &l.fragments
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	s := r.partials[f.key]
	if s == nil {
		s = &partial{key: f.key, from: l.partyOf(f.key.src), born: time.Now(), cost: partialCost}
		if !l.makeRoom(s, s.cost) {
			return nil
		}
		r.add(l, s)
	}
	i, fits := s.place(&f)
	if i < 0 && fits {
		return nil // f has arrived before
	}
	cost := pieceCost + allocated(len(f.data))
	if f.at == 0 {
		cost += allocated(len(f.p))
	}
	if !fits {
		l.drops.malformed.Add(1)
		l.forget(s)
		return nil
	}
	if !l.makeRoom(s, cost) {
		return nil
	}
	s.cost += cost
	s.pieces = slices.Insert(s.pieces, i, piece{f.at, bytes.Clone(f.data)})
	if s.got += len(f.data); !f.more {
		s.end = f.at + len(f.data)
	}
	if f.at == 0 {
		s.first, s.l3 = bytes.Clone(f.p), f.head
	}
	if s.end == 0 || s.got < s.end {
		return nil
	}
	data := make([][]byte, len(s.pieces))
	for i, p := range s.pieces {
		data[i] = p.data
	}
	whole = f.whole(s.first, s.l3, data)
	l.forget(s)
	return whole
}

// place returns the index in s.pieces at which f belongs, or -1 if f has arrived before. fits is false if f contradicts another
// fragment.
func (s *partial) place(f *part) (i int, fits bool) {
	end := f.at + len(f.data)
	i, same := slices.BinarySearchFunc(s.pieces, f.at, func(p piece, at int) int { return p.at - at })
	if same {
		known := s.end == end
		return -1, len(s.pieces[i].data) == len(f.data) && f.more != known
	}
	fits = (i == 0 || s.pieces[i-1].at+len(s.pieces[i-1].data) <= f.at) && (i == len(s.pieces) || end <= s.pieces[i].at)
	if s.end > 0 {
		return i, fits && f.more && end < s.end
	}
	return i, fits && (f.more || i == len(s.pieces))
}

// whole returns a packet that consists of the first l3 bytes of first, which are its headers, and data.
func (f *part) whole(first []byte, l3 int, data [][]byte) []byte {
	n := l3
	for _, d := range data {
		n += len(d)
	}
	p := append(make([]byte, 0, n), first[:l3]...)
	for _, d := range data {
		p = append(p, d...)
	}
	if p[0]>>4 == 4 {
		h := header.IPv4(p)
		h.SetTotalLength(uint16(n))
		h.SetFlagsFragmentOffset(0, 0)
		h.SetChecksum(0)
		h.SetChecksum(^packet.Sum(p[:l3], 0))
		return p
	}
	binary.BigEndian.PutUint16(p[ip6Length:], uint16(n-header.IPv6MinimumSize))
	at := ip6Next // the offset of the field that says that a fragment header follows
	for h := header.IPv6MinimumSize; h < l3; h += 8 + 8*int(p[h+1]) {
		at = h
	}
	p[at] = first[l3]
	return p
}

// makeRoom takes n bytes for s from the budget. If the budget refuses, makeRoom drops the oldest other packets of the same party
// until the budget grants the bytes. It counts the packets that it drops. It returns false, and counts the new fragment as
// dropped, if the budget still refuses. r.mu is held.
func (l *link) makeRoom(s *partial, n int) bool {
	r, b := &l.fragments, l.owner.budget
	for !b.take(&b.held.fragments, holder{party: s.from}, n) {
		l.drops.fragments.Add(1)
		old := r.oldest[s.from]
		if len(old) == 0 || old[0] == s {
			return false
		}
		l.forget(old[0])
	}
	return true
}

// add adds s to r, and starts the timer if it is not running. r.mu is held.
func (r *reassembler) add(l *link, s *partial) {
	if r.partials == nil {
		r.partials, r.oldest = make(map[fragmentKey]*partial), make(map[party][]*partial)
	}
	r.partials[s.key] = s
	r.oldest[s.from] = append(r.oldest[s.from], s)
	if !r.armed {
		r.armed = true
		l.running.Add(1)
		if r.timer == nil {
			r.timer = time.AfterFunc(r.patience, l.expire)
		} else {
			r.timer.Reset(r.patience)
		}
	}
}

// forget drops s and returns its memory to the budget. r.mu is held.
func (l *link) forget(s *partial) {
	r, b := &l.fragments, l.owner.budget
	b.give(&b.held.fragments, holder{party: s.from}, s.cost)
	delete(r.partials, s.key)
	of := r.oldest[s.from]
	i := slices.Index(of, s)
	if of = slices.Delete(of, i, i+1); len(of) == 0 {
		delete(r.oldest, s.from)
		return
	}
	r.oldest[s.from] = of
}

// expire drops the packets that have been incomplete for too long. If the first fragment of such a packet has arrived, expire sends
// an ICMP error to the packet's sender. It sets the timer to run again when the time of the next incomplete packet ends.
func (l *link) expire() {
	defer l.running.Done()
	r := &l.fragments
	r.mu.Lock()
	r.armed = false
	var firsts [][]byte
	next, now := time.Time{}, time.Now()
	for _, s := range r.partials {
		switch due := s.born.Add(r.patience); {
		case !due.After(now):
			if s.first != nil {
				firsts = append(firsts, s.first)
			}
			l.drops.fragments.Add(1)
			l.forget(s)
		case next.IsZero() || due.Before(next):
			next = due
		}
	}
	if !next.IsZero() && !r.closed {
		r.armed = true
		l.running.Add(1)
		r.timer.Reset(next.Sub(now))
	}
	r.mu.Unlock()
	for _, p := range firsts {
		l.complainAbout(p)
	}
}

// complainAbout sends the ICMP error "reassembly time exceeded" to the sender of p, a first fragment, if p is for this Net and
// mayComplain allows it.
func (l *link) complainAbout(p []byte) {
	src, dst := addressesOf(p)
	if !l.owner.owns(dst) || !l.mayComplain(src) {
		return
	}
	if b := packet.ReassemblyTimeout.About(p); b != nil {
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
		defer pkt.DecRef()
		_ = l.WritePacket(pkt) // WritePacket counts the packet if it drops it
	}
}

// closeFragments drops all packets and ends the timer.
func (l *link) closeFragments() {
	r := &l.fragments
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.armed && r.timer.Stop() {
		r.armed = false
		l.running.Done()
	}
	for _, s := range r.partials {
		l.forget(s)
	}
}
