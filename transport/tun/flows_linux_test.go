//go:build linux && !android

package tun

import (
	"bytes"
	"math/rand"
	"testing"
)

// reverse returns a packet of the same flow in the other direction.
func reverse(p []byte, s shape) []byte {
	q := bytes.Clone(p)
	at, n := 12, 4
	if p[0]>>4 == 6 {
		at, n = 8, 16
	}
	copy(q[at:], p[at+n:at+2*n])
	copy(q[at+n:], p[at:at+n])
	copy(q[s.l3:], p[s.l3+2:s.l3+4])
	copy(q[s.l3+2:], p[s.l3:s.l3+2])
	return q
}

// TestFlows checks that the packets of a flow are written to the queue from which the flow was last read. If no packet of a
// flow was read, its packets are all written to one queue.
func TestFlows(t *testing.T) {
	const queues = 4
	var used [queues]int
	for i := range 200 {
		f := new(flows)
		p, s := newPacket(rand.New(rand.NewSource(int64(i))), i&1 != 0, i&2 != 0, 0, 100)
		first := f.queue(p, queues)
		used[first]++
		for queue := range queues {
			f.seen(reverse(p, s), queue)
			if got := f.queue(p, queues); got != queue {
				t.Fatalf("packet %d is written to queue %d, but its flow was last read from queue %d", i, got, queue)
			}
		}
		other, _ := newPacket(rand.New(rand.NewSource(int64(1000+i))), i&1 != 0, i&2 != 0, 0, 100)
		if got, want := f.queue(other, queues), new(flows).queue(other, queues); got != want {
			t.Errorf("packet %d: a flow of which no packet was read is written to queue %d, want %d", i, got, want)
		}
		if i&1 == 0 { // all fragments of a datagram must have the same queue, although only the first contains the ports
			p[6] = 0x20
			q := bytes.Clone(p)
			q[7] = 10
			q[s.l3]++
			if f.queue(p, queues) != f.queue(q, queues) {
				t.Errorf("packet %d: two fragments of one datagram are written to two queues", i)
			}
		}
	}
	for queue, n := range used {
		if n < 20 {
			t.Errorf("queue %d gets %d of 200 flows, want at least 20", queue, n)
		}
	}
	for _, p := range [][]byte{nil, {0x45}, make([]byte, 20), {0x60, 19: 0}} {
		new(flows).queue(p, queues)
	}
}
