package udp

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// plainPaths are the destinations to which the system refused a train: the path's MTU is smaller than its datagrams,
// the interface computes no checksums, or the packets are transformed by IPsec. They get single datagrams for a while.
// The zero value is empty. It is safe for concurrent use.
type plainPaths struct {
	n     atomic.Int32 // len(until), so that nobody locks or reads a clock while all is well
	mu    sync.Mutex
	until map[netip.Addr]time.Time
}

const (
	maxPlain  = 256              // destinations
	plainTime = 15 * time.Second // then a train is tried again; that costs one failed system call
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

// add makes a get single datagrams from now on. In a full table it takes the place of one that is due soon.
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
