// Package staged keeps copies of packets that wait for a session. Each party, such as a peer, has a [Queue]. A [Pool] knows which
// party's copies take the most memory.
package staged

import (
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard/internal/ordered"
)

// Max is the largest number of packets in a Queue.
const Max = 128

// A packet is a copy of an IP packet. An empty packet is a keepalive.
type packet struct {
	next *packet
	b    []byte
}

// cost is the memory that p takes, in bytes.
func (p *packet) cost() int32 { return int32(cap(p.b)) + Overhead }

// Small and Large are the sizes of pooled buffers for copies, in bytes. A copy of a larger packet is allocated. Each copy takes
// Overhead bytes more.
const (
	Small, Large = 256, 2048
	Overhead     = 32
)

var (
	smallPackets = sync.Pool{New: func() any { return &packet{b: make([]byte, 0, Small)} }}
	largePackets = sync.Pool{New: func() any { return &packet{b: make([]byte, 0, Large)} }}
)

// poolOf returns the pool of packets with room for n bytes, or nil if packets of this size are not pooled.
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

// A Queue holds copies of packets, oldest first. The zero value is empty. A Queue may be copied, but then only one of the original
// and the copy may be used.
type Queue struct {
	head, tail *packet
	N          int32 // the number of packets
	Bytes      int32 // the memory that the packets take, in bytes; at most that of Max packets of 64 KiB
}

// Push appends a copy of b. First, it drops the oldest packets until the queue has fewer than Max, and until the remaining packets
// and the copy together take at most limit bytes or the queue is empty. It returns how many it dropped.
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

// Oldest returns the oldest packet, without a copy. The queue must not be empty.
func (q *Queue) Oldest() []byte { return q.head.b }

// Pop drops the oldest packet. The queue must not be empty.
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

// Clear drops all packets, and returns how many it dropped.
func (q *Queue) Clear() (dropped int) {
	for ; q.N > 0; dropped++ {
		q.Pop()
	}
	return dropped
}

// A Pool knows which parties have packets, and how many bytes all these packets take. Each party has an Account, which holds the
// bytes that the pool counts for the party. The zero value is empty.
type Pool[P any] struct {
	mu      sync.Mutex // guards all below, and the accounts
	bytes   atomic.Int64
	holders ordered.Heap[holder[P]]
}

// An Account holds the bytes that a Pool counts for one party. The zero value holds none. A goroutine that changes an Account holds
// the lock of the party as well as that of the Pool.
type Account struct {
	bytes int32
	place int32 // the party's position in the pool's heap, from 1; 0 means that the party is not in the heap
}

// A holder is a party with packets. The holder with the most bytes comes first.
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
