// Package backlog has queues of work that waits, and tells when too much of it does. It takes no lock and starts nothing.
package backlog

// A Queue is work in the order of its arrival. Its memory shrinks with it: an empty one has none.
type Queue[T any] []T

// Push adds x at the end.
func (q *Queue[T]) Push(x T) { *q = append(*q, x) }

// Pop takes the oldest element out of the queue. If there is none, it returns the zero value.
func (q *Queue[T]) Pop() (x T) {
	if len(*q) > 0 {
		x, (*q)[0] = (*q)[0], x
		*q = (*q)[1:]
	}
	if len(*q) == 0 {
		*q = nil
	}
	return x
}

// A Watched is a Queue that remembers for a while that it was long. The zero value is empty.
type Watched[T any] struct {
	Queue[T]
	longAt int64 // when it last was long; 0 means not lately
}

const (
	// Long is the number of elements from which on a queue is long. Of initiations, these are about 0.1 s of a core's work.
	Long = 512
	// Hold is how long a queue is under load after it was long, in nanoseconds.
	Hold int64 = 1e9
)

// UnderLoad reports whether q is long, or was within Hold before the time now. more says that there is as much work beside it.
func (q *Watched[T]) UnderLoad(more bool, now int64) bool {
	if more || len(q.Queue) >= Long {
		q.longAt = now
	}
	if q.longAt != 0 && now-q.longAt >= Hold {
		q.longAt = 0
	}
	return q.longAt != 0
}
