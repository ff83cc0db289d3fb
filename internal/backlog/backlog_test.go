package backlog

import "testing"

func TestQueue(t *testing.T) {
	var q Queue[int]
	if q.Pop() != 0 {
		t.Error("an empty queue has an element")
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
		t.Errorf("%d elements were popped, and memory is left: %v", next-1, q != nil)
	}
}

// TestUnderLoad: a queue of Long elements or more is under load, and stays so for Hold after that.
func TestUnderLoad(t *testing.T) {
	var q Watched[int]
	for range Long - 1 {
		q.Push(1)
	}
	const now = 5e9
	if q.UnderLoad(false, now) {
		t.Error("under load before the queue is long")
	}
	q.Push(1)
	if !q.UnderLoad(false, now) {
		t.Error("not under load with a long queue")
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
		if got := q.UnderLoad(c.more, c.at); got != c.want {
			t.Errorf("more %v, at %d: under load %v, want %v", c.more, c.at-now, got, c.want)
		}
	}
}
