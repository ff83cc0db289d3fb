package udp

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// plainPaths holds the destinations for which the system refused a train. The system refuses a train if the path's MTU is smaller
// than the datagrams, if the interface computes no checksums, or if IPsec transforms the packets. Datagrams to these destinations
// are sent singly (one per message) for plainTime. The zero value is empty. A plainPaths is safe for concurrent use.
type plainPaths struct {
	n     atomic.Int32 // len(until); while n is 0, Send does not lock mu or read the clock
	mu    sync.Mutex
	until map[netip.Addr]time.Time
}

const (
	maxPlain  = 256              // maximum number of destinations in the table
	plainTime = 15 * time.Second // time until the next attempt with a train; a failed attempt costs one system call
)

// has reports whether datagrams to a must be sent singly.
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

// add makes datagrams to a be sent singly for plainTime. If the table is full, a replaces the destination whose plainTime ends
// first.
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
