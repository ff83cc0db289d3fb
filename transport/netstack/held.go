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
// Each kind may use a part of the budget, which is divided among the kind's holders. TCP may use all memory that holders do not
// use. If TCP uses all of it, the kinds other than handshakes may still use an eighth of the budget together, so the total may
// exceed the budget. Even if that eighth is used up, each holder may use its guaranteed minimum (leastDatagrams and so on).
//
// heldMemory counts the memory that each object takes, including its overhead, rather than the payload.
type heldMemory struct {
	mu    sync.Mutex   // guards total and all kinds; no other lock is taken with it held
	total int          // bytes
	given atomic.Int64 // bytes of the budget that TCP connections have: their floors and extras (see the type budget)

	datagrams, fragments, waiting, handshakes kind
}

// A kind is a kind of memory that peers can fill. A place of its quota is one byte.
type kind struct{ quota[holder] }

// A holder is one user of a kind of memory: a party or, for a socket of the program, that socket.
type holder struct {
	party  party
	socket *arrivals
}

// A party identifies a sender of packets: it is the public key of the sender's peer. If the Net does not know the peer, because
// the Net is not attached to a device for example, the party is the sender's address.
type party [32]byte

const (
	// These are the limits of each kind, in bytes, with a budget of defaultMemory. With another budget, the limits are in
	// proportion.
	maxDatagrams  = 16 << 20
	maxFragments  = 4 << 20
	maxConns      = 16 << 20
	maxHandshakes = 8 << 20

	// leastDatagrams is how many bytes of datagrams each UDPConn may always hold. The UDPConns of all flows that one peer began
	// share one such amount.
	leastDatagrams = 16 << 10
	// leastFragments is how many bytes of fragments each peer may always hold: about one packet of the largest size.
	leastFragments = 64 << 10
	// leastConns is how many bytes the connections of one peer that wait for Accept may always take: enough for four
	// connections.
	leastConns = 4 * waitingCost
)

func (h *heldMemory) init(total int64) {
	of := func(most int64, least int) kind {
		return kind{quota[holder]{limit: int(total / (defaultMemory / most)), least: least}}
	}
	h.datagrams, h.fragments = of(maxDatagrams, leastDatagrams), of(maxFragments, leastFragments)
	h.waiting, h.handshakes = of(maxConns, leastConns), of(maxHandshakes, 0)
}

// limit returns how many bytes the kind k may have now. k is not the kind handshakes. b.held.mu is held.
func (b *budget) limit(k *kind) int {
	h := &b.held
	all := max(int(b.total/8), int(b.total-h.given.Load())-h.handshakes.total)
	return min(k.limit, all-(h.total-h.handshakes.total-k.total))
}

// take takes n bytes of k for the given holder, and reports whether the holder gets these bytes.
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

// force takes n bytes of k for the given holder, however many bytes are free.
func (b *budget) force(k *kind, who holder, n int) {
	h := &b.held
	h.mu.Lock()
	defer h.mu.Unlock()
	k.force(who, n)
	h.total += n
}

// may reports whether the given holder could take a byte of k.
func (b *budget) may(k *kind, who holder) bool {
	b.held.mu.Lock()
	defer b.held.mu.Unlock()
	return k.may(who, b.limit(k))
}

// give gives back n bytes of k that the given holder has.
func (b *budget) give(k *kind, who holder, n int) {
	b.held.mu.Lock()
	defer b.held.mu.Unlock()
	k.give(who, n)
	b.held.total -= n
}

// others returns how many bytes are not available to TCP, because holders have them.
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
