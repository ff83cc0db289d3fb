// Package ratelimit limits how many messages each of many sources may cause. Times are nanoseconds on the caller's clock. The
// package takes no lock and starts no goroutine.
package ratelimit

import "net/netip"

const (
	// Size is the number of sources that a Limiter knows. An entry lasts for 1 s. In this time, one core answers about 5,000
	// initiations.
	Size = 1 << 18

	// Cost is the number of tokens that a message costs. A source gets one token per nanosecond, and has at most Burst tokens.
	Cost  = second / 20
	Burst = 5 * Cost

	// Idle is how long, in nanoseconds, a source that causes no message keeps its entry.
	Idle = second

	second int64 = 1e9
)

// A Limiter allows each source 20 messages per second, and 5 at once. While it knows Size sources, it refuses others until a
// source has been idle for a second. The zero value is ready.
type Limiter[S comparable] struct {
	sources map[S]bucket
	swept   int64
}

type bucket struct{ tokens, last int64 }

// Allow reports whether a source may cause one more message now.
func (l *Limiter[S]) Allow(s S, now int64) bool {
	b, ok := l.sources[s]
	if !ok {
		if len(l.sources) >= Size {
			if l.Sweep(now); len(l.sources) >= Size {
				return false
			}
		}
		if l.sources == nil {
			l.sources = make(map[S]bucket)
		}
		b = bucket{tokens: Burst, last: now}
	}
	now = max(now, b.last) // another caller may have read the clock later
	b.tokens = min(Burst, b.tokens+now-b.last)
	b.last = now
	allowed := b.tokens >= Cost
	if allowed {
		b.tokens -= Cost
	}
	l.sources[s] = b
	return allowed
}

// A Source is what a limit applies to: an IPv4 address, the /64 of an IPv6 address, or a key.
type Source struct {
	kind byte
	key  [16]byte
}

// SourceOf returns the source of messages from an address.
func SourceOf(a netip.Addr) (s Source) {
	if s.kind = '4'; !a.Is4() {
		a, s.kind = netip.PrefixFrom(a, 64).Masked().Addr(), '6'
	}
	copy(s.key[:], a.AsSlice())
	return s
}

// SourceOfKey returns the source of messages from a sender without an address.
func SourceOfKey(key [16]byte) Source { return Source{'k', key} }

// Len returns the number of sources that have an entry.
func (l *Limiter[S]) Len() int { return len(l.sources) }

// Sweep forgets the sources that were idle for a second, and frees the memory when no source is left. Sweep walks the table at most
// once per second, however often it is called.
func (l *Limiter[S]) Sweep(now int64) {
	if now-l.swept < Idle {
		return
	}
	l.swept = now
	for s, b := range l.sources {
		if now-b.last >= Idle {
			delete(l.sources, s)
		}
	}
	if len(l.sources) == 0 {
		l.sources = nil
	}
}
