package pipe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-86b749af/wireguard"
)

func TestFullQueueDrops(t *testing.T) {
	n, a, b := twoHosts(t, Config{Queue: 1})
	for i := range 70 {
		a.send(b, numbered(i, 1000))
	}
	if !equal(numbers(b.queued()), upTo(65)) {
		t.Error("the queue of 64 KiB does not hold exactly the first 65 datagrams of 1000 bytes")
	}
	n.wantFate(t, FateQueueFull, 5, "65 of 70 datagrams fit the queue")

	ts := []wireguard.Train{{Data: make([]byte, 60_000), Size: 1000, Endpoint: b.Endpoint(1000)}, {}}
	ts[1] = ts[0]
	a.s.Send(ts)
	if got := len(b.queued()); got != 65 || ts[1].Err != nil {
		t.Errorf("%d datagrams of two trains arrived, want 65; Send set the error %v, want none for a full queue", got, ts[1].Err)
	}
	n.wantFate(t, FateQueueFull, 60, "55 datagrams of the second train do not fit")
	n.Tap(func(Packet) {})
	for i := range 70 {
		a.send(b, numbered(i, 1000))
	}
	n.wantFate(t, FateQueueFull, 65, "with a tap, which makes the network handle datagrams singly, another 5 do not fit")
	n.wantBalance(t)
}

func TestManySmallTrainsFillAQueue(t *testing.T) {
	n, a, b := twoHosts(t, Config{Queue: 1})
	for i := range chunkTrains + 1 { // trains with different TOS are not joined
		a.s.Send([]wireguard.Train{{Data: []byte("x"), Size: 1, TOS: uint8(i), Endpoint: b.Endpoint(1000)}})
	}
	n.wantFate(t, FateQueueFull, 1, "the queue also limits the memory for trains")
}

func TestTrainsJoinUpToADatagramsSize(t *testing.T) {
	_, a, b := twoHosts(t, Config{})
	for range 64 {
		a.send(b, numbered(0, 1023))
	}
	a.send(b, numbered(0, 64)) // together 65,536 bytes
	ts, err := b.rx.Receive()
	if err != nil || len(ts) != 2 || ts[0].Len() != 64 || ts[1].Len() != 1 {
		t.Errorf("received %d trains, error %v; want one train of 64 datagrams, and the last datagram in a second train", len(ts), err)
	}
}

func TestPoolIsBounded(t *testing.T) {
	n, a, b := twoHosts(t, Config{Queue: 2 * poolChunks * chunkSize})
	for i := range 2 * poolChunks {
		a.send(b, numbered(i, 60_000))
	}
	b.queued()
	b.s.Close()
	b.rx.Receive()
	if len(n.pool.free) != poolChunks {
		t.Errorf("the pool keeps %d chunks, want %d", len(n.pool.free), poolChunks)
	}
}

func equal(a, b []int) bool {
	return len(a) == len(b) && (len(a) == 0 || a[0] == b[0] && equal(a[1:], b[1:]))
}

func TestReceiveIsABatch(t *testing.T) {
	_, a, b := twoHosts(t, Config{})
	for i := range 300 {
		a.send(b, numbered(i, 500))
	}
	var sizes []int
	for total := 0; total < 300; {
		ts, err := b.rx.Receive()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, t := range ts {
			n += t.Len()
		}
		sizes = append(sizes, n)
		total += n
	}
	if !equal(sizes, []int{128, 128, 44}) {
		t.Errorf("the calls of Receive returned %v datagrams, want 128, 128 and 44", sizes)
	}
}

// TestTrainsKeepTheirDatagrams checks that the datagrams of trains with random sizes are received unchanged and in order.
func TestTrainsKeepTheirDatagrams(t *testing.T) {
	_, a, b := twoHosts(t, Config{Queue: 16 << 20})
	c := newHost(t, a.network.NewEnd())
	random := rand.New(rand.NewPCG(1, 1))
	type datagram struct {
		from *host
		tos  uint8
		data string
	}
	var want []datagram
	for range 500 {
		sizes := []int{1, 32, 148, 1000, 1452, 65507}
		size, from, tos := sizes[random.IntN(len(sizes))], a, uint8(random.IntN(2))
		if random.IntN(4) == 0 {
			from = c
		}
		data := make([]byte, min(size*(1+random.IntN(3))-random.IntN(size), 65507))
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		ts := []wireguard.Train{{Data: data, Size: size, TOS: tos, Endpoint: b.Endpoint(1000)}}
		from.s.Send(ts)
		if ts[0].Err != nil {
			t.Fatal(ts[0].Err)
		}
		for d := data; len(d) > 0; d = d[min(size, len(d)):] {
			want = append(want, datagram{from, tos, string(d[:min(size, len(d))])})
		}
	}
	for len(want) > 0 {
		ts, err := b.rx.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, tr := range ts {
			if cap(tr.Data) != len(tr.Data) {
				t.Fatal("a train has spare capacity, so an append would overwrite the next train")
			}
			for d := tr.Data; len(d) > 0; d = d[min(tr.Size, len(d)):] {
				w := want[0]
				want = want[1:]
				if got := string(d[:min(tr.Size, len(d))]); got != w.data || tr.TOS != w.tos ||
					tr.Endpoint.Addr != w.from.Endpoint(1000).Addr {
					t.Fatalf("with %d datagrams to go, received %d bytes from %v, want %d bytes, with the data, the TOS and the sender unchanged", len(want), len(got), tr.Endpoint, len(w.data))
				}
			}
		}
	}
	b.want("all datagrams have been received")
}

// TestMemoryIsNotShared checks that senders and receivers use separate memory. The receiver overwrites the trains that Receive
// has returned, and the senders overwrite the data that they have sent.
func TestMemoryIsNotShared(t *testing.T) {
	const senders, each, size = 3, 400, 700
	n, a, b := twoHosts(t, Config{Queue: 16 << 20})
	hosts := []*host{a, newHost(t, n.NewEnd()), newHost(t, n.NewEnd())}
	var wg sync.WaitGroup
	for s, from := range hosts {
		wg.Go(func() {
			train := make([]byte, 3*size)
			for i := range each {
				for j := range 3 {
					d := train[j*size : (j+1)*size]
					for k := range d {
						d[k] = byte(s)
					}
					binary.BigEndian.PutUint32(d, uint32(3*i+j))
				}
				from.s.Send([]wireguard.Train{{Data: train, Size: size, Endpoint: b.Endpoint(1000)}})
				clear(train)
			}
		})
	}
	next := make(map[wireguard.Endpoint]uint32)
	var last []wireguard.Train
	for total := 0; total < senders*each*3; {
		for _, tr := range last {
			if bytes.ContainsFunc(tr.Data, func(r rune) bool { return r != 0x7f }) {
				t.Fatal("the memory of a received train changed before the next Receive")
			}
		}
		ts, err := b.rx.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, tr := range ts {
			for d := tr.Data; len(d) > 0; d = d[size:] {
				who := tr.Endpoint
				if got := binary.BigEndian.Uint32(d); got != next[who] || !hasOnly(d[4:size], hosts, who) {
					t.Fatalf("received datagram %d of %v, want datagram %d with its data unchanged", got, who, next[who])
				}
				next[who]++
				total++
			}
			for i := range tr.Data {
				tr.Data[i] = 0x7f
			}
		}
		last = ts
	}
	wg.Wait()
	n.wantBalance(t)
}

func hasOnly(d []byte, hosts []*host, who wireguard.Endpoint) bool {
	for s, h := range hosts {
		if h.Endpoint(1000).Addr == who.Addr {
			return bytes.Count(d, []byte{byte(s)}) == len(d)
		}
	}
	return false
}

func TestLentMemorySurvivesClose(t *testing.T) {
	n, a, b := twoHosts(t, Config{})
	c := newHost(t, n.NewEnd())
	for i := range 200 { // the first batch ends in the middle of a chunk
		a.send(b, numbered(i, 100))
	}
	ts, err := b.rx.Receive()
	if err != nil {
		t.Fatal(err)
	}
	b.s.Close()
	for i := range 3000 {
		a.send(c, numbered(i+1000, 100))
	}
	i := 0
	for _, tr := range ts {
		for d := tr.Data; len(d) > 0; d = d[100:] {
			if binary.BigEndian.Uint32(d) != uint32(i) {
				t.Fatalf("datagram %d was overwritten after Close", i)
			}
			i++
		}
	}
}

func TestNoAllocations(t *testing.T) {
	_, a, b := twoHosts(t, Config{})
	full := wireguard.Train{Data: make([]byte, 45*1452), Size: 1452, Endpoint: b.Endpoint(1000)}
	small := wireguard.Train{Data: make([]byte, 96), Size: 96, Endpoint: b.Endpoint(1000)}
	ts := []wireguard.Train{full, small, full}
	if n := testing.AllocsPerRun(100, func() {
		for range 3 {
			a.s.Send(ts)
		}
		for len(b.rx.(*queue).chunks) > 0 {
			b.rx.Receive()
		}
	}); n != 0 {
		t.Errorf("%v allocations for nine trains, want 0", n)
	}
}

func TestIdleSocketHoldsNoMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b := twoHosts(t, Config{})
		go func() {
			for err := error(nil); err == nil; _, err = b.rx.Receive() {
			}
		}()
		for range 10 * poolChunks {
			ts := []wireguard.Train{{Data: make([]byte, 60_000), Size: 60_000, Endpoint: b.Endpoint(1000)}}
			a.s.Send(ts)
		}
		synctest.Wait()
		q := b.rx.(*queue)
		if len(q.chunks) != 0 || len(q.lent) != 0 || len(n.pool.free) > poolChunks {
			t.Errorf("the idle socket has %d chunks in its queue and %d lent, want none; the pool has %d free, want few", len(q.chunks), len(q.lent), len(n.pool.free))
		}
		b.s.Close()
	})
}

func TestLossless(t *testing.T) {
	const count = 5000
	n, a, b := twoHosts(t, Config{Lossless: true, Queue: 1})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range count {
			a.trySend(b.Endpoint(1000), numbered(i, 1000))
		}
	})
	var got []int
	for len(got) < count {
		ts, err := b.rx.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, tr := range ts {
			for d := tr.Data; len(d) > 0; d = d[1000:] {
				got = append(got, int(binary.BigEndian.Uint32(d)))
			}
		}
	}
	wg.Wait()
	if !equal(got, upTo(count)) {
		t.Error("a datagram was lost or reordered")
	}
	n.wantFate(t, FateDelivered, count, "a lossless network drops nothing")
}

func TestLosslessSenderWaits(t *testing.T) {
	for _, which := range []string{"sender", "receiver"} {
		synctest.Test(t, func(t *testing.T) {
			n, a, b := twoHosts(t, Config{Lossless: true, Queue: 1})
			done := make(chan error)
			for range 2 {
				go func() {
					ts := []wireguard.Train{{Data: make([]byte, 65_000), Size: 1000, Endpoint: b.Endpoint(1000)}}
					a.s.Send(ts)
					done <- ts[0].Err
				}()
			}
			if err := <-done; err != nil {
				t.Error("the first train fits the queue, but Send failed:", err)
			}
			time.Sleep(time.Hour)
			select {
			case <-done:
				t.Error("the second train does not fit the queue, but Send did not wait")
			default:
			}
			if which == "sender" {
				a.s.Close()
				if err := <-done; !errors.Is(err, net.ErrClosed) {
					t.Errorf("Send: %v, want net.ErrClosed", err)
				}
				n.wantFate(t, FateQueueFull, 65, "the sender was closed while it waited")
			} else {
				b.s.Close()
				if err := <-done; err != nil {
					t.Errorf("Send: %v, want no error when the receiver's socket is closed", err)
				}
				n.wantFate(t, FateNoSocket, 65, "the receiver's socket was closed")
			}
			n.wantBalance(t)
		})
	}
}

// BenchmarkPipeline measures sending batches of 128 datagrams from one goroutine to another.
func BenchmarkPipeline(b *testing.B) {
	const size = 1452
	_, tx, rx := twoHosts(b, Config{Lossless: true})
	to := rx.Endpoint(1000)
	data := make([]byte, 128*size)
	ts := []wireguard.Train{
		{Data: data[:45*size], Size: size, Endpoint: to},
		{Data: data[45*size : 90*size], Size: size, Endpoint: to},
		{Data: data[90*size:], Size: size, Endpoint: to},
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(data)))
	var wg sync.WaitGroup
	wg.Go(func() {
		for err := error(nil); err == nil; _, err = rx.rx.Receive() {
		}
	})
	for b.Loop() {
		tx.s.Send(ts)
	}
	rx.s.Close()
	wg.Wait()
}
