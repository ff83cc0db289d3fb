package ordered

// An Element is a small value that a Heap holds. An Element stands for something that can be in only one heap of its kind at a
// time.
type Element[T any] interface {
	Before(o T) bool // whether the element belongs nearer to the front than o
	Place() *int32   // points to the element's index in the heap plus 1, or to 0 if it is not in the heap; only the Heap writes it
}

// A Heap has the foremost of its elements in front, at index 0. The zero value is empty. An empty heap has no memory.
//
// Each move of an element writes the element's place, which is in memory that is rarely in a cache. With four branches, an
// element moves half as often as with two. Four elements of 16 bytes are in one or two cache lines.
type Heap[T Element[T]] []T

const (
	// branches is how many children each element has. The children of the element at index i begin at index branches*i+1.
	branches = 4

	// minHeap is the capacity that a heap keeps until it is empty. A larger heap gives half of its memory back when three
	// quarters of it are not in use.
	minHeap = 64
)

// Put adds x. If *x.Place() is not 0, x replaces the element at that place.
func (h *Heap[T]) Put(x T) {
	i := int(*x.Place()) - 1
	if i < 0 {
		i = len(*h)
		*h = append(*h, x)
	}
	h.settle(i, x)
}

// Remove removes the element at the place *x.Place(), unless that is 0.
func (h *Heap[T]) Remove(x T) {
	if place := x.Place(); *place != 0 {
		i, last := int(*place)-1, len(*h)-1
		*place = 0
		moved := (*h)[last]
		clear((*h)[last:])
		*h = (*h)[:last]
		if i < last {
			h.settle(i, moved)
		}
		if cap(*h) > minHeap && last < cap(*h)/4 {
			*h = append(make(Heap[T], 0, cap(*h)/2), *h...)
		}
	}
	if len(*h) == 0 {
		*h = nil
	}
}

// settle puts x into the heap, in which the index i is free, and moves elements to keep the heap in order.
func (h Heap[T]) settle(i int, x T) {
	for i > 0 {
		ahead := (i - 1) / branches
		if !x.Before(h[ahead]) {
			break
		}
		h.set(i, h[ahead])
		i = ahead
	}
	for first := branches*i + 1; first < len(h); first = branches*i + 1 {
		next := first
		for j := first + 1; j < min(first+branches, len(h)); j++ {
			if h[j].Before(h[next]) {
				next = j
			}
		}
		if !h[next].Before(x) {
			break
		}
		h.set(i, h[next])
		i = next
	}
	h.set(i, x)
}

func (h Heap[T]) set(i int, x T) {
	h[i] = x
	*x.Place() = int32(i + 1)
}
