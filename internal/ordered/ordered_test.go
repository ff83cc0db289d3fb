package ordered

import (
	"cmp"
	"maps"
	"math"
	"math/bits"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A pair is equal to all pairs with its key.
type pair struct{ key, value int }

func (a pair) Compare(b pair) int { return cmp.Compare(a.key, b.key) }

// TestModel compares sets with a map after changes of all kinds, and checks that a set that was returned never changes.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Set[pair]
		model := make(map[int]int)
		keys := rapid.IntRange(0, rapid.SampledFrom([]int{20, 5000}).Draw(t, "keys"))
		for range rapid.IntRange(1, 8).Draw(t, "edits") {
			before, modelBefore := s, maps.Clone(model)
			e := s.Edit()
			for range rapid.IntRange(1, 4).Draw(t, "steps") {
				kind := rapid.IntRange(0, 4).Draw(t, "kind")
				from, n := keys.Draw(t, "from"), rapid.SampledFrom([]int{1, 3, 100, 3000}).Draw(t, "n")
				switch kind {
				case 0, 1: // in order, up or down
					for i := range n {
						key := from + i*(1-2*kind)
						e.Put(pair{key, i})
						model[key] = i
					}
				case 2: // scattered over all keys
					for i := range n {
						key := (from + i*7919) % 10007
						e.Put(pair{key, i})
						model[key] = i
					}
				case 3:
					for i := range n {
						_, had := model[from+i]
						if e.Delete(pair{key: from + i}) != had {
							t.Fatalf("Delete(%d) did not return %v", from+i, had)
						}
						delete(model, from+i)
					}
				case 4: // a set in the middle of the edit, which must not change later
					middle, modelMiddle := e.Set(), maps.Clone(model)
					defer func() { check(t, middle, modelMiddle) }()
				}
			}
			s = e.Set()
			check(t, s, model)
			check(t, before, modelBefore)
		}
	})
}

func check(t *rapid.T, s Set[pair], model map[int]int) {
	want := slices.Sorted(maps.Keys(model))
	if s.Len() != len(want) {
		t.Fatalf("Len returned %d, want %d", s.Len(), len(want))
	}
	from := rapid.IntRange(-10, 10010).Draw(t, "from")
	for _, at := range []int{math.MinInt, from} {
		i, _ := slices.BinarySearch(want, at)
		for item := range s.From(pair{key: at}) {
			if i == len(want) || item.key != want[i] || item.value != model[item.key] {
				t.Fatalf("From(%d) yielded item %v after %v, which is out of order or wrong", at, item, want[:i])
			}
			i++
		}
		if i != len(want) {
			t.Fatalf("From(%d) did not yield the last %d items", at, len(want)-i)
		}
	}
	if s.root != nil {
		checkNode(t, s.root, true)
	}
}

// checkNode checks the shape of the tree below n, and returns the number of its levels.
func checkNode(t *rapid.T, n *node[pair], isRoot bool) (levels int) {
	if len(n.items) == 0 || len(n.items) > maxItems || cap(n.items) > maxItems || isRoot && len(n.kids) == 1 {
		t.Fatalf("a node has %d items with room for %d, and %d children, which is out of bounds", len(n.items), cap(n.items), len(n.kids))
	}
	if n.kids == nil {
		return 1
	}
	if len(n.kids) != len(n.items) {
		t.Fatalf("a node has %d children but %d items, want as many", len(n.kids), len(n.items))
	}
	for i, kid := range n.kids {
		if l := checkNode(t, kid, false); i > 0 && l != levels {
			t.Fatalf("a child has %d levels, but its sibling has %d", l, levels)
		} else {
			levels = l
		}
	}
	return levels + 1
}

// filled returns a set of n items, put in order or at random.
func filled(n int, inOrder bool) Set[pair] {
	var s Set[pair]
	e := s.Edit()
	for i := range n {
		key := i
		if !inOrder {
			key = i * 7919 % n // n is not a multiple of 7919
		}
		e.Put(pair{key, i})
	}
	return e.Set()
}

// nodes returns the number of nodes of a set, and the number of items that its leaves have memory for (places).
func (s Set[T]) nodes() (nodes, places int) {
	var count func(n *node[T])
	count = func(n *node[T]) {
		nodes++
		if n.kids == nil {
			places += cap(n.items)
		}
		for _, kid := range n.kids {
			count(kid)
		}
	}
	if s.root != nil {
		count(s.root)
	}
	return nodes, places
}

// TestSpace checks that the leaves of a set have memory for at most 1.01 items per item after insertion in order, for 1.4 after
// insertion at random, and for 5 after 99 % of the items were deleted.
func TestSpace(t *testing.T) {
	const n = 100_000
	for name, c := range map[string]struct {
		inOrder bool
		most    float64 // places per item
	}{"in order": {true, 1.01}, "at random": {false, 1.4}} {
		s := filled(n, c.inOrder)
		if _, places := s.nodes(); float64(places) > c.most*n {
			t.Errorf("%s: the leaves have %d places for %d items, want at most %.2f per item", name, places, n, c.most)
		}
		e := s.Edit()
		for i := range n {
			if i%100 != 0 {
				e.Delete(pair{key: i})
			}
		}
		left := e.Set()
		if _, places := left.nodes(); left.Len() != n/100 || places > 5*left.Len() {
			t.Errorf("%s: after deletions, the leaves have %d places for %d items, want at most 5 per item", name, places, left.Len())
		}
	}
}

// TestEditCost checks that a change of one item copies one node per level, and that the number of levels grows with the logarithm
// of the number of items.
func TestEditCost(t *testing.T) {
	for _, c := range []struct{ n, levels int }{{1000, 3}, {100_000, 5}} {
		s := filled(c.n, false)
		allocs := testing.AllocsPerRun(100, func() {
			e := s.Edit()
			e.Put(pair{c.n / 2, 1})
			e.Delete(pair{key: c.n / 3})
		})
		if limit := float64(2 * 3 * (c.levels + 1)); allocs > limit { // per node: the node, its items and its children
			t.Errorf("%d items: %v allocations for two changes, want at most %v", c.n, allocs, limit)
		}
	}
	const n = 10_000
	if allocs := testing.AllocsPerRun(5, func() { filled(n, true) }); allocs > n/maxItems*2.5 { // per leaf: the node and its items
		t.Errorf("putting %d items in order takes %v allocations, want at most 2.5 for each %d items", n, allocs, maxItems)
	}
	s := filled(100_000, false)
	if allocs := testing.AllocsPerRun(100, func() {
		for range s.From(pair{key: 5}) {
			break
		}
	}); allocs > 4 { // the closures of the loop allocate
		t.Errorf("reading an item takes %v allocations, want at most 4", allocs)
	}
}

// A counted is an item that counts its comparisons.
type counted struct {
	key int
	n   *int
}

func (c counted) Compare(o counted) int {
	*c.n++
	return cmp.Compare(c.key, o.key)
}

// TestSteps checks that finding, adding and removing an item takes a number of comparisons that grows with the logarithm
// of the number of items.
func TestSteps(t *testing.T) {
	for _, n := range []int{10, 1000, 100_000} {
		steps := 0
		var e Edit[counted]
		for i := range n {
			e.Put(counted{i * 7919 % n * 2, &steps}) // all even keys below 2n
		}
		s, limit := e.Set(), 3*bits.Len(uint(n))+8
		e = s.Edit()
		for _, c := range []struct {
			what string
			do   func(x counted)
		}{
			{"find the first item from a key on", func(x counted) {
				for range s.From(x) {
					break
				}
			}},
			{"add", func(x counted) { e.Put(counted{x.key + 1, x.n}) }},
			{"remove", func(x counted) { e.Delete(x) }},
		} {
			for i := range min(n, 100) {
				steps = 0
				c.do(counted{i * (n / min(n, 100)) * 2, &steps})
				if steps == 0 || steps > limit {
					t.Fatalf("to %s takes %d comparisons among %d items, want at least 1 and at most %d", c.what, steps, n, limit)
				}
			}
		}
	}
}

func BenchmarkPut(b *testing.B) {
	for b.Loop() {
		filled(100_000, false)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100_000, "ns/item")
}

func BenchmarkFind(b *testing.B) {
	s, i := filled(100_000, false), 0
	for b.Loop() {
		i = (i + 7919) % 100_000
		for range s.From(pair{key: i}) {
			break
		}
	}
}
