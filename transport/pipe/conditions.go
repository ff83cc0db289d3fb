package pipe

import (
	"maps"
	"math"
	"time"
)

// Conditions are what a path does to datagrams. The zero value does nothing: what is sent arrives at once. Two ends
// have a separate path in each direction. Probabilities go from 0 to 1. Sizes are those of the IP packet: the
// datagram's size plus 28 bytes for IPv4, or 48 for IPv6.
//
// They apply in this order: cuts, MTU, Loss, CE, Duplicate, Rate, and then the delays.
type Conditions struct {
	// MTU is the size of the largest packet that passes. Larger ones are dropped silently. Zero means no limit.
	MTU int
	// RefuseTooBig makes Send fail with an error that wraps syscall.EMSGSIZE instead, as a socket does that may not fragment
	// and knows the MTU. Datagrams of the same train that fit are sent.
	RefuseTooBig bool

	// Loss is the probability that a datagram is dropped.
	Loss float64

	// CE is the probability that an ECN-capable datagram is marked as having met congestion.
	CE float64

	// Duplicate is the probability that a datagram is sent twice. Each copy has a separate delay.
	Duplicate float64

	// Rate is how many bytes pass per second. A Rate of zero means no limit. Up to Queue bytes wait until the rate
	// allows them, and further datagrams are dropped. A Queue of zero means 64 KiB.
	Rate, Queue int

	// Delay is the time under way. Jitter is the most that is added to it at random, so that datagrams overtake each other.
	Delay, Jitter time.Duration

	// Reorder is the probability that a datagram is held back for ReorderBy, so that later ones overtake it. A ReorderBy
	// of zero means 10 ms.
	Reorder   float64
	ReorderBy time.Duration
}

const (
	defaultRateQueue = 64 << 10
	defaultReorderBy = 10 * time.Millisecond
)

// A pair is a path's two ends. In a cut, a nil end means any end.
type pair struct{ from, to *End }

// A path is the state of a path with conditions, a cut or a rate.
type path struct {
	set        bool // SetPath set its conditions
	conditions Conditions

	busy time.Time // when the line has sent all datagrams that wait for Rate
	rest int64     // the part lost when busy was rounded down to nanoseconds, in nanoseconds times Rate
}

// SetConditions sets the conditions of every path that SetPath did not set. It does not affect datagrams that are under
// way.
func (n *Network) SetConditions(c Conditions) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conditions = c
	maps.DeleteFunc(n.paths, func(_ pair, p *path) bool { return !p.set && c.Rate <= 0 })
	n.settle()
}

// SetPath sets the conditions of the path from one end to another, in this direction only. A NAT between them is not an
// end.
func (n *Network) SetPath(from, to *End, c Conditions) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.path(pair{from, to})
	p.set, p.conditions = true, c
	n.settle()
}

// ResetPath undoes SetPath: the path has the conditions of the network again.
func (n *Network) ResetPath(from, to *End) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.paths, pair{from, to})
	n.settle()
}

// Cut cuts the wire between two ends in both directions, until Mend. Nil stands for every end: Cut(a, nil) isolates a,
// and Cut(nil, nil) cuts everything. A datagram that is under way is lost if the cut still exists when it would arrive.
func (n *Network) Cut(a, b *End) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[pair{a, b}], n.cuts[pair{b, a}] = struct{}{}, struct{}{}
	n.settle()
}

// CutOneWay cuts the wire from one end to another, in this direction only. Nil stands for every end.
func (n *Network) CutOneWay(from, to *End) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[pair{from, to}] = struct{}{}
	n.settle()
}

// Mend undoes every cut that was made with these two ends, in either direction. Mend(nil, nil) undoes all cuts.
func (n *Network) Mend(a, b *End) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a == nil && b == nil {
		clear(n.cuts)
	}
	delete(n.cuts, pair{a, b})
	delete(n.cuts, pair{b, a})
	n.settle()
}

// path returns the state of a path, and makes it if there is none. n.mu is held.
func (n *Network) path(of pair) *path {
	p := n.paths[of]
	if p == nil {
		p = new(path)
		n.paths[of] = p
	}
	return p
}

// n.mu is held during conditionsOf and isCut, at least for reading.
func (n *Network) conditionsOf(of pair) *Conditions {
	if p := n.paths[of]; p != nil && p.set {
		return &p.conditions
	}
	return &n.conditions
}

func (n *Network) isCut(of pair) bool {
	for _, p := range [...]pair{of, {of.from, nil}, {nil, of.to}, {nil, nil}} {
		if _, cut := n.cuts[p]; cut {
			return true
		}
	}
	return false
}

// chance returns true with probability p. It draws no random number if p is 0 or 1, so that a condition that is off
// does not change the results of the others.
func (n *Network) chance(p float64) bool {
	return p > 0 && (p >= 1 || n.random.Float64() < p)
}

// launch applies the conditions to f, and sends it or returns its fate. n.mu is held.
func (n *Network) launch(f *flight) (fate Fate, gone bool) {
	of := pair{f.Sender, n.peek(f)}
	c := n.conditionsOf(of)
	size := f.size()
	switch {
	case n.isCut(of):
		return FateCut, true
	case c.MTU > 0 && size > c.MTU:
		return FateTooBig, true
	case n.chance(c.Loss):
		return FateLost, true
	}
	if ecn := f.TOS & 3; ecn != 0 && n.chance(c.CE) {
		f.TOS |= 3
	}
	if n.chance(c.Duplicate) {
		n.duplicated.Add(1)
		g := n.newFlight(f.Data)
		g.Packet, g.scope, g.Data = f.Packet, f.scope, g.memory
		if !n.depart(g, of, c, size) {
			g.stage = stageOverflown
			n.inbox = append(n.inbox, g)
		}
	}
	if !n.depart(f, of, c, size) {
		return FateOverflow, true
	}
	return 0, false
}

// depart sends f, unless too many bytes wait for the rate. n.mu is held.
func (n *Network) depart(f *flight, of pair, c *Conditions, size int) bool {
	now := time.Now()
	at := now
	if c.Rate > 0 {
		p := n.path(of)
		var ok bool
		if at, ok = p.transmit(now, size, c); !ok {
			return false
		}
	}
	at = at.Add(max(c.Delay, 0) + max(f.Delay, 0))
	if c.Jitter > 0 {
		at = at.Add(time.Duration(n.random.Int64N(int64(c.Jitter) + 1)))
	}
	if n.chance(c.Reorder) {
		by := c.ReorderBy
		if by <= 0 {
			by = defaultReorderBy
		}
		at = at.Add(by)
	}
	n.fly(f, at)
	return true
}

// transmit returns when the last of size bytes has left, after all bytes that wait already.
func (p *path) transmit(now time.Time, size int, c *Conditions) (time.Time, bool) {
	if p.busy.Before(now) {
		p.busy, p.rest = now, 0
	}
	queue := c.Queue
	if queue <= 0 {
		queue = defaultRateQueue
	}
	// waits counts the bytes of earlier datagrams that the line has still to send. Floating point is exact enough for
	// that.
	waits := p.busy.Sub(now).Seconds() * float64(c.Rate)
	if math.Round(waits)+float64(size) > float64(queue) && waits >= 1 {
		return now, false
	}
	total := int64(size)*int64(time.Second) + p.rest
	p.busy = p.busy.Add(time.Duration(total / int64(c.Rate)))
	p.rest = total % int64(c.Rate)
	return p.busy, true
}
