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

// gVisor's reassembly counts no overhead, and when it is full, it drops the oldest packets, whoever sent them. So one peer that
// sends first fragments keeps the fragments of all other peers from becoming whole packets. The link reassembles packets itself,
// before it checks what they carry:
//
//	fragment ▶ reassemble ▶ a piece of a partial ▶ complete ▶ receive, like any other packet
//
// The memory of partials and pieces counts as fragments in heldMemory. A peer that exceeds its share loses its own oldest
// partials. If a fragment overlaps another one, the link drops their packet, as RFC 5722 says.

const (
	// reassemblyTime is how long a packet may wait for its fragments, as on Linux.
	reassemblyTime = 30 * time.Second
	// partialCost and pieceCost are the memory, in bytes, of a partial and of each piece besides its data.
	partialCost = 512
	pieceCost   = 64
)

// A reassembler holds packets that have not arrived as a whole.
type reassembler struct {
	patience time.Duration // reassemblyTime, except in a test

	mu       sync.Mutex // guards the rest; the budget's locks are taken with it held
	partials map[fragmentKey]*partial
	oldest   map[party][]*partial // the partials of each party, oldest first
	timer    *time.Timer          // runs expire while there are partials
	armed    bool
	closed   bool
}

// A fragmentKey tells which fragments belong together. For IPv6, proto is 0, because RFC 8200, section 4.5, does not compare
// protocols.
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
	l3     int     // the length of these headers, in bytes
	pieces []piece // in order, without overlaps
	got    int     // bytes in pieces
	end    int     // bytes in the whole packet, without headers; 0 until the last fragment has arrived
	cost   int
}

type piece struct {
	at   int
	data []byte
}

// A part is a fragment that arrived, with what its headers say.
type part struct {
	key  fragmentKey
	p    []byte
	head int // bytes of headers that the whole packet repeats
	data []byte
	at   int
	more bool
}

// part4 reads the IPv4 fragment p, whose header has l3 bytes.
func part4(p []byte, l3 int) (f part, ok bool) {
	flags := binary.BigEndian.Uint16(p[ip4Fragment:])
	src, dst := addressesOf(p)
	f = part{
		key: fragmentKey{src, dst, uint32(binary.BigEndian.Uint16(p[ip4ID:])), p[ip4Protocol]}, p: p,
		head: l3, data: p[l3:], at: int(flags&0x1fff) * 8, more: flags&(uint16(header.IPv4FlagMoreFragments)<<13) != 0,
	}
	return f, f.ok(65535 - l3)
}

// part6 reads the IPv6 fragment p, whose fragment header begins at l4. It removes that header.
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

// ok reports whether f is as the standards require. most is how many bytes the data of a packet may have.
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

// reassemble takes the fragment f, and copies what it keeps of it. It returns the whole packet if f was the last missing
// fragment.
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

// place returns where f belongs in s.pieces, or -1 if it is there already. fits is false if f contradicts another fragment.
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

// whole makes a packet of the headers of first, which are l3 bytes, with data behind them.
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
	at := ip6Next // of the field that says that a fragment header follows
	for h := header.IPv6MinimumSize; h < l3; h += 8 + 8*int(p[h+1]) {
		at = h
	}
	p[at] = first[l3]
	return p
}

// makeRoom takes n bytes for s, and forgets the oldest other packets of the same party if it must. It counts the packets that it
// forgets, and the new fragment if it finds no room. r.mu is held.
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

// add adds s. r.mu is held.
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

// forget drops s. r.mu is held.
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

// expire drops the packets that have waited too long, and tells their senders. It runs again when the next one is due.
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

// complainAbout tells the sender of p, a first fragment, that the rest has not arrived in time.
func (l *link) complainAbout(p []byte) {
	src, dst := addressesOf(p)
	if !l.owner.owns(dst) || !l.mayComplain(src) {
		return
	}
	if b := packet.ReassemblyTimeout.About(p); b != nil {
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
		defer pkt.DecRef()
		_ = l.WritePacket(pkt) // which counts it if it is dropped
	}
}

// closeFragments drops everything and ends the timer.
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
