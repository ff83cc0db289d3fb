// Package errorlimit limits how many ICMP errors a tunnel sends to each party, which is the sender of packets that cause errors.
package errorlimit

import (
	"hash/maphash"
	"sync"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

const (
	errorsPerSecond = 100
	errorsAtOnce    = 20
	parties         = 1024
	probes          = 8 // the number of elements of the table in which a party's entry may be

	errorCost = 1_000_000_000 / errorsPerSecond // how long, in nanoseconds, a limit takes to allow one more error again
)

// A Limit limits ICMP errors as a router does: 100 per second, and 20 at once. Each party has a separate limit, so that no party
// can use up the limit of another. A Limit has entries for 1,024 parties that caused errors within the last 0.2 s. If there are
// more such parties, some parties share a limit, and a secret hash chooses which ones. To use up all limits, 1,024 parties have to
// cause 100,000 errors per second together. The zero value is ready, and has no memory yet. A Limit is safe for concurrent use. No
// other lock is taken while its lock is held.
type Limit struct {
	mu    sync.Mutex // guards all below
	seed  maphash.Seed
	table *[parties]entry
}

// An entry is the limit of a party. Another party may get the entry from the time due on.
type entry struct {
	party uint64 // the hash of its name
	due   int64  // when the party may again cause errorsAtOnce errors at once, in nanoseconds on the caller's clock
}

// Allow reports whether the limit of a party allows one more error at the time now, in nanoseconds. If so, Allow counts the
// error.
func (l *Limit) Allow(party []byte, now int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	due := l.of(party, now)
	if !mayAdd(*due, now) {
		return false
	}
	*due = max(*due, now) + errorCost
	return true
}

// Answer makes the ICMP error for the sender of the packet p. The error says that p is larger than mtu or, if mtu is 0, that p's
// destination cannot be reached. Answer returns nil if no error may be sent (see packet.Unreachable), or if the limit of p's
// sender is used up. The party is the sender's IPv4 address, or the /64 network of its IPv6 address. A packet that may not be
// answered does not count against the limit.
func (l *Limit) Answer(p []byte, mtu int, now int64) []byte {
	party := packet.Sender(p)
	if party == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	due := l.of(party, now)
	if !mayAdd(*due, now) {
		return nil
	}
	reply := packet.Unreachable(p)
	if mtu > 0 {
		reply = packet.TooBig(p, mtu)
	}
	if reply != nil {
		*due = max(*due, now) + errorCost
	}
	return reply
}

// of returns a pointer to the field due of the entry that a party has or shares. The caller holds mu.
func (l *Limit) of(party []byte, now int64) *int64 {
	if l.table == nil {
		l.seed, l.table = maphash.MakeSeed(), new([parties]entry)
	}
	hash := maphash.Bytes(l.seed, party)
	var free *entry
	for i := range uint64(probes) {
		e := &l.table[(hash+i)%parties]
		if e.party == hash {
			return &e.due
		}
		if free == nil && e.due <= now {
			free = e
		}
	}
	if free == nil {
		return &l.table[hash%parties].due
	}
	*free = entry{hash, now}
	return &free.due
}

// mayAdd reports whether an entry with this value of due allows one more error at the time now.
func mayAdd(due, now int64) bool { return max(due, now)+errorCost-now <= errorsAtOnce*errorCost }
