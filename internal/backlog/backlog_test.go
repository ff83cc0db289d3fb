package backlog

import "testing"

func TestQueue(t *testing.T) {
	var q Queue[int]
	if q.Pop() != 0 {
		t.Error("Pop of an empty queue returned an element")
	}
	next := 1
	for i := range 100 {
		q.Push(2*i + 1)
		q.Push(2*i + 2)
		if got := q.Pop(); got != next {
			t.Fatalf("popped %d, want %d", got, next)
		}
		next++
	}
	for ; len(q) > 0; next++ {
		if got := q.Pop(); got != next {
			t.Fatalf("popped %d, want %d", got, next)
		}
	}
	if next != 201 || q != nil {
		t.Errorf("popped %d elements, and the queue keeps memory: %v; want 200 and false", next-1, q != nil)
	}
}

// TestUnderLoad checks that a queue of Long elements or more is under load, and stays under load for Hold afterwards.
func TestUnderLoad(t *testing.T) {
	var q Watched[int]
	for range Long - 1 {
		q.Push(1)
	}
	const now = 5e9
	if q.UnderLoad(false, 0, 1, now) {
		t.Error("the queue is under load with fewer than Long elements")
	}
	q.Push(1)
	if !q.UnderLoad(false, 0, 1, now) {
		t.Error("the queue is not under load with Long elements")
	}
	q.Pop()
	for _, c := range []struct {
		more bool
		at   int64
		want bool
	}{
		{false, now + Hold - 1, true}, {false, now + Hold, false}, {false, now, false},
		{true, now + 1, true}, {false, now + Hold, true}, {false, now + Hold + 1, false},
	} {
		if got := q.UnderLoad(c.more, 0, 1, c.at); got != c.want {
			t.Errorf("more is %v, %d ns after the queue was long: under load %v, want %v", c.more, c.at-now, got, c.want)
		}
	}
}

// TestHeldUnderLoad checks that a short queue stays under load only as long as at least many (the constant) elements per Hold are
// put off.
func TestHeldUnderLoad(t *testing.T) {
	var q Watched[int]
	const many = 100
	now, putOff := 5*Hold, uint64(10*many) // these were put off before the queue was long, and do not count
	q.UnderLoad(true, putOff, many, now)
	for _, c := range []struct {
		after int64
		more  uint64
		want  bool
	}{
		{Hold - 1, many - 1, true}, {1, 1, true}, // just enough elements within Hold
		{Hold, many, true},
		{2 * Hold, 2*many - 1, false}, // after twice the time, these are fewer than many per Hold
		{Hold, 10 * many, false},      // the load is over, and a short queue is not under load again
	} {
		putOff += c.more
		now += c.after
		if got := q.UnderLoad(false, putOff, many, now); got != c.want {
			t.Errorf("%d more elements were put off within %d more ns: under load %v, want %v", c.more, c.after, got, c.want)
		}
	}
}
