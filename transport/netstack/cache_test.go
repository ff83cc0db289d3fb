package netstack

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func positive(name string, ttl time.Duration) *answer {
	return &answer{question: question{name, dnsmessage.TypeA}, owner: name, found: true, ttl: ttl, wire: make([]byte, 60)}
}

// TestCacheTTL checks how long the cache keeps each kind of answer.
func TestCacheTTL(t *testing.T) {
	noRecord, noName, astray := positive("a.", time.Minute), positive("a.", time.Minute), positive("a.", time.Minute)
	noRecord.found = false
	noName.found, noName.noName = false, true
	astray.found, astray.noName, astray.owner = false, true, "b."
	day := 24 * time.Hour
	for _, x := range []struct {
		what      string
		answer    *answer
		ttl       time.Duration
		want      time.Duration
		otherType bool // whether the answer also answers questions of other types
	}{
		{"records", positive("a.", 0), time.Minute, time.Minute, false},
		{"records with a long TTL", positive("a.", 0), day, maxPositiveTTL, false},
		{"records with the TTL 0", positive("a.", 0), 0, 0, false},
		{"no such record", noRecord, time.Minute, time.Minute, false},
		{"no such record for long", noRecord, day, maxNegativeTTL, false},
		{"no such name", noName, time.Minute, time.Minute, true},
		{"no such name for long", noName, day, maxNegativeTTL, true},
		{"no such name at the end of an alias", astray, time.Minute, time.Minute, false},
	} {
		var c answerCache
		x.answer.ttl = x.ttl
		const now = time.Hour
		c.put(now, x.answer)
		if x.want > 0 && c.get(now+x.want-1, x.answer.question) != x.answer {
			t.Errorf("%s: the cache did not keep the answer for %v", x.what, x.want)
		}
		if got := c.get(now, question{"a.", dnsmessage.TypeTXT}) != nil; got != x.otherType {
			t.Errorf("%s: the cache answers a question of another type: %t, want the opposite", x.what, got)
		}
		if c.get(now, question{"b.", dnsmessage.TypeA}) != nil {
			t.Errorf("%s: the cache answers a question about another name", x.what)
		}
		if c.get(now+x.want, x.answer.question) != nil {
			t.Errorf("%s: the cache kept the answer for longer than %v", x.what, x.want)
		}
		if len(c.entries) != 0 || c.recent.Len() != 0 || c.bytes != 0 {
			t.Errorf("%s: the cache has %d entries and %d bytes after the answer has expired, want none", x.what, len(c.entries), c.bytes)
		}
	}
}

// TestCacheOrder checks that a full cache drops the answer that has been unused for the longest time.
func TestCacheOrder(t *testing.T) {
	var c answerCache
	name := func(i int) string { return fmt.Sprintf("n%d.", i) }
	n := 0
	for ; c.bytes+cacheEntry+100 <= maxCachedBytes; n++ {
		c.put(0, positive(name(n), time.Minute))
	}
	c.get(0, question{name(0), dnsmessage.TypeA})
	c.put(0, positive(name(1), time.Minute)) // stores another answer for the same name
	if len(c.entries) != n {
		t.Fatalf("the cache has %d entries, want %d: an answer was stored twice or was dropped too early", len(c.entries), n)
	}
	for i := range 10 {
		c.put(0, positive(name(n+i), time.Minute))
	}
	for i, want := range map[int]bool{0: true, 1: true, 2: false, 11: false, 12: true, n: true, n + 9: true} {
		if got := c.get(0, question{name(i), dnsmessage.TypeA}) != nil; got != want {
			t.Errorf("after overflow, name %s is in the cache of %d entries: %t, want %t", name(i), n, got, want)
		}
	}
}

// TestCacheLarge checks that the cache rejects an answer that is too large, and counts all bytes of smaller answers.
func TestCacheLarge(t *testing.T) {
	var c answerCache
	large := positive("large.", time.Minute)
	large.wire = make([]byte, maxCachedAnswer)
	c.put(0, large)
	if len(c.entries) != 0 {
		t.Errorf("the cache stored an answer of %d bytes, which is too large", len(large.wire))
	}
	for i := range 100 {
		a := positive(fmt.Sprintf("n%d.", i), time.Minute)
		a.wire = make([]byte, maxCachedAnswer-cacheEntry-len(a.name))
		c.put(0, a)
	}
	if want := maxCachedBytes / maxCachedAnswer; len(c.entries) != want || c.bytes != maxCachedBytes {
		t.Errorf("the cache has %d entries with %d bytes, want %d with %d", len(c.entries), c.bytes, want, maxCachedBytes)
	}
}

// TestCacheUse checks which answers of a server make a second question unnecessary.
func TestCacheUse(t *testing.T) {
	ttl0 := func(m *dnsmessage.Message) {
		for i := range m.Answers {
			m.Answers[i].Header.TTL = 0
		}
	}
	noSOA := func(m *dnsmessage.Message) { m.Authorities = nil }
	for _, x := range []struct {
		what, host string
		act        behaviour
		want       int64 // number of questions for two lookups
	}{
		{"an address", "four.test", honest, 1},
		{"an address in capitals", "FOUR.test", honest, 1},
		{"an alias", "alias2.test", honest, 1},
		{"TTL 0", "four.test", answers(testZone, ttl0), 2},
		{"no such name", "nowhere.test", honest, 1},
		{"no such record", "empty.test", honest, 1},
		{"no such name, no SOA", "nowhere.test", answers(testZone, noSOA), 2},
		{"no such record, no SOA", "empty.test", answers(testZone, noSOA), 2},
		{"a server failure", "four.test", fails(dnsmessage.RCodeServerFailure), 2},
		{"a refusal", "four.test", fails(dnsmessage.RCodeRefused), 2},
	} {
		n, s := namesNet(t, Config{}, x.act)
		first, err1 := n.LookupNetIP(t.Context(), "ip4", x.host)
		second, err2 := n.LookupNetIP(t.Context(), "ip4", x.host)
		if fmt.Sprint(first, err1) != fmt.Sprint(second, err2) {
			t.Errorf("%s: the first lookup returned %v, %v, but the second returned %v, %v", x.what, first, err1, second, err2)
		}
		if got := s[0].udp.Load(); got != x.want {
			t.Errorf("%s: the server got %d questions for two lookups, want %d", x.what, got, x.want)
		}
	}
}
