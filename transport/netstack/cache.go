package netstack

import (
	"container/list"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// An answerCache has at most maxCachedAnswers answers, which cost at most maxCachedBytes. An answer costs the bytes of its
	// message and of its name, and cacheEntry bytes for the structures around them.
	maxCachedAnswers = 2048
	maxCachedBytes   = 1 << 20
	cacheEntry       = 512

	// maxCachedAnswer is the cost of the largest answer that is stored. So one answer never displaces many others.
	maxCachedAnswer = maxCachedBytes / 16

	// These are the longest times for which an answer is kept. Servers allow up to a day for negative answers, which is too
	// long for a name that is added soon after a program asked for it (RFC 2308, section 5, recommends one to three hours at
	// most).
	maxPositiveTTL = time.Hour
	maxNegativeTTL = 15 * time.Minute
)

// anyType replaces the record type in the key of a cached answer which says that a name does not exist. Such an answer holds for
// every type.
const anyType dnsmessage.Type = 0

// An answerCache keeps answers until they expire. When it is full, it drops the answer that was unused for the longest time.
// The zero value is empty. It is not safe for concurrent use. Its clock is boottime.Clock, so that answers also expire while
// the machine sleeps.
type answerCache struct {
	entries map[question]*list.Element // of *cached
	recent  list.List                  // the answer that was used last is in front
	bytes   int
}

type cached struct {
	at     question
	answer *answer
	expire time.Duration
}

func (c *cached) cost() int { return cacheEntry + len(c.at.name) + len(c.answer.wire) }

// get returns the answer to q, or nil.
func (c *answerCache) get(now time.Duration, q question) *answer {
	for _, at := range []question{q, {q.name, anyType}} {
		e, ok := c.entries[at]
		if !ok {
			continue
		}
		x := e.Value.(*cached)
		if now >= x.expire {
			c.remove(e)
			continue
		}
		c.recent.MoveToFront(e)
		return x.answer
	}
	return nil
}

// put stores a, unless its TTL is 0 or it costs more than maxCachedAnswer.
func (c *answerCache) put(now time.Duration, a *answer) {
	x := &cached{at: a.question, answer: a}
	limit := maxPositiveTTL
	if !a.found {
		limit = maxNegativeTTL
	}
	x.expire = now + min(a.ttl, limit)
	if a.noName && a.owner == a.name {
		x.at.t = anyType // "A cached response for NXDOMAIN answers all types" (RFC 2308, section 5)
	}
	if a.ttl <= 0 || x.cost() > maxCachedAnswer {
		return
	}
	if e, ok := c.entries[x.at]; ok {
		c.remove(e)
	}
	if c.entries == nil {
		c.entries = make(map[question]*list.Element)
	}
	c.entries[x.at] = c.recent.PushFront(x)
	for c.bytes += x.cost(); c.bytes > maxCachedBytes || len(c.entries) > maxCachedAnswers; {
		c.remove(c.recent.Back())
	}
}

func (c *answerCache) remove(e *list.Element) {
	x := c.recent.Remove(e).(*cached)
	delete(c.entries, x.at)
	c.bytes -= x.cost()
}
