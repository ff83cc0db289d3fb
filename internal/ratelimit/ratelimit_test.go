package ratelimit

import (
	"net/netip"
	"testing"
)

const begin = 1000 * second

// TestLimiter checks that a source may cause 20 messages per second, and 5 at once.
func TestLimiter(t *testing.T) {
	type step struct {
		at   int64
		want bool
	}
	const ms = second / 1000
	for name, steps := range map[string][]step{
		"burst of five":      {{0, true}, {0, true}, {0, true}, {0, true}, {0, true}, {0, false}, {0, false}},
		"one each 50 ms":     {{0, true}, {0, true}, {0, true}, {0, true}, {0, true}, {50*ms - 1, false}, {50 * ms, true}, {50 * ms, false}, {100 * ms, true}, {149 * ms, false}, {150 * ms, true}},
		"refill is bounded":  {{0, true}, {900 * ms, true}, {900 * ms, true}, {900 * ms, true}, {900 * ms, true}, {900 * ms, true}, {900 * ms, false}},
		"refusals cost none": {{0, true}, {0, true}, {0, true}, {0, true}, {0, true}, {10 * ms, false}, {20 * ms, false}, {30 * ms, false}, {40 * ms, false}, {50 * ms, true}},
	} {
		t.Run(name, func(t *testing.T) {
			var l Limiter[int]
			for i, s := range steps {
				if got := l.Allow(1, begin+s.at); got != s.want {
					t.Errorf("message %d, at %d ms: allowed %v, want %v", i, s.at/ms, got, s.want)
				}
				if other := 100 + i; !l.Allow(other, begin+s.at) {
					t.Errorf("message %d: another source was refused, although it had caused no message", i)
				}
			}
		})
	}
}

func TestLimiterRate(t *testing.T) {
	var l Limiter[int]
	allowed := 0
	for at := int64(0); at < 10*second; at += second / 1000 {
		if l.Allow(1, begin+at) {
			allowed++
		}
	}
	if want := 10*20 + 4; allowed != want { // the fifth message of the burst is the first of the 200
		t.Errorf("%d messages were allowed in 10 s, want %d", allowed, want)
	}
}

// TestLimiterBound checks that the table has at most Size sources, that a Limiter with a full table refuses new sources, and that a
// source that was idle for 1 s is forgotten.
func TestLimiterBound(t *testing.T) {
	var l Limiter[int]
	for n := range Size {
		if !l.Allow(n, begin) {
			t.Fatalf("source %d was refused before the table was full", n)
		}
	}
	if l.Allow(Size, begin+second-1) {
		t.Error("a new source was allowed although the table is full")
	}
	if !l.Allow(0, begin+second-1) {
		t.Error("a known source was refused because the table is full")
	}
	if len(l.sources) != Size {
		t.Fatalf("the table holds %d sources, want %d", len(l.sources), Size)
	}
	// The last sweep was a nanosecond before begin+second, and found no idle source. One second has passed since then, so the
	// table may be swept again.
	now := begin + 2*second - 1
	if !l.Allow(Size, now) || len(l.sources) != 1 {
		t.Errorf("after a second, the new source was refused or the table holds %d sources, want only the new one", len(l.sources))
	}
}

func TestLimiterSweep(t *testing.T) {
	var l Limiter[int]
	l.Allow(1, begin)
	l.Allow(2, begin+second/2)
	l.Sweep(begin + second)
	if _, ok := l.sources[1]; ok || len(l.sources) != 1 {
		t.Errorf("Sweep left %d sources, want only the one that was idle for less than a second", len(l.sources))
	}
	l.Sweep(begin + 2*second - 1)
	if len(l.sources) != 1 {
		t.Error("Sweep swept the table twice within a second")
	}
	if l.Sweep(begin + 2*second); l.sources != nil {
		t.Error("the empty table keeps its memory")
	}
}

// TestLimiterClocks checks that callers whose clocks differ a little do not use up each other's tokens.
func TestLimiterClocks(t *testing.T) {
	var l Limiter[int]
	for i := range 5 {
		if now := begin - int64(i%2)*second/2; !l.Allow(1, now) {
			t.Errorf("message %d was refused", i)
		}
	}
	if l.Allow(1, begin) || !l.Allow(1, begin+Cost) {
		t.Error("a call with a clock that is behind changed the tokens of the source")
	}
}

func TestSource(t *testing.T) {
	of := func(s string) Source { return SourceOf(netip.MustParseAddr(s)) }
	for _, c := range []struct {
		a, b Source
		same bool
	}{
		{of("192.0.2.1"), of("192.0.2.1"), true},
		{of("192.0.2.1"), of("192.0.2.2"), false},
		{of("2001:db8::1"), of("2001:db8::ffff:1"), true},
		{of("fe80::1%eth0"), of("fe80::1%eth1"), true}, // a zone has a meaning only on this host
		{of("2001:db8::1"), of("2001:db8:0:1::1"), false},
		{of("c000:201::"), of("192.0.2.1"), false}, // both begin with the same bytes
		{SourceOfKey([16]byte{1}), SourceOfKey([16]byte{1}), true},
		{SourceOfKey([16]byte{1}), SourceOfKey([16]byte{2}), false},
		{SourceOfKey([16]byte{}), of("::"), false},
	} {
		if (c.a == c.b) != c.same {
			t.Errorf("%v and %v are the same source: %v, want %v", c.a, c.b, !c.same, c.same)
		}
	}
}
