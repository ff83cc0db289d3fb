package wgo

import (
	"crypto/sha256"
	"fmt"
	"sync"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/seed-86b749af/wireguard"
)

// A link is the wireguard.Link for a conn.Endpoint that is not an IP address and port, but for example a node key or a URL. The
// conn.Bind can parse the link's name.
type link struct{ name string }

func (l link) Key() [16]byte {
	sum := sha256.Sum256([]byte(l.name))
	return [16]byte(sum[:16])
}

func (l link) String() string { return l.name }

// ParseEndpoint parses an endpoint in the form that b understands, for the configuration of a peer of a device that uses
// Bind(b). Use it if the endpoints of b are not an address and port. For an address and port, as with StdNetBind, use
// [wireguard.ParseEndpoint] or [wireguard.EndpointOf].
func ParseEndpoint(b conn.Bind, s string) (wireguard.Endpoint, error) {
	ep, err := b.ParseEndpoint(s)
	if err != nil {
		return wireguard.Endpoint{}, fmt.Errorf("wgo: endpoint %q: %w", s, err)
	}
	return endpointOf(ep), nil
}

// endpointOf returns ep as a wireguard.Endpoint. It allocates memory, except for endpoints of StdNetBind.
func endpointOf(ep conn.Endpoint) wireguard.Endpoint {
	var e wireguard.Endpoint
	if std, ok := ep.(*conn.StdNetEndpoint); ok {
		e = wireguard.EndpointOf(std.AddrPort)
	} else {
		name := ep.DstToString()
		var err error
		if e, err = wireguard.ParseEndpoint(name); err != nil {
			return wireguard.Endpoint{Link: link{name}}
		}
	}
	if src := ep.SrcIP().Unmap(); src.IsValid() && !src.IsUnspecified() {
		e.Source = src
		if i, ok := ep.(interface{ SrcIfidx() int32 }); ok {
			e.Interface = uint32(i.SrcIfidx())
		}
	}
	return e
}

// routeLimit is how many endpoints one map of routes holds. Both maps together take about 1 MiB when they are full.
const routeLimit = 2048

// routes stores the conn.Endpoint of each received wireguard.Endpoint, because a conn.Endpoint with a source address can only be
// received, not made. It has two maps, r.now and r.old. New entries are added to r.now, and entries of r.old that are used move
// there. When r.now is full, it replaces r.old, so that datagrams from many addresses cannot use up memory. If such datagrams
// displace the entry of a peer, the system chooses the source address of datagrams to that peer until the peer sends again.
type routes struct {
	bind conn.Bind

	mu       sync.RWMutex // guards the maps, which receivers and senders use
	now, old map[wireguard.Endpoint]conn.Endpoint
}

// received stores ep for e, if no conn.Endpoint is stored for e.
func (r *routes) received(e *wireguard.Endpoint, ep conn.Endpoint) {
	if _, ok := r.lookup(e); !ok {
		r.put(e, ep)
	}
}

func (r *routes) lookup(e *wireguard.Endpoint) (conn.Endpoint, bool) {
	r.mu.RLock()
	ep, isNew := r.now[*e]
	var isOld bool
	if !isNew {
		ep, isOld = r.old[*e]
	}
	r.mu.RUnlock()
	if isOld {
		r.put(e, ep)
	}
	return ep, isNew || isOld
}

func (r *routes) put(e *wireguard.Endpoint, ep conn.Endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now == nil || len(r.now) >= routeLimit {
		r.now, r.old = make(map[wireguard.Endpoint]conn.Endpoint), r.now
	}
	r.now[*e] = ep
}

// find returns the conn.Endpoint for sending to e. If the conn.Endpoint for e is not stored, find returns one without a source
// address.
func (r *routes) find(e *wireguard.Endpoint) (conn.Endpoint, error) {
	if ep, ok := r.lookup(e); ok {
		return ep, nil
	}
	plain := wireguard.Endpoint{Addr: e.Addr, Link: e.Link}
	if ep, ok := r.lookup(&plain); ok {
		return ep, nil
	}
	ep, err := r.bind.ParseEndpoint(plain.String())
	if err != nil {
		return nil, fmt.Errorf("wgo: endpoint %v: %w", plain, err)
	}
	r.put(&plain, ep)
	return ep, nil
}
