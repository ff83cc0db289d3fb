package ordered

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// A task is an element with a time.
type task struct {
	at    int
	place int32
}

// An entry is a task in a heap, with a copy of its time.
type entry struct {
	at int
	*task
}

func (e entry) Before(o entry) bool { return e.at < o.at }
func (e entry) Place() *int32       { return &e.task.place }

// TestHeapModel checks a heap while tasks are added, moved and removed. The task in front is always one of the earliest, and each
// task has its right place.
func TestHeapModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h Heap[entry]
		tasks := make([]task, rapid.IntRange(1, 40).Draw(t, "tasks"))
		in := make(map[*task]bool)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			x := &tasks[rapid.IntRange(0, len(tasks)-1).Draw(t, "task")]
			if rapid.IntRange(0, 2).Draw(t, "step") == 0 {
				h.Remove(entry{task: x})
				delete(in, x)
			} else {
				x.at = rapid.IntRange(0, 50).Draw(t, "at")
				h.Put(entry{x.at, x})
				in[x] = true
			}
			if len(h) != len(in) || (h == nil) != (len(in) == 0) {
				t.Fatalf("the heap has %d elements, want %d, and must keep no memory when it is empty", len(h), len(in))
			}
			for i := range tasks {
				x := &tasks[i]
				if (x.place != 0) != in[x] || in[x] && (h[x.place-1] != entry{x.at, x} || h[0].at > x.at) {
					t.Fatalf("task %d, with the time %d, has the place %d; it should be in the heap: %v; the first task has the time %d", i, x.at, x.place, in[x], h[0].at)
				}
			}
		}
	})
}

// TestHeapAllocatesNothing checks that neither Put nor Remove allocates while the heap has room.
func TestHeapAllocatesNothing(t *testing.T) {
	var h Heap[entry]
	var tasks [3]task
	h.Put(entry{0, &tasks[0]})
	testkit.NoAllocations(t, 1000, func() {
		h.Put(entry{2, &tasks[1]})
		h.Put(entry{1, &tasks[2]})
		h.Put(entry{3, &tasks[2]})
		h.Remove(entry{task: &tasks[1]})
		h.Remove(entry{task: &tasks[2]})
	})
}

// TestHeapShrinks checks that a heap that loses most of its elements returns memory.
func TestHeapShrinks(t *testing.T) {
	const n = 10_000
	var h Heap[entry]
	tasks := make([]task, n)
	for i := range tasks {
		tasks[i].at = i
		h.Put(entry{i, &tasks[i]})
	}
	for i := range n - 10 {
		h.Remove(entry{task: &tasks[i]})
	}
	if len(h) != 10 || h[0].at != n-10 || cap(h) > minHeap {
		t.Errorf("%d elements with room for %d, the first at %d; want 10 elements with room for at most %d, the first at %d", len(h), cap(h), h[0].at, minHeap, n-10)
	}
}

// BenchmarkHeap measures removing the first of 100,000 tasks and adding it again after the last.
func BenchmarkHeap(b *testing.B) {
	const n = 100_000
	var h Heap[entry]
	tasks := make([]struct {
		task
		_ [600]byte // as large as a peer
	}, n)
	for i := range tasks {
		tasks[i].at = i * 7919 % n
		h.Put(entry{tasks[i].at, &tasks[i].task})
	}
	for b.Loop() {
		x := h[0]
		h.Remove(x)
		x.at += n
		x.task.at = x.at
		h.Put(x)
	}
}
