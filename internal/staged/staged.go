// Package staged keeps copies of packets that wait for a session: a queue for each party, and a pool that knows which party's
// copies take the most memory.
package staged

import (
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/ordered"
)

// Max is the number of packets in a Queue.
const Max = 128

// A packet is a copy of a packet. An empty one is a keepalive.
type packet struct {
	next *packet
	b    []byte
}

// cost is the memory that p takes, in bytes.
func (p *packet) cost() int32 { return int32(cap(p.b)) + Overhead }

// Copies are made in pooled buffers of two sizes. Larger packets are allocated. Each takes Overhead bytes more.
const (
	Small, Large = 256, 2048
	Overhead     = 32
)

var (
	smallPackets = sync.Pool{New: func() any { return &packet{b: make([]byte, 0, Small)} }}
	largePackets = sync.Pool{New: func() any { return &packet{b: make([]byte, 0, Large)} }}
)

// poolOf returns where packets with room for n bytes are kept; nil means that they are allocated.
func poolOf(n int) *sync.Pool {
	switch {
	case n == 0 || n > Large:
		return nil
	case n <= Small:
		return &smallPackets
	}
	return &largePackets
}

func newPacket(b []byte) (p *packet) {
	if pool := poolOf(len(b)); pool != nil {
		p = pool.Get().(*packet)
	} else {
		p = &packet{b: make([]byte, 0, len(b))}
	}
	p.b = append(p.b[:0], b...)
	return p
}

// A Queue holds copies of packets, oldest first. The zero value is empty. A Queue may be moved, but not used in two places.
type Queue struct {
	head, tail *packet
	N          int32 // how many
	Bytes      int32 // their memory: at most that of Max packets of 64 KiB
}

// Push appends a copy of b. To make room, it drops the oldest packets while there are Max, or while the packets would take more
// than limit bytes. It returns how many it dropped.
func (q *Queue) Push(b []byte, limit int64) (dropped int) {
	p := newPacket(b)
	for q.N >= Max || q.N > 0 && int64(q.Bytes+p.cost()) > limit {
		q.Pop()
		dropped++
	}
	if q.tail == nil {
		q.head = p
	} else {
		q.tail.next = p
	}
	q.tail = p
	q.N++
	q.Bytes += p.cost()
	return dropped
}

// Oldest returns the oldest packet, in place. There must be one.
func (q *Queue) Oldest() []byte { return q.head.b }

// Pop drops the oldest packet. There must be one.
func (q *Queue) Pop() {
	p := q.head
	if q.head = p.next; q.head == nil {
		q.tail = nil
	}
	q.N--
	q.Bytes -= p.cost()
	p.next = nil
	if pool := poolOf(cap(p.b)); pool != nil {
		pool.Put(p)
	}
}

// Clear drops all packets, and returns how many.
func (q *Queue) Clear() (dropped int) {
	for ; q.N > 0; dropped++ {
		q.Pop()
	}
	return dropped
}

// A Pool knows which parties have packets, and how many bytes all of them take. Each party has an Account, which says what the pool
// counts for it. The zero value is empty.
type Pool[P any] struct {
	mu      sync.Mutex // guards all below, and the accounts
	bytes   atomic.Int64
	holders ordered.Heap[holder[P]]
}

// An Account is what a Pool counts for one party. The zero value counts nothing. Whoever changes it also holds the lock of the
// party.
type Account struct {
	bytes int32
	place int32 // in the pool, from 1
}

// A holder is a party with packets. The one with the most bytes comes first.
type holder[P any] struct {
	*Account
	party P
}

func (h holder[P]) Before(o holder[P]) bool { return h.bytes > o.bytes }
func (h holder[P]) Place() *int32           { return &h.place }

// Count sets the account of a party to the number of bytes in its queue.
func (s *Pool[P]) Count(party P, a *Account, bytes int32) {
	if bytes != a.bytes {
		s.count(holder[P]{a, party}, bytes)
	}
}

func (s *Pool[P]) count(h holder[P], bytes int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes.Add(int64(bytes - h.bytes))
	if h.bytes = bytes; bytes > 0 {
		s.holders.Put(h)
	} else {
		s.holders.Remove(h)
	}
}

// Bytes returns how many bytes all queues take.
func (s *Pool[P]) Bytes() int64 { return s.bytes.Load() }

// Largest returns the party that takes the most memory, or false if all parties together take at most limit bytes.
func (s *Pool[P]) Largest(limit int64) (party P, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes.Load() <= limit {
		return party, false
	}
	return s.holders[0].party, true
}
