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

// Only the field mac1 of an initiation shows which device the initiation is for: "MAC(HASH(Label-Mac1 || Spub_m'), msg_a)"
// (whitepaper, section 5.4.4). Checking mac1 takes one hash per device. If tenants are known for the sender's address, the Shared
// tries an initiation with their keys, at most 8, as soon as it arrives. If none fits, the initiation waits in a queue. One
// goroutine, the worker, tries the queued initiations with the keys of all tenants. The worker uses at most half of a core:
//
//	meant ─▶ known: the last tenants that the source shook hands with ─▶ post
//	      ─▶ strangers: a queue, with a limit per source ─▶ try: every tenant's key ─▶ post

// A mac1 checks whether an initiation is for the device with a given public key.
type mac1 struct {
	mu sync.Mutex // guards h
	h  hash.Hash  // keyed with the public key; nil if there is no key
}

func (c *mac1) set(key wireguard.PublicKey) {
	var h hash.Hash
	if !key.IsZero() {
		k := blake2s.Sum256(append([]byte("mac1----"), key[:]...))
		var err error
		if h, err = blake2s.New128(k[:]); err != nil {
			panic(err) // cannot happen: New128 accepts any key of 1 to 32 bytes
		}
	}
	c.mu.Lock()
	c.h = h
	c.mu.Unlock()
}

// fits reports whether the initiation m has a mac1 that was made with the key.
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

// sourceOf returns the source to which the address a belongs. The limits for initiations and the lists of known tenants apply to
// a source. For an IPv4 address, this is the address itself. For an IPv6 address, it is the /64 network, since a host can send
// from all addresses of its network.
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

// knownSources stores, for each source, the tenants that have sent handshake messages to it. The zero value is empty.
type knownSources struct {
	mu  sync.RWMutex           // guards the fields below
	now map[netip.Addr]tenants // receives new entries, and is searched first
	old map[netip.Addr]tenants // the entries that were in now when it became full; an entry that learn uses moves back to now
}

const (
	maxKnown     = 1 << 16 // maximum number of sources per map
	seatsPerHost = 8       // maximum number of tenants that are stored per source
)

// tenants is a list of the tenants that are known for one source, the latest first. It holds their seats, which are their
// positions in Shared.seats.
type tenants struct {
	n     int8
	seats [seatsPerHost]uint16
}

// of returns the tenants that are known for the source.
func (k *knownSources) of(source netip.Addr) tenants {
	k.mu.RLock()
	defer k.mu.RUnlock()
	s, ok := k.now[source]
	if !ok {
		s = k.old[source]
	}
	return s
}

// learn stores that the tenant with this seat has sent a handshake message to the source. The tenant becomes the first one in
// the source's list. If the list is full, the last tenant is removed.
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

// strangers is the queue of the initiations that fit no tenant known for their source. The zero value is empty.
type strangers struct {
	mu      sync.Mutex // guards the fields below
	queue   []*stranger
	waiting map[netip.Addr]int // number of initiations in the queue, by source
	working bool               // the worker runs: the goroutine that tries the initiations, which ends when the queue is empty
	closed  bool
	worker  sync.WaitGroup
}

// A stranger is an initiation in the queue.
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

	// Initiations that have waited for longer than strangerLife are dropped, because the peer sends a new one after 5 s.
	strangerLife = 5 * time.Second

	// After trialTime of work, the worker pauses for as long as it has worked. So it uses at most half of a core.
	trialTime = 5 * time.Millisecond
)

// push adds a copy of the initiation m to the queue, and reports whether the limits permitted that. m is a datagram of t.
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

// pop removes the oldest initiation from the queue and returns it. If the queue is empty or closed, pop returns nil. The worker
// must then end.
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

// work tries the initiations in the queue until the queue is empty or closed. It runs on the goroutine called the worker.
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

// try checks for each tenant whether the initiation x is for it, and posts x to the tenant that it finds.
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

// close makes the worker drop the initiations in the queue, and waits until the worker has ended.
func (q *strangers) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.worker.Wait()
}
