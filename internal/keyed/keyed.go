// Package keyed keeps values that have a 32-byte key. It finds a value by its key, and lists the values in the order of their
// keys. The package takes no lock and starts no goroutine.
package keyed

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"iter"

	"github.com/seed-86b749af/wireguard/internal/ordered"
)

// A Value has a key that never changes. It is a pointer, and the nil pointer is not in a table.
type Value interface {
	comparable
	Key() [32]byte
}

// A Table finds values by their key. The zero value is empty. Readers take no lock. The caller serialises edits.
type Table[V Value] struct {
	set ordered.Published[item[V]]
}

// An item is a value with the first 8 bytes of its key, as a number. Keys are random, so these bytes nearly always differ, and a
// search that compares them does not read the memory of the values. An item without a value precedes all values whose keys begin
// with these bytes, so a search starts from it.
type item[V Value] struct {
	start uint64
	v     V
}

func startOf(key [32]byte) uint64 { return binary.BigEndian.Uint64(key[:]) }

// first returns the item from which a search for the key starts.
func first[V Value](key [32]byte) item[V] { return item[V]{start: startOf(key)} }

func itemOf[V Value](v V) item[V] { return item[V]{startOf(v.Key()), v} }

// Compare orders by key.
func (o item[V]) Compare(other item[V]) int {
	var none V
	switch {
	case o.start != other.start || o.v == other.v:
		return cmp.Compare(o.start, other.start)
	case o.v == none:
		return -1
	case other.v == none:
		return 1
	}
	return compare(o.v.Key(), other.v.Key())
}

func compare(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) }

// find returns the value with the key, or nil. from are the items from first(key) on, in order.
func find[V Value](from iter.Seq[item[V]], key [32]byte) (v V) {
	for o := range from {
		if o.start != startOf(key) {
			break
		}
		if o.v.Key() == key {
			return o.v
		}
	}
	return v
}

// Len returns the number of values.
func (t *Table[V]) Len() int { return t.set.Load().Len() }

// Find returns the value with the key, or nil.
func (t *Table[V]) Find(key [32]byte) V { return find(t.set.Load().From(first[V](key)), key) }

// After returns, in order, the values that exist when the loop begins and whose keys are greater than key.
func (t *Table[V]) After(key [32]byte) iter.Seq[V] {
	return func(yield func(V) bool) {
		for o := range t.set.Load().From(first[V](key)) {
			if compare(o.v.Key(), key) > 0 && !yield(o.v) {
				return
			}
		}
	}
}

// An Edit is a change to a table. Readers see it once it is published.
type Edit[V Value] struct {
	set ordered.Edit[item[V]]
}

// Edit begins a change.
func (t *Table[V]) Edit() Edit[V] { return Edit[V]{t.set.Load().Edit()} }

// Publish lets readers see a change.
func (t *Table[V]) Publish(e *Edit[V]) { t.set.Store(e.set.Set()) }

// Find returns the value with the key, or nil.
func (e *Edit[V]) Find(key [32]byte) V { return find(e.set.From(first[V](key)), key) }

// Put adds v. If there is a value with the same key, v replaces it.
func (e *Edit[V]) Put(v V) { e.set.Put(itemOf(v)) }

// Delete removes v.
func (e *Edit[V]) Delete(v V) { e.set.Delete(itemOf(v)) }
