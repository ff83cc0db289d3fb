package pipe

import (
	"maps"
	"math"
	"time"
)

// Conditions determine what the path from one end to another does to datagrams. With the zero value, each datagram arrives
// without delay. The two directions between two ends are separate paths. Probabilities are between 0 and 1. Sizes are those of
// the IP packet: the datagram's size plus 28 bytes for IPv4, or 48 bytes for IPv6.
//
// The order of application is: cuts, MTU, Loss, CE, Duplicate, Rate, and then the delays.
type Conditions struct {
	// MTU is the size of the largest packet that passes, in bytes. Larger packets are dropped silently. Zero means no limit.
	MTU int
	// RefuseTooBig makes Send fail with an error that wraps syscall.EMSGSIZE for a packet larger than MTU, instead of dropping the
	// packet silently. A real socket does that if it must not fragment and knows the MTU. Send still sends the datagrams of the
	// same train that are small enough.
	RefuseTooBig bool

	// Loss is the probability that a datagram is dropped.
	Loss float64

	// CE is the probability that an ECN-capable datagram gets the mark Congestion Experienced.
	CE float64

	// Duplicate is the probability that a datagram is sent twice. The original and the copy have independent delays.
	Duplicate float64

	// Rate is the largest number of bytes per second. Zero means no limit. Up to Queue bytes wait until Rate permits sending
	// them. While the queue is full, further datagrams are dropped. A Queue of zero means 64 KiB.
	Rate, Queue int

	// Delay is the time from sending to arrival. For each datagram, a random time of at most Jitter is added, so that datagrams can
	// overtake each other.
	Delay, Jitter time.Duration

	// Reorder is the probability that a datagram is delayed by ReorderBy in addition, so that later datagrams overtake it. A
	// ReorderBy of zero means 10 ms.
	Reorder   float64
	ReorderBy time.Duration
}

const (
	defaultRateQueue = 64 << 10
	defaultReorderBy = 10 * time.Millisecond
)

// A pair holds the two ends of a path. In Network.cuts, a nil end means any end.
type pair struct{ from, to *End }

// A path holds the state of a path between two ends. Only paths with their own conditions or with a Rate have one.
type path struct {
	set        bool // conditions was set by SetPath
	conditions Conditions

	busy time.Time // when all datagrams that wait for Rate have been sent
	rest int64     // the fraction of a nanosecond by which busy was rounded down, in units of 1/Rate ns
}

// SetConditions sets the conditions of all paths, except for those whose conditions were set by SetPath. It does not affect
// datagrams that are under way.
func (n *Network) SetConditions(c Conditions) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conditions = c
	maps.DeleteFunc(n.paths, func(_ pair, p *path) bool { return !p.set && c.Rate <= 0 })
	n.settle()
}

// SetPath sets the conditions of the path from one end to another, in this direction only. from and to are the ends that send and
// receive the datagrams, even if there is a NAT between them.
func (n *Network) SetPath(from, to *End, c Conditions) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.path(pair{from, to})
	p.set, p.conditions = true, c
	n.settle()
}

// ResetPath undoes SetPath. The path has the conditions of SetConditions again.
func (n *Network) ResetPath(from, to *End) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.paths, pair{from, to})
	n.settle()
}

// Cut interrupts the connection between two ends in both directions, until Mend. Nil stands for every end: Cut(a, nil) isolates
// a, and Cut(nil, nil) isolates all ends. A datagram that is under way is lost if the connection is still cut when the datagram
// would arrive.
func (n *Network) Cut(a, b *End) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[pair{a, b}], n.cuts[pair{b, a}] = struct{}{}, struct{}{}
	n.settle()
}

// CutOneWay interrupts the connection from one end to another, in this direction only. Nil stands for every end.
func (n *Network) CutOneWay(from, to *End) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[pair{from, to}] = struct{}{}
	n.settle()
}

// Mend undoes Cut and CutOneWay with these two ends, in both directions. Mend(nil, nil) undoes all cuts.
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

// path returns the state of a path, and makes it if it does not exist. The caller holds n.mu.
func (n *Network) path(of pair) *path {
	p := n.paths[of]
	if p == nil {
		p = new(path)
		n.paths[of] = p
	}
	return p
}

// conditionsOf returns the conditions of a path. The caller of conditionsOf or isCut holds n.mu, at least for reading.
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

// chance returns true with probability p. It uses no random number if p is 0 or 1, so that a condition that is off does not
// change the results of the others.
func (n *Network) chance(p float64) bool {
	return p > 0 && (p >= 1 || n.random.Float64() < p)
}

// launch applies the conditions of f's path to f. Either it schedules the arrival of f, or it returns true in gone and the final
// fate of f. The caller holds n.mu.
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

// depart schedules the arrival of f after its delays, and returns true. If the queue for c.Rate is full, it returns false. The
// caller holds n.mu.
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

// transmit puts a packet of size bytes behind the packets that wait already, and returns the time at which it will have been sent
// at c.Rate. It returns false if the queue is full.
func (p *path) transmit(now time.Time, size int, c *Conditions) (time.Time, bool) {
	if p.busy.Before(now) {
		p.busy, p.rest = now, 0
	}
	queue := c.Queue
	if queue <= 0 {
		queue = defaultRateQueue
	}
	// waits is the number of bytes of earlier datagrams that have not been sent yet. Floating point is exact enough for this.
	waits := p.busy.Sub(now).Seconds() * float64(c.Rate)
	if math.Round(waits)+float64(size) > float64(queue) && waits >= 1 {
		return now, false
	}
	total := int64(size)*int64(time.Second) + p.rest
	p.busy = p.busy.Add(time.Duration(total / int64(c.Rate)))
	p.rest = total % int64(c.Rate)
	return p.busy, true
}
