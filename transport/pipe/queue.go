package pipe

import (
	"slices"
	"sync"

	"github.com/seed-86b749af/wireguard"
)

const (
	chunkSize   = 64 << 10 // bytes of data per chunk; any datagram fits
	chunkTrains = 128      // maximum number of trains in a chunk
	batchSize   = 128      // maximum number of datagrams that one Receive returns
	poolChunks  = 32       // maximum number of free chunks that a network keeps (2 MiB)
)

// A chunk is memory for trains, which lie in it without gaps.
type chunk struct {
	data   [chunkSize]byte
	used   int // bytes of data that are in use
	trains []wireguard.Train
	next   int  // index of the first train that Receive has not returned completely
	lent   bool // Receive has returned at least a part of the chunk
}

// A pool keeps free chunks. get returns the chunk that was put in last, because this one is probably still in a cache.
type pool struct {
	mu   sync.Mutex // guards free; no other mutex is locked while it is held
	free []*chunk
}

func (p *pool) get() *chunk {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) == 0 {
		return new(chunk)
	}
	c := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return c
}

func (p *pool) put(cs []*chunk) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range cs {
		clear(c.trains)
		c.used, c.next, c.trains, c.lent = 0, 0, c.trains[:0], false
		if len(p.free) < poolChunks {
			p.free = append(p.free, c)
		}
	}
	clear(cs)
}

// A queue holds the trains that have arrived at a socket. It is the socket's wireguard.Receiver.
//
//	chunks   ▓▓▓▓▓▓▓▓▓▓  ▓▓▓▓▓░░░░░   senders append at the end, Receive removes from the front
//	lent     ▓▓▓▓▓▓▓▓▓▓               Receive has returned all of it; the next Receive returns it to the pool
type queue struct {
	network *Network

	mu     sync.Mutex // guards the fields below except batch
	ready  sync.Cond  // signalled when chunks gets a train, or when closed is set
	room   sync.Cond  // signalled when there may be space in chunks, or when a socket is closed
	chunks []*chunk
	lent   []*chunk
	closed bool

	batch []wireguard.Train // the result of the last Receive; used by Receive only
}

func (q *queue) init(n *Network) {
	q.network = n
	q.ready.L, q.room.L = &q.mu, &q.mu
}

// put copies the datagrams of t into the queue. It returns how many bytes of t it has copied, and whether the queue is open. The
// parameter waiting is the sending socket, or nil. If it is not nil and the queue is full, put waits for space until the queue or
// the sending socket is closed.
func (q *queue) put(t *wireguard.Train, waiting *socket) (done int, open bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for done < len(t.Data) {
		if q.closed {
			break
		}
		c := q.tail(min(t.Size, len(t.Data)-done))
		if c == nil {
			if waiting == nil || waiting.closed.Load() {
				break
			}
			q.room.Wait()
			continue
		}
		done += c.append(t, done)
		q.ready.Signal()
	}
	return done, !q.closed
}

// tail returns the chunk to which a datagram of n bytes must be appended, or nil if the queue is full.
func (q *queue) tail(n int) *chunk {
	if last := len(q.chunks) - 1; last >= 0 {
		if c := q.chunks[last]; c.used+n <= chunkSize && len(c.trains) < chunkTrains {
			return c
		}
	}
	if len(q.chunks) >= q.network.limit {
		return nil
	}
	c := q.network.pool.get()
	q.chunks = append(q.chunks, c)
	return c
}

// append copies as many datagrams of t as fit into the chunk, starting at byte number from, and returns how many bytes it has
// copied. If possible, it extends the last train of the chunk instead of adding another train, as UDP GRO does.
func (c *chunk) append(t *wireguard.Train, from int) (n int) {
	data := t.Data[from:]
	if room := chunkSize - c.used; len(data) > room {
		data = data[:room-room%t.Size]
	}
	at := c.used
	n = copy(c.data[at:], data)
	c.used += n
	if last := len(c.trains) - 1; last >= 0 {
		if l := &c.trains[last]; continues(l, t, n) {
			l.Data = c.data[at-len(l.Data) : at+n : at+n]
			return n
		}
	}
	c.trains = append(c.trains, wireguard.Train{
		Data: c.data[at : at+n : at+n], Size: min(t.Size, n), Endpoint: t.Endpoint, TOS: t.TOS,
	})
	return n
}

// continues reports whether n bytes of t can be appended to the train l. The last datagram of l must have the full size of l.
// The datagrams of t must have that size too, or the n bytes must be one smaller datagram.
func continues(l, t *wireguard.Train, n int) bool {
	return l.Endpoint == t.Endpoint && l.TOS == t.TOS && len(l.Data)%l.Size == 0 &&
		(t.Size == l.Size || n <= l.Size && n <= t.Size) && len(l.Data)+n <= maxDatagram
}

// Receive waits until the queue has a datagram, and returns up to 128 datagrams.
func (q *queue) Receive() ([]wireguard.Train, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.network.pool.put(q.lent)
	q.lent = q.lent[:0]
	for len(q.chunks) == 0 || q.closed {
		if q.closed {
			return nil, errClosed
		}
		q.ready.Wait()
	}
	q.batch = q.batch[:0]
	taken := 0
	for budget := batchSize; taken < len(q.chunks) && budget > 0; {
		if q.batch, budget = q.chunks[taken].take(q.batch, budget); q.chunks[taken].empty() {
			taken++
		}
	}
	q.lent = append(q.lent, q.chunks[:taken]...)
	q.chunks = slices.Delete(q.chunks, 0, taken)
	if q.network.lossless && taken > 0 {
		q.room.Broadcast()
	}
	return q.batch, nil
}

// take appends trains with at most budget datagrams in all to batch. It returns batch, and the number of datagrams by which it
// stayed below budget.
func (c *chunk) take(batch []wireguard.Train, budget int) ([]wireguard.Train, int) {
	c.lent = true
	for !c.empty() && budget > 0 {
		t := &c.trains[c.next]
		if n := t.Len(); n <= budget {
			batch, budget = append(batch, *t), budget-n
			c.next++
			continue
		}
		part, rest := *t, budget*t.Size
		part.Data = t.Data[:rest:rest]
		t.Data = t.Data[rest:]
		batch, budget = append(batch, part), 0
	}
	return batch, budget
}

func (c *chunk) empty() bool { return c.next == len(c.trains) }

// close drops the trains in the queue. The memory of trains that Receive has returned stays unchanged until the next Receive, or
// for ever if there is none.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	if len(q.chunks) > 0 && q.chunks[0].lent {
		q.chunks = q.chunks[1:]
	}
	q.network.pool.put(q.chunks)
	q.chunks = nil
	q.ready.Broadcast()
	q.room.Broadcast()
}

// wakeSenders makes goroutines that wait in put check again whether their own socket is open.
func (q *queue) wakeSenders() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.room.Broadcast()
}
