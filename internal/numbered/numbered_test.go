package numbered

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// TestModel checks that a Table has the same values as a map, whatever values are added and removed, and that it frees its
// memory.
func TestModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var table Table[int]
	model := make(map[uint32]*int)
	for round := range 6 {
		for range 20000 {
			number := r.Uint32N(3000)
			if r.IntN(3) > round%3 {
				v := new(int)
				table.Put(number, v)
				model[number] = v
			} else {
				table.Delete(number)
				delete(model, number)
			}
			if probe := r.Uint32N(3000); table.Get(probe) != model[probe] {
				t.Fatalf("Get(%d) returned %p, want %p", probe, table.Get(probe), model[probe])
			}
			if table.Len() != len(model) {
				t.Fatalf("Len returned %d, want %d", table.Len(), len(model))
			}
		}
		if b := table.buckets.Load(); b != nil && len(*b) > max(minBuckets, 16*table.Len()) {
			t.Errorf("the table has %d buckets for %d values, want at most 16 per value", len(*b), table.Len())
		}
	}
	for number := range model {
		table.Delete(number)
	}
	if table.buckets.Load() != nil || table.Len() != 0 {
		t.Error("the empty table keeps its memory")
	}
}

// TestReadersDuringChanges checks that readers always find a value that is not deleted, while the table grows and shrinks, and
// while other values in the same list change.
func TestReadersDuringChanges(t *testing.T) {
	var table Table[uint32]
	const stays = 16 // in a table of up to 16 buckets, all multiples of 16 are in one list
	one := uint32(stays)
	table.Put(stays, &one)
	var done atomic.Bool
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for n := uint32(0); !done.Load(); n++ {
				if v := table.Get(stays); v == nil || *v != stays {
					t.Error("Get did not find a value that was never deleted")
					return
				}
				if v := table.Get(n % 4096); v != nil && *v != n%4096 {
					t.Errorf("Get(%d) returned the value %d, want the same number", n%4096, *v)
					return
				}
			}
		})
	}
	for range 4 {
		for n := uint32(0); n < 4096; n++ {
			if n != stays {
				v := n
				table.Put(n, &v)
			}
		}
		for n := uint32(0); n < 4096; n++ {
			if n != stays {
				table.Delete(n)
			}
		}
	}
	done.Store(true)
	readers.Wait()
}

// TestAdd checks that Add replaces no value, and adds none beyond its limit.
func TestAdd(t *testing.T) {
	var table Table[int]
	first, second := new(int), new(int)
	for _, c := range []struct {
		number      uint32
		v           *int
		added, full bool
	}{{7, first, true, false}, {7, second, false, false}, {8, second, true, false}, {9, first, false, true}, {7, second, false, true}} {
		if added, full := table.Add(c.number, c.v, 2); added != c.added || full != c.full {
			t.Errorf("Add of number %d returned added %v, full %v; want %v, %v", c.number, added, full, c.added, c.full)
		}
	}
	if table.Get(7) != first || table.Get(8) != second || table.Get(9) != nil {
		t.Error("Add replaced a value, or added one beyond the limit")
	}
	if table.Delete(7, 8, 9); table.Len() != 0 || table.buckets.Load() != nil {
		t.Error("the empty table keeps its memory")
	}
}

func TestGetAllocatesNothing(t *testing.T) {
	var table Table[int]
	for n := range uint32(100) {
		table.Put(n, new(int))
	}
	if n := testing.AllocsPerRun(100, func() { table.Get(7); table.Get(1000) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// BenchmarkGet measures a lookup in a table of 20,000 values, on as many goroutines as there are cores, and a lookup in a map
// with a read lock.
func BenchmarkGet(b *testing.B) {
	const n = 20000
	var table Table[int]
	var lock sync.RWMutex
	m := make(map[uint32]*int)
	for i := range uint32(n) {
		v := new(int)
		table.Put(i, v)
		m[i] = v
	}
	for name, get := range map[string]func(uint32) *int{
		"table": table.Get,
		"map": func(number uint32) *int {
			lock.RLock()
			defer lock.RUnlock()
			return m[number]
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for i := uint32(0); pb.Next(); i = (i*5 + 1) % n {
					if get(i) == nil {
						b.Error("not found")
					}
				}
			})
		})
	}
}
