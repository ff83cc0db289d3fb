package ordered

import "container/heap"

// An Element is what a Heap holds: a small value for something that can be in one such heap at a time.
type Element[T any] interface {
	Before(o T) bool // whether it is nearer to the front than o
	Place() *int32   // where it keeps its place in the heap, counted from 1; 0 means that it is not there. The Heap alone writes it
}

// A Heap has the foremost of its elements in front, at index 0. The zero value is empty. An empty heap has no memory.
type Heap[T Element[T]] []T

// minHeap is the capacity that a heap keeps until it is empty. A larger heap gives half of its memory back when three quarters
// are not in use.
const minHeap = 64

// Put adds x, or takes it in place of the element that has its place.
func (h *Heap[T]) Put(x T) {
	place := x.Place()
	if *place == 0 {
		*h = append(*h, x)
		*place = int32(len(*h))
	}
	(*h)[*place-1] = x
	heap.Fix((*sorter[T])(h), int(*place-1))
}

// Remove removes the element that has the place of x, if x has one.
func (h *Heap[T]) Remove(x T) {
	if place := *x.Place(); place != 0 {
		heap.Remove((*sorter[T])(h), int(place-1))
	}
	if len(*h) == 0 {
		*h = nil
	}
}

// A sorter is a Heap as container/heap sees it. Neither Push nor Pop carries an element, which would be allocated.
type sorter[T Element[T]] []T

func (s sorter[T]) Len() int           { return len(s) }
func (s sorter[T]) Less(i, j int) bool { return s[i].Before(s[j]) }
func (s sorter[T]) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	*s[i].Place(), *s[j].Place() = int32(i+1), int32(j+1)
}
func (s *sorter[T]) Push(any) { panic("ordered: elements are added by Put") }
func (s *sorter[T]) Pop() any {
	last := len(*s) - 1
	*(*s)[last].Place() = 0
	clear((*s)[last:])
	*s = (*s)[:last]
	if cap(*s) > minHeap && last < cap(*s)/4 {
		*s = append(make(sorter[T], 0, cap(*s)/2), *s...)
	}
	return nil
}
