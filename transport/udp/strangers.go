package udp

import (
	"crypto/subtle"
	"hash"
	"net/netip"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/crypto/blake2s"
)

// Only mac1 tells which of many devices an initiation is for: "MAC(HASH(Label-Mac1 || Spub_m'), msg_a)" (whitepaper,
// section 5.4.4). Checking it takes one hash per key. So an initiation is tried with few keys if its sender is known, and
// otherwise waits until it can be tried with all, in a bounded share of one core:
//
//	meant ─▶ known: the last tenants that the source shook hands with ─▶ post
//	      ─▶ strangers: a queue, with a limit per source ─▶ try: every tenant's key ─▶ post

// A mac1 checks whether initiations are for the owner of a public key.
type mac1 struct {
	mu sync.Mutex // guards h
	h  hash.Hash  // nil means that there is no key
}

func (c *mac1) set(key wireguard.PublicKey) {
	var h hash.Hash
	if !key.IsZero() {
		k := blake2s.Sum256(append([]byte("mac1----"), key[:]...))
		var err error
		if h, err = blake2s.New128(k[:]); err != nil {
			panic(err) // any key of 1 to 32 bytes is accepted
		}
	}
	c.mu.Lock()
	c.h = h
	c.mu.Unlock()
}

// fits reports whether m, an initiation, has the mac1 of the key.
func (c *mac1) fits(m []byte) bool {
	const at, size = initiationSize - 32, 16
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.h == nil {
		return false
	}
	var want [size]byte
	c.h.Reset()
	c.h.Write(m[:at])
	c.h.Sum(want[:0])
	return subtle.ConstantTimeCompare(want[:], m[at:at+size]) == 1
}

// sourceOf returns a if it is an IPv4 address. For an IPv6 address it returns the /64 network, since a host can send from
// all addresses of its network.
func sourceOf(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is4() {
		return a
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr()
}

// knownSources remembers the tenants that a source shook hands with. The zero value is empty.
type knownSources struct {
	mu  sync.RWMutex           // guards the fields below
	now map[netip.Addr]tenants // takes new entries, and is searched first
	old map[netip.Addr]tenants // what was in now until it was full; entries in use move back to now
}

const (
	maxKnown     = 1 << 16 // sources, in each map
	seatsPerHost = 8       // the tenants of one source that are remembered
)

// tenants are the seats of the tenants that a source talks to, the latest first.
type tenants struct {
	n     int8
	seats [seatsPerHost]uint16
}

// of returns the tenants that the source shook hands with.
func (k *knownSources) of(source netip.Addr) tenants {
	k.mu.RLock()
	defer k.mu.RUnlock()
	s, ok := k.now[source]
	if !ok {
		s = k.old[source]
	}
	return s
}

// learn makes the tenant with the seat the first one that is tried for the source.
func (k *knownSources) learn(source netip.Addr, seat uint16) {
	if !source.IsValid() {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.now[source]
	if ok && s.seats[0] == seat {
		return
	}
	if !ok {
		s = k.old[source]
		if len(k.now) >= maxKnown {
			k.old, k.now = k.now, nil
		}
		if k.now == nil {
			k.now = make(map[netip.Addr]tenants)
		}
	}
	at := 0
	for at < int(s.n) && s.seats[at] != seat {
		at++
	}
	if at == int(s.n) && at < seatsPerHost {
		s.n++
	}
	copy(s.seats[1:], s.seats[:min(at, seatsPerHost-1)])
	s.seats[0] = seat
	k.now[source] = s
}

// strangers is the queue of initiations from sources that are not known to talk to their receiver. The zero value is empty.
type strangers struct {
	mu      sync.Mutex // guards the fields below
	queue   []*stranger
	waiting map[netip.Addr]int // by source
	working bool               // there is a worker; it ends when the queue is empty
	closed  bool
	worker  sync.WaitGroup
}

// A stranger is an initiation that waits.
type stranger struct {
	source   netip.Addr
	endpoint wireguard.Endpoint
	tos      uint8
	at       time.Time // when it arrived
	message  [initiationSize]byte
}

const (
	maxStrangers   = 4096
	maxOfOneSource = 256

	// A sender sends its next initiation after 5 s, so an older one is dropped.
	strangerLife = 5 * time.Second

	// After trialTime of work, the worker pauses for as long, so that it takes half of a core.
	trialTime = 5 * time.Millisecond
)

// push queues a copy of the initiation m of t, and reports whether there was room.
func (q *strangers) push(s *Shared, source netip.Addr, m []byte, t *wireguard.Train) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.queue) >= maxStrangers || q.waiting[source] >= maxOfOneSource {
		return false
	}
	if q.waiting == nil {
		q.waiting = make(map[netip.Addr]int)
	}
	x := &stranger{source: source, endpoint: t.Endpoint, tos: t.TOS, at: time.Now()}
	copy(x.message[:], m)
	q.queue = append(q.queue, x)
	q.waiting[source]++
	if !q.working {
		q.working = true
		q.worker.Go(func() { q.work(s) })
	}
	return true
}

// pop takes the oldest initiation out of the queue. If there is none, or the Shared is closed, it returns nil, and the
// worker ends.
func (q *strangers) pop() *stranger {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.queue) == 0 {
		q.queue, q.waiting, q.working = nil, nil, false
		return nil
	}
	x := q.queue[0]
	q.queue[0] = nil
	q.queue = q.queue[1:]
	if q.waiting[x.source]--; q.waiting[x.source] == 0 {
		delete(q.waiting, x.source)
	}
	return x
}

// work tries the initiations of the queue until it is empty.
func (q *strangers) work(s *Shared) {
	begin := time.Now()
	for x := q.pop(); x != nil; x = q.pop() {
		now := time.Now()
		if now.Sub(x.at) > strangerLife {
			s.counts.refused.Add(1)
			continue
		}
		s.try(x)
		if spent := time.Since(begin); spent >= trialTime {
			time.Sleep(spent)
			begin = time.Now()
		}
	}
}

// try looks among all tenants for the one that x is for.
func (s *Shared) try(x *stranger) {
	s.counts.tried.Add(1)
	for i := range s.top.Load() {
		if t := s.seats[i].Load(); t != nil && t.isMeant(x.message[:]) {
			train := wireguard.Train{Data: x.message[:], Size: initiationSize, Endpoint: x.endpoint, TOS: x.tos}
			t.post(&train, train.Data)
			return
		}
	}
	s.counts.unclaimed.Add(1)
}

// close lets the worker drop the queue, and waits until the worker has ended.
func (q *strangers) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.worker.Wait()
}
