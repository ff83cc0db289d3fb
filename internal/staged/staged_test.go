package staged

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

func TestQueue(t *testing.T) {
	var q Queue
	n, popped := 0, 0
	push := func() {
		if dropped := q.Push([]byte{byte(n)}, 1<<20); dropped != 0 {
			t.Fatalf("Push dropped %d packets from a queue that is not full", dropped)
		}
		n++
	}
	pop := func() {
		t.Helper()
		if q.Oldest()[0] != byte(popped) {
			t.Fatalf("Oldest did not return packet %d", popped)
		}
		q.Pop()
		popped++
	}
	push()
	pop()
	for range 5 {
		push()
		push()
		pop()
	}
	if int(q.N) != n-popped || int(q.Bytes) != (n-popped)*(Small+Overhead) {
		t.Errorf("the queue has %d packets with %d bytes, want %d packets", q.N, q.Bytes, n-popped)
	}
	for popped < n {
		pop()
	}
	if q != (Queue{}) {
		t.Error("an empty queue is not the zero value")
	}
}

// TestQueueBounds checks that a full queue drops its oldest packets for the newest. A queue has at most Max packets. It has at
// most limit bytes, unless it has only one packet.
func TestQueueBounds(t *testing.T) {
	var q Queue
	for i := range Max + 3 {
		if dropped := q.Push([]byte{byte(i)}, 1<<20); dropped != max(0, min(1, i-Max+1)) {
			t.Fatalf("Push of packet %d dropped %d packets", i, dropped)
		}
	}
	if q.N != Max || q.Oldest()[0] != 3 {
		t.Errorf("the queue has %d packets, the oldest is %d; want %d, and 3 as the oldest", q.N, q.Oldest()[0], Max)
	}
	if dropped := q.Clear(); dropped != Max || q != (Queue{}) {
		t.Errorf("Clear returned %d dropped packets, want all, and an empty queue", dropped)
	}
	const limit = 3 * (Small + Overhead)
	for range 3 {
		q.Push(make([]byte, Small), limit)
	}
	if dropped := q.Push(make([]byte, Small), limit); dropped != 1 || q.N != 3 {
		t.Errorf("the fourth packet dropped %d packets, want 1", dropped)
	}
	large := bytes.Repeat([]byte{7}, Large+1)
	if dropped := q.Push(large, limit); dropped != 3 || q.N != 1 || !bytes.Equal(q.Oldest(), large) {
		t.Errorf("a packet larger than the limit dropped %d packets, want 3", dropped)
	}
	if q.Push(nil, limit); q.N != 1 || len(q.Oldest()) != 0 {
		t.Error("Push did not stage an empty packet in place of the large one")
	}
}

// TestPoolModel checks that a Pool knows the sum of all accounts, and finds a party that takes the most memory.
func TestPoolModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var pool Pool[int]
		var accounts [5]Account
		var model [5]int32
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			i := rapid.IntRange(0, 4).Draw(t, "party")
			model[i] = rapid.Int32Range(0, 3).Draw(t, "bytes")
			pool.Count(i, &accounts[i], model[i])
			sum, most, holders := int64(0), int32(0), 0
			for _, bytes := range model {
				sum, most = sum+int64(bytes), max(most, bytes)
				if bytes > 0 {
					holders++
				}
			}
			if pool.Bytes() != sum || len(pool.holders) != holders {
				t.Fatalf("the pool counts %d bytes of %d parties, want %d of %d", pool.Bytes(), len(pool.holders), sum, holders)
			}
			if p, ok := pool.Largest(0); ok != (sum > 0) || ok && model[p] != most {
				t.Fatalf("the accounts are %v, but Largest returned party %d, %v", model, p, ok)
			}
			if _, ok := pool.Largest(sum); ok {
				t.Fatal("Largest returned a party, although the pool does not exceed the limit")
			}
		}
	})
}
