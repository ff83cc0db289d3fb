package gateway

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-86b749af/wireguard"
)

// Limits bound the number of flows, the rate and the bytes of one peer. In each field a negative number means no limit. The bytes
// of connections that Verdict.Handle serves are neither counted nor limited.
type Limits struct {
	// Flows is how many TCP connections and UDP sockets the peer may have at once. Zero means 4096.
	Flows int

	// NewFlows is how many flows and pings the peer may begin per second. A burst may have twice that number. Zero means 500.
	NewFlows int

	// FromPeer is how many bytes per second the peer may send. A burst may have a tenth of that number. Zero means no limit.
	// Beyond the rate, TCP connections wait, and UDP datagrams are dropped. TCP and UDP share the rate: at least half of it is
	// available to UDP, and TCP may use all that UDP does not use.
	FromPeer int

	// ToPeer is how many bytes per second the peer may receive, under the same rules as FromPeer. Zero means no limit.
	ToPeer int

	// Quota is how many bytes the peer may send and receive in total, without headers. Zero means no limit. Once the quota is
	// used up, new flows are refused, and each flow that the peer still has is reset when it carries its next byte. To grant more,
	// call SetLimits with a larger number.
	Quota int64
}

const (
	defaultPeerFlows = 4096
	defaultNewFlows  = 500
)

// PeerStats are the counters of one peer.
type PeerStats struct {
	// Flows is how many TCP connections and UDP sockets the peer has now.
	Flows int

	// Opened counts the flows that the policy and the limits let through.
	Opened uint64

	// Refused counts the flows, pings and new destinations of UDP sockets that the policy or a limit refused.
	Refused uint64

	// Failed counts the flows for which Dial or ListenPacket failed, and the pings that failed for a reason other than a timeout.
	Failed uint64

	// Dropped counts the UDP datagrams that were dropped: because of a limit, because they came from an address to which the
	// peer had not sent, or because a socket returned an error.
	Dropped uint64

	// Pings counts the pings that were answered.
	Pings uint64

	// FromPeer is how many bytes of TCP and UDP the peer sent to other hosts, without headers.
	FromPeer uint64

	// ToPeer is how many bytes of TCP and UDP the peer received from other hosts, without headers.
	ToPeer uint64
}

// An account holds a peer's limits and counters.
type account struct {
	// Gateway.mu guards these four fields.
	flows   int
	pings   int
	waiting int // how many calls of Forward have not returned
	arrived bucket

	limits           atomic.Pointer[Limits]
	fromPeer, toPeer direction

	opened, refused, failed, dropped, answered atomic.Uint64
}

// A direction counts the bytes in one direction and limits their rate with two token buckets. Each byte takes a token from
// the first bucket, the field rate. TCP takes tokens before they exist and then waits until they do. So while TCP has much to
// send, a datagram never finds a token in the first bucket. The datagram may then pass if the second bucket, the field share,
// has tokens. A datagram takes its tokens from both buckets. This puts the first one further into debt, so that TCP's next
// bytes wait longer. Thus TCP and UDP together do not exceed the limit, and at least the part datagramShare of the limit is
// available to UDP.
type direction struct {
	bytes atomic.Uint64
	mu    sync.Mutex // guards the rest
	rate  bucket     // tokens for all bytes
	share bucket     // tokens for datagrams; filled at datagramShare times the limit
}

// datagramShare is the part of a rate that TCP cannot take from UDP.
const datagramShare = 0.5

// A bucket is a token bucket. A negative number of tokens is a debt, which new tokens pay off first.
type bucket struct {
	tokens float64
	last   time.Time
}

// fill adds the tokens for the time since the last call of fill. The first call adds burst tokens, and burst is the most that
// b holds.
func (b *bucket) fill(now time.Time, perSecond, burst float64) {
	if b.last.IsZero() {
		b.tokens = burst
	} else {
		b.tokens = min(burst, b.tokens+now.Sub(b.last).Seconds()*perSecond)
	}
	b.last = now
}

func (g *Gateway) accountLocked(peer wireguard.PublicKey) *account {
	a := g.peers[peer]
	if a == nil {
		a = new(account)
		a.limits.Store(&g.config.Limits)
		g.peers[peer] = a
	}
	return a
}

// SetLimits replaces the limits of peer. The new limits also apply to the flows that the peer already has. A TCP connection that
// is waiting because of the old rate first finishes that wait.
func (g *Gateway) SetLimits(peer wireguard.PublicKey, l Limits) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.accountLocked(peer).limits.Store(&l)
}

// Forget drops the limits and counters of a peer. It does nothing and returns false while the peer has flows or pings. A
// program that removes peers should call it, because the Gateway keeps about 300 bytes for each peer that it has seen.
func (g *Gateway) Forget(peer wireguard.PublicKey) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if a := g.peers[peer]; a != nil && (a.flows > 0 || a.pings > 0 || a.waiting > 0) {
		return false
	}
	delete(g.peers, peer)
	return true
}

// Stats returns the counters of each peer that the Gateway has seen.
func (g *Gateway) Stats() map[wireguard.PublicKey]PeerStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make(map[wireguard.PublicKey]PeerStats, len(g.peers))
	for peer, a := range g.peers {
		all[peer] = PeerStats{
			Flows: a.flows, Opened: a.opened.Load(), Refused: a.refused.Load(), Failed: a.failed.Load(),
			Dropped: a.dropped.Load(), Pings: a.answered.Load(),
			FromPeer: a.fromPeer.bytes.Load(), ToPeer: a.toPeer.bytes.Load(),
		}
	}
	return all
}

// begin counts a new flow of the account a and returns true, or returns false if a limit forbids the flow.
func (g *Gateway) begin(a *account, now time.Time) bool {
	l := a.limits.Load()
	g.mu.Lock()
	defer g.mu.Unlock()
	most := l.Flows
	if most == 0 {
		most = defaultPeerFlows
	}
	// A peer may have half of the flows that the other peers do not use, and leastFlows in any case.
	shared := a.flows >= leastFlows && a.flows >= g.config.Flows-g.flows
	if most > 0 && a.flows >= most || shared || a.spent() || !a.arrive(l, now) {
		return false
	}
	a.flows++
	g.flows++
	a.opened.Add(1)
	return true
}

func (g *Gateway) end(a *account) {
	g.mu.Lock()
	defer g.mu.Unlock()
	a.flows--
	g.flows--
}

// arrive counts a new flow or ping, and reports whether NewFlows permits it. The caller holds Gateway.mu.
func (a *account) arrive(l *Limits, now time.Time) bool {
	rate := float64(l.NewFlows)
	switch {
	case rate < 0:
		return true
	case rate == 0:
		rate = defaultNewFlows
	}
	if a.arrived.fill(now, rate, 2*rate); a.arrived.tokens < 1 {
		return false
	}
	a.arrived.tokens--
	return true
}

// spent reports whether the peer's quota is used up.
func (a *account) spent() bool {
	q := a.limits.Load().Quota
	return q > 0 && a.fromPeer.bytes.Load()+a.toPeer.bytes.Load() >= uint64(q)
}

var errQuota = errors.New("gateway: the peer's quota is used up")

// pass counts n bytes of TCP in the direction d, and waits as long as the rate demands. It takes the tokens before it waits, so
// the connections of one peer continue in the order in which they called pass. The wait holds up only the goroutine that copies
// this direction of this connection.
func (a *account) pass(ctx context.Context, d *direction, n int) error {
	if a.spent() {
		return errQuota
	}
	d.bytes.Add(uint64(n))
	rate := a.rate(d)
	if rate <= 0 {
		return nil
	}
	d.mu.Lock()
	d.fill(rate)
	d.rate.tokens -= float64(n)
	owed := -d.rate.tokens
	d.mu.Unlock()
	if owed <= 0 {
		return nil
	}
	timer := time.NewTimer(time.Duration(owed / rate * float64(time.Second)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		d.mu.Lock()
		d.rate.tokens += float64(n) // the bytes are not sent, so they must not hold up the peer's other flows
		d.mu.Unlock()
		d.bytes.Add(-uint64(n))
		return ctx.Err()
	}
}

// admit counts a datagram of n bytes in the direction d, and reports whether it may pass now.
func (a *account) admit(d *direction, n int) bool {
	if a.spent() {
		return false
	}
	if rate := a.rate(d); rate > 0 {
		d.mu.Lock()
		d.fill(rate)
		late := d.rate.tokens <= 0 && d.share.tokens <= 0
		if !late {
			d.rate.tokens -= float64(n)
			// While TCP sends nothing, UDP may use the whole rate, and the bucket d.share gets into debt. That debt is
			// bounded, so that datagrams find tokens in d.share again soon after TCP has begun to send.
			d.share.tokens = max(d.share.tokens-float64(n), -max(float64(n), rate/10))
		}
		d.mu.Unlock()
		if late {
			return false
		}
	}
	d.bytes.Add(uint64(n))
	return true
}

// fill adds tokens to both buckets for the time since the last call of fill. rate is in bytes per second. The caller holds
// mu.
func (d *direction) fill(rate float64) {
	now := time.Now()
	d.rate.fill(now, rate, rate/10)
	d.share.fill(now, rate*datagramShare, rate*datagramShare/10)
}

// rate returns the limit of the direction d in bytes per second. Zero or a negative number means no limit.
func (a *account) rate(d *direction) float64 {
	l := a.limits.Load()
	if d == &a.fromPeer {
		return float64(l.FromPeer)
	}
	return float64(l.ToPeer)
}
