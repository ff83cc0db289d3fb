package netstack

import (
	"math/bits"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/seed-86b749af/wireguard"
)

// Besides the buffers of TCP connections, peers can fill other kinds of memory, which also count against Config.Memory:
//
//   - datagrams that wait in a UDPConn (arrivals.go);
//   - fragments that wait for the rest of their packet (reassemble.go);
//   - connections that wait for Accept, and half-open ones (waiting.go);
//   - packets that wait for a decision of Config.Forward, or in a UDPSource (forward_flow.go).
//
// Each kind has a share of the budget, which is divided among its holders. TCP may use whatever the holders do not use. If TCP uses
// all of that, the kinds other than handshakes may still take an eighth of the budget together. Even when that eighth is used up,
// each holder may still hold its guaranteed minimum (leastDatagrams and so on).
//
// heldMemory counts the memory that each object takes, including its overhead, rather than the payload.
type heldMemory struct {
	mu    sync.Mutex   // guards total and all kinds; no other lock is taken with it held
	total int          // bytes
	given atomic.Int64 // bytes that TCP has: its floors and extras

	datagrams, fragments, waiting, handshakes kind
}

// A kind is one kind of memory. The places of its quota are bytes.
type kind struct{ quota[holder] }

// A holder is whoever fills a kind of memory: a party or, for the program's own sockets, a socket.
type holder struct {
	party  party
	socket *arrivals
}

// A party is whoever sends packets from one peer: the peer's key or, if the Net is not attached to anything that knows the peer,
// an address.
type party [32]byte

const (
	// These are the most bytes of each kind with a budget of defaultMemory. With another budget, they are in proportion.
	maxDatagrams  = 16 << 20
	maxFragments  = 4 << 20
	maxConns      = 16 << 20
	maxHandshakes = 8 << 20

	// leastDatagrams is how many bytes of datagrams each UDPConn may always hold. All flows that one peer began share one such
	// amount.
	leastDatagrams = 16 << 10
	// leastFragments is how many bytes of fragments each peer may always hold: about one packet of the largest size.
	leastFragments = 64 << 10
	// leastConns is how many bytes each peer's connections that wait for Accept may always hold: enough for four of them.
	leastConns = 4 * waitingCost
)

func (h *heldMemory) init(total int64) {
	of := func(most int64, least int) kind {
		return kind{quota[holder]{limit: int(total / (defaultMemory / most)), least: least}}
	}
	h.datagrams, h.fragments = of(maxDatagrams, leastDatagrams), of(maxFragments, leastFragments)
	h.waiting, h.handshakes = of(maxConns, leastConns), of(maxHandshakes, 0)
}

// limit returns how many bytes k, which is not handshakes, may have now. b.held.mu is held.
func (b *budget) limit(k *kind) int {
	h := &b.held
	all := max(int(b.total/8), int(b.total-h.given.Load())-h.handshakes.total)
	return min(k.limit, all-(h.total-h.handshakes.total-k.total))
}

// take takes n bytes of k for a holder, and reports whether the holder gets them.
func (b *budget) take(k *kind, who holder, n int) bool {
	h := &b.held
	h.mu.Lock()
	defer h.mu.Unlock()
	if !k.takeOf(who, n, b.limit(k)) {
		return false
	}
	h.total += n
	return true
}

// takeBeyond is like take, but it also takes the bytes if k then exceeds its limit by no more than excess bytes.
func (b *budget) takeBeyond(k *kind, who holder, n, excess int) bool {
	h := &b.held
	h.mu.Lock()
	defer h.mu.Unlock()
	if limit := b.limit(k); !k.may(who, limit) && k.total+n > limit+excess {
		return false
	}
	k.force(who, n)
	h.total += n
	return true
}

// force takes n bytes of k for a holder, whatever others hold.
func (b *budget) force(k *kind, who holder, n int) {
	h := &b.held
	h.mu.Lock()
	defer h.mu.Unlock()
	k.force(who, n)
	h.total += n
}

// may reports whether a holder could take a byte of k.
func (b *budget) may(k *kind, who holder) bool {
	b.held.mu.Lock()
	defer b.held.mu.Unlock()
	return k.may(who, b.limit(k))
}

// give gives back n bytes of k that a holder has.
func (b *budget) give(k *kind, who holder, n int) {
	b.held.mu.Lock()
	defer b.held.mu.Unlock()
	k.give(who, n)
	b.held.total -= n
}

// others returns how many bytes TCP cannot have because holders have them.
func (b *budget) others() int64 {
	b.held.mu.Lock()
	defer b.held.mu.Unlock()
	return int64(b.held.total)
}

// partyOf returns the party that sends packets from a, or receives packets at a.
func (l *link) partyOf(a netip.Addr) party {
	if r := l.peers.Load(); r != nil {
		if peer, ok := (*r).Route(a); ok {
			return party(peer)
		}
	}
	b := a.As16()
	return party(append(b[:], make([]byte, len(party{})-len(b))...))
}

func partyHolder(peer wireguard.PublicKey) holder { return holder{party: party(peer)} }

// allocated returns roughly how many bytes of memory one allocation of n bytes takes. Go rounds sizes up by an eighth at most.
func allocated(n int) int {
	if n == 0 {
		return 0
	}
	if n <= 64 {
		return 64
	}
	step := 1 << max(bits.Len(uint(n))-4, 3)
	return (n + step - 1) &^ (step - 1)
}
