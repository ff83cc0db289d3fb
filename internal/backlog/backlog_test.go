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
	if q.UnderLoad(false, 0, 1, now) {
		t.Error("under load before the queue is long")
	}
	q.Push(1)
	if !q.UnderLoad(false, 0, 1, now) {
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
		if got := q.UnderLoad(c.more, 0, 1, c.at); got != c.want {
			t.Errorf("more %v, at %d: under load %v, want %v", c.more, c.at-now, got, c.want)
		}
	}
}

// TestHeldUnderLoad: a short queue stays under load while many elements per Hold are put off, and no longer.
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
		{Hold - 1, many - 1, true}, {1, 1, true}, // as many within Hold as are needed
		{Hold, many, true},
		{2 * Hold, 2*many - 1, false}, // asked after twice the time: less than many per Hold
		{Hold, 10 * many, false},      // the load is over, and a short queue does not begin another
	} {
		putOff += c.more
		now += c.after
		if got := q.UnderLoad(false, putOff, many, now); got != c.want {
			t.Errorf("%d were put off within %d more ns: under load %v, want %v", c.more, c.after, got, c.want)
		}
	}
}
