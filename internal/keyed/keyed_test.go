package keyed

import (
	"encoding/binary"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

type peer struct {
	key  [32]byte
	name int
}

func (p *peer) Key() [32]byte { return p.key }

// drawKey draws one of few keys. Many of them begin with the same 8 bytes, and some of these differ only in the last byte.
func drawKey(t *rapid.T, label string) (key [32]byte) {
	for _, at := range []int{0, 7, 8, 31} {
		key[at] = rapid.SampledFrom([]byte{0, 1, 0xff}).Draw(t, label)
	}
	return key
}

// TestModel compares a table with a map after changes of all kinds. It also checks that readers see a change only once it is
// published.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table Table[*peer]
		model := make(map[[32]byte]*peer)
		for range rapid.IntRange(1, 4).Draw(t, "edits") {
			e, before := table.Edit(), maps.Clone(model)
			for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
				key := drawKey(t, "key")
				if got := e.Find(key); got != model[key] {
					t.Fatalf("Find of the edit returned %v for %x, want %v", got, key, model[key])
				}
				if p := model[key]; p != nil && rapid.Bool().Draw(t, "delete") {
					e.Delete(p)
					delete(model, key)
				} else {
					model[key] = &peer{key, i}
					e.Put(model[key])
				}
			}
			check(t, &table, before)
			table.Publish(&e)
			check(t, &table, model)
		}
	})
}

func check(t *rapid.T, table *Table[*peer], model map[[32]byte]*peer) {
	key := drawKey(t, "read")
	if got := table.Find(key); got != model[key] {
		t.Fatalf("Find(%x) returned %v, want %v", key, got, model[key])
	}
	var want []*peer
	for _, p := range slices.SortedFunc(maps.Values(model), func(a, b *peer) int { return compare(a.key, b.key) }) {
		if compare(p.key, key) > 0 {
			want = append(want, p)
		}
	}
	if got := slices.Collect(table.After(key)); !slices.Equal(got, want) {
		t.Fatalf("After(%x) yielded %d values, want %d, in order", key, len(got), len(want))
	}
	if table.Len() != len(model) {
		t.Fatalf("Len returned %d, want %d", table.Len(), len(model))
	}
}

// numbered returns a key that begins with scattered bytes.
func numbered(i int) (key [32]byte) {
	binary.BigEndian.PutUint64(key[:], uint64(i)*0x9e3779b97f4a7c15)
	return key
}

func filled(n int) *Table[*peer] {
	var table Table[*peer]
	e := table.Edit()
	for i := range n {
		e.Put(&peer{numbered(i), i})
	}
	table.Publish(&e)
	return &table
}

// TestFindAllocatesNothing checks that Find allocates nothing, both for a key that is in the table and for one that is not.
func TestFindAllocatesNothing(t *testing.T) {
	table := filled(1000)
	testkit.NoAllocations(t, 100, func() {
		if table.Find(numbered(7)) == nil || table.Find(numbered(1000)) != nil {
			t.Error("Find does not find key 7, or finds a key that is not in the table")
		}
	})
}

func BenchmarkFind(b *testing.B) {
	table, i := filled(100_000), 0
	for b.Loop() {
		i = (i + 7919) % 100_000
		table.Find(numbered(i))
	}
}
