// Package backlog has queues of waiting work, and tells when too much work waits. The package takes no lock and starts no
// goroutine.
package backlog

// A Queue holds work in the order in which it arrived. An empty queue has no memory.
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

// A Watched is a Queue that knows whether it is under load; see UnderLoad. The zero value is empty.
type Watched[T any] struct {
	Queue[T]
	longAt int64  // when the queue was last long; 0 means that it is not under load
	putOff uint64 // the value of UnderLoad's parameter putOff at the time longAt
}

const (
	// Long is how many elements make a queue long. That many initiations are about 0.1 s of work for a core.
	Long = 512
	// Hold is how long, in nanoseconds, a queue stays under load after it was long.
	Hold int64 = 1e9
)

// UnderLoad reports whether q is under load at the time now. q is under load while it has Long elements or more, and for Hold
// afterwards. It then stays under load as long as at least "many" elements per Hold are put off. The caller puts an element off if
// it drops the element because q is under load, as a device does with an initiation that it answers with a cookie. putOff is the
// number of elements that were put off so far. While elements are put off, q is short, because putting off costs little. But the
// work for these elements would make q long again. The caller sets more if enough work waits outside q. q then counts as long.
func (q *Watched[T]) UnderLoad(more bool, putOff, many uint64, now int64) bool {
	held := q.longAt != 0 && now-q.longAt >= Hold
	switch {
	case more || len(q.Queue) >= Long, held && putOff-q.putOff >= many*uint64((now-q.longAt)/Hold):
		q.longAt, q.putOff = now, putOff
	case held:
		q.longAt = 0
	}
	return q.longAt != 0
}
