// Package ordered has sorted sets with many readers and one writer. A [Set] never changes, so readers need no lock. An [Edit]
// makes the next Set from a Set, and copies only the nodes that change. A [Heap] keeps its foremost element in front, and can
// remove any element. The package takes no lock and starts no goroutine.
package ordered

import (
	"iter"
	"slices"
	"sync/atomic"
)

// An Item is what a Set holds. Compare returns a negative number if the item is less than o, 0 if the item equals o, and a positive
// number otherwise.
type Item[T any] interface {
	Compare(o T) int
}

// A Set is a sorted set of items, no two of which are equal. The zero value is empty. A Set may be copied, and read from
// any goroutine.
type Set[T Item[T]] struct {
	root *node[T] // nil if the set is empty
	n    int
	edit uint64 // the number of the edit that made the set
}

// maxItems is the capacity of a node. An edit of one item copies a node of each level, and a set of 1,000,000 items has
// five or six levels.
const maxItems = 16

// A node of a B+ tree. In a leaf, items are items of the set. In other nodes, items[i] is at most the least item below kids[i],
// and greater than all items below kids[i-1]; items[0] has no meaning.
type node[T Item[T]] struct {
	edit  uint64 // the number of the edit that may change the node in place
	items []T
	kids  []*node[T] // nil in a leaf
}

// Len returns the number of items.
func (s Set[T]) Len() int { return s.n }

// From returns the items that are not less than x, in order. The first item costs O(log n), and each further item O(1).
func (s Set[T]) From(x T) iter.Seq[T] {
	return func(yield func(T) bool) {
		if s.root != nil {
			s.root.from(&x, yield)
		}
	}
}

// from yields the items not less than *x, or all items if x is nil. It returns false if yield returned false.
func (n *node[T]) from(x *T, yield func(T) bool) bool {
	if n.kids == nil {
		i := 0
		if x != nil {
			i, _ = n.search(*x)
		}
		for ; i < len(n.items); i++ {
			if !yield(n.items[i]) {
				return false
			}
		}
		return true
	}
	i := 0
	if x != nil {
		i = n.below(*x)
	}
	for ; i < len(n.kids); i++ {
		if !n.kids[i].from(x, yield) {
			return false
		}
		x = nil // all items that follow are greater
	}
	return true
}

// search returns the index of x in a leaf, or the index at which x would be inserted.
func (n *node[T]) search(x T) (i int, found bool) {
	low, high := 0, len(n.items)
	for low < high {
		if m := int(uint(low+high) / 2); n.items[m].Compare(x) < 0 {
			low = m + 1
		} else {
			high = m
		}
	}
	return low, low < len(n.items) && n.items[low].Compare(x) == 0
}

// below returns the index of the child that contains x, if the tree contains x.
func (n *node[T]) below(x T) int {
	low, high := 1, len(n.items)
	for low < high {
		if m := int(uint(low+high) / 2); n.items[m].Compare(x) <= 0 {
			low = m + 1
		} else {
			high = m
		}
	}
	return low - 1
}

// A Published is a set that any number of goroutines load, while one goroutine stores newer sets. The zero value is empty. It
// must not be copied.
type Published[T Item[T]] struct{ set atomic.Pointer[Set[T]] }

// Load returns the set that was stored last.
func (p *Published[T]) Load() (s Set[T]) {
	if stored := p.set.Load(); stored != nil {
		s = *stored
	}
	return s
}

// Store makes s the set that Load returns.
func (p *Published[T]) Store(s Set[T]) { p.set.Store(&s) }

// An Edit is a set that is being changed. Only one goroutine may use it.
type Edit[T Item[T]] struct{ s Set[T] }

// Edit returns an edit that begins with the items of s. Edit a set only once: begin the next edit with the set that the first
// edit returns.
func (s Set[T]) Edit() Edit[T] {
	s.edit++
	return Edit[T]{s}
}

// Set returns the edited set. Later changes by the edit do not affect the returned set.
func (e *Edit[T]) Set() Set[T] {
	s := e.s
	e.s.edit++
	return s
}

// From does what Set.From does. The edit must not be changed inside the loop.
func (e *Edit[T]) From(x T) iter.Seq[T] { return e.s.From(x) }

// Put adds x. If the set has an equal item, x replaces it.
func (e *Edit[T]) Put(x T) {
	if e.s.root == nil {
		e.s.root = &node[T]{edit: e.s.edit}
	}
	left, right := e.put(e.s.root, x)
	if right != nil {
		root := &node[T]{edit: e.s.edit, items: make([]T, 1, roundUp(2)), kids: make([]*node[T], 1, roundUp(2))}
		root.kids[0] = left // items[0] has no meaning
		left = root
		root.insert(1, right.items[0], right)
	}
	e.s.root = left
}

// put adds x below n. It returns the node that replaces n and, if n was full, a second node that follows the first.
func (e *Edit[T]) put(n *node[T], x T) (left, right *node[T]) {
	n = e.own(n)
	if n.kids == nil {
		i, found := n.search(x)
		if found {
			n.items[i] = x
			return n, nil
		}
		e.s.n++
		return n, e.insert(n, i, x, nil)
	}
	i := n.below(x)
	kid, next := e.put(n.kids[i], x)
	n.kids[i] = kid
	if next == nil {
		return n, nil
	}
	return n, e.insert(n, i+1, next.items[0], next)
}

// insert inserts an item, and a child if n has children. If n is full, insert returns a second node and moves the upper half
// of n to it. If the item is greater than all items of n, insert moves nothing, so items that are added in order fill
// their nodes. The second node then has room for the items that probably follow.
func (e *Edit[T]) insert(n *node[T], i int, x T, kid *node[T]) (right *node[T]) {
	if len(n.items) < maxItems {
		n.insert(i, x, kid)
		return nil
	}
	right = &node[T]{edit: e.s.edit}
	if i == maxItems {
		right.items = make([]T, 0, maxItems)
		if kid != nil {
			right.kids = make([]*node[T], 0, maxItems)
		}
		right.insert(0, x, kid)
		return right
	}
	const at = maxItems / 2
	right.items, n.items = resized(n.items[at:], 1), resized(n.items[:at], 1)
	if kid != nil {
		right.kids, n.kids = resized(n.kids[at:], 1), resized(n.kids[:at], 1)
	}
	if i > at {
		right.insert(i-at, x, kid)
	} else {
		n.insert(i, x, kid)
	}
	return right
}

func (n *node[T]) insert(i int, x T, kid *node[T]) {
	if len(n.items) == cap(n.items) {
		n.items = resized(n.items, 1)
	}
	n.items = slices.Insert(n.items, i, x)
	if kid != nil {
		if len(n.kids) == cap(n.kids) {
			n.kids = resized(n.kids, 1)
		}
		n.kids = slices.Insert(n.kids, i, kid)
	}
}

// Delete removes the item that is equal to x, and reports whether there was one.
func (e *Edit[T]) Delete(x T) bool {
	before, root := e.s.n, e.s.root
	if root == nil {
		return false
	}
	root = e.delete(root, x)
	for len(root.kids) == 1 {
		root = root.kids[0]
	}
	if len(root.items) == 0 {
		root = nil
	}
	e.s.root = root
	return e.s.n < before
}

// delete removes x, if it is below n, and returns the node that replaces n. That node may be empty.
func (e *Edit[T]) delete(n *node[T], x T) *node[T] {
	n = e.own(n)
	if n.kids == nil {
		if i, found := n.search(x); found {
			n.remove(i)
			e.s.n--
		}
		return n
	}
	i := n.below(x)
	n.kids[i] = e.delete(n.kids[i], x)
	if left := len(n.kids[i].items); left == 0 {
		n.remove(i)
	} else if left < maxItems/2 && !e.join(n, i) {
		e.join(n, i-1)
	}
	return n
}

// join merges the children i and i+1 of n if both exist and one node can hold the items of both.
func (e *Edit[T]) join(n *node[T], i int) bool {
	if i < 0 || i+1 >= len(n.kids) || len(n.kids[i].items)+len(n.kids[i+1].items) > maxItems {
		return false
	}
	left, right := e.own(n.kids[i]), n.kids[i+1]
	at := len(left.items)
	left.items = append(resized(left.items, len(right.items)), right.items...)
	if left.kids != nil {
		left.items[at] = n.items[i+1] // right.items[0] has no meaning
		left.kids = append(resized(left.kids, len(right.kids)), right.kids...)
	}
	n.kids[i] = left
	n.remove(i + 1)
	return true
}

// remove removes the item at index i, and the child at index i if n has children.
func (n *node[T]) remove(i int) {
	n.items = slices.Delete(n.items, i, i+1)
	if n.kids != nil {
		n.kids = slices.Delete(n.kids, i, i+1)
	}
}

// own returns n if this edit made it, and otherwise a copy.
func (e *Edit[T]) own(n *node[T]) *node[T] {
	if n.edit == e.s.edit {
		return n
	}
	c := &node[T]{edit: e.s.edit, items: resized(n.items, 1)}
	if n.kids != nil {
		c.kids = resized(n.kids, 1)
	}
	return c
}

// resized returns a copy of s with room for n further items, and little beyond that.
func resized[S any](s []S, n int) []S {
	return append(make([]S, 0, roundUp(len(s)+n)), s...)
}

// roundUp returns the capacity of a slice for n items, at most maxItems.
func roundUp(n int) int {
	if n <= 2 {
		return n
	}
	return min((n+3)&^3, maxItems)
}
