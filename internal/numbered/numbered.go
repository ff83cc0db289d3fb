// Package numbered has a table that finds values by random 32-bit numbers. Readers take no lock. The package starts no goroutine.
package numbered

import (
	"sync"
	"sync/atomic"
)

// A Table finds values by number. The low bits of the numbers should be random. The zero value is empty. Any goroutine may call the
// Table's methods. Get takes no lock. A Table must not be copied.
type Table[V any] struct {
	buckets atomic.Pointer[[]bucket[V]] // as many as a power of 2; nil if the table is empty; replaced when it grows or shrinks
	mu      sync.Mutex                  // serialises changes, and guards n; no other lock is taken while it is held
	n       int                         // the number of entries
}

// A bucket is the head of a list of entries.
type bucket[V any] struct {
	first atomic.Pointer[entry[V]]
}

// The number of an entry never changes. A removed entry keeps its link, so a reader that is at this entry still finds the rest of
// the list.
type entry[V any] struct {
	number uint32
	v      atomic.Pointer[V]
	next   bucket[V]
}

const minBuckets = 8

// Get returns the value with the number, or nil if there is none.
func (t *Table[V]) Get(number uint32) *V {
	if e := t.find(number); e != nil {
		return e.v.Load()
	}
	return nil
}

func (t *Table[V]) find(number uint32) *entry[V] {
	buckets := t.buckets.Load()
	if buckets == nil {
		return nil
	}
	e := place(*buckets, number).first.Load()
	for e != nil && e.number != number {
		e = e.next.first.Load()
	}
	return e
}

func place[V any](buckets []bucket[V], number uint32) *bucket[V] {
	return &buckets[int(number&uint32(len(buckets)-1))]
}

// Len returns the number of values.
func (t *Table[V]) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// Put sets the value of a number, and replaces an earlier value. It costs O(1), except when the table grows.
func (t *Table[V]) Put(number uint32, v *V) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.find(number); e != nil {
		e.v.Store(v)
	} else {
		t.add(number, v)
	}
}

// Add sets the value of a number, unless the number has one, and reports whether it set the value. If the table has limit values or
// more, full is true, and Add does nothing.
func (t *Table[V]) Add(number uint32, v *V, limit uint64) (added, full bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	full = uint64(t.n) >= limit
	if added = !full && t.find(number) == nil; added {
		t.add(number, v)
	}
	return added, full
}

// add adds an entry. The caller holds mu.
func (t *Table[V]) add(number uint32, v *V) {
	if buckets := t.buckets.Load(); buckets == nil {
		t.resize(minBuckets)
	} else if t.n >= len(*buckets) {
		t.resize(2 * len(*buckets))
	}
	place(*t.buckets.Load(), number).insert(number, v)
	t.n++
}

// Delete removes the values of these numbers, if they have any, and frees their memory. An empty table has no memory.
func (t *Table[V]) Delete(numbers ...uint32) {
	if len(numbers) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, number := range numbers {
		t.remove(number)
	}
}

func (t *Table[V]) remove(number uint32) {
	e := t.find(number)
	if e == nil {
		return
	}
	buckets := *t.buckets.Load()
	at := place(buckets, number)
	for at.first.Load() != e {
		at = &at.first.Load().next
	}
	at.first.Store(e.next.first.Load())
	if t.n--; t.n == 0 {
		t.buckets.Store(nil)
	} else if n := len(buckets); n > minBuckets && t.n <= n/8 {
		t.resize(n / 4)
	}
}

// resize gives the table n buckets. Readers may still follow the old lists, so resize copies the entries.
func (t *Table[V]) resize(n int) {
	buckets := make([]bucket[V], n)
	if old := t.buckets.Load(); old != nil {
		for i := range *old {
			for e := (*old)[i].first.Load(); e != nil; e = e.next.first.Load() {
				place(buckets, e.number).insert(e.number, e.v.Load())
			}
		}
	}
	t.buckets.Store(&buckets)
}

func (b *bucket[V]) insert(number uint32, v *V) {
	e := &entry[V]{number: number}
	e.v.Store(v)
	e.next.first.Store(b.first.Load())
	b.first.Store(e)
}
