package udp

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// plainPaths holds the destinations for which the system refused a train. Either the path's MTU is smaller than the
// datagrams, or the interface computes no checksums, or IPsec transforms the packets. Such destinations get single
// datagrams for a while. The zero value is empty. It is safe for concurrent use.
type plainPaths struct {
	n     atomic.Int32 // len(until); while it is 0, senders neither lock nor read a clock
	mu    sync.Mutex
	until map[netip.Addr]time.Time
}

const (
	maxPlain  = 256              // destinations
	plainTime = 15 * time.Second // before another attempt with a train, which costs one system call if it fails
)

// has reports whether a gets single datagrams.
func (p *plainPaths) has(a netip.Addr) bool {
	return p.n.Load() != 0 && p.hasAt(a, time.Now())
}

func (p *plainPaths) hasAt(a netip.Addr, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	until, ok := p.until[a]
	if ok && !now.Before(until) {
		delete(p.until, a)
		p.n.Store(int32(len(p.until)))
		ok = false
	}
	return ok
}

// add makes a get single datagrams from now on. If the table is full, a replaces the destination whose time ends first.
func (p *plainPaths) add(a netip.Addr, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.until == nil {
		p.until = make(map[netip.Addr]time.Time)
	}
	if _, ok := p.until[a]; !ok && len(p.until) >= maxPlain {
		var first netip.Addr
		for b, t := range p.until {
			if !first.IsValid() || t.Before(p.until[first]) {
				first = b
			}
		}
		delete(p.until, first)
	}
	p.until[a] = now.Add(plainTime)
	p.n.Store(int32(len(p.until)))
}
