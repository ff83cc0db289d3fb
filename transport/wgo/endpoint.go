package wgo

import (
	"crypto/sha256"
	"fmt"
	"sync"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/seed-86b749af/wireguard"
)

// A link is a conn.Endpoint without an IP address and port, such as a node key or a URL. The bind can parse its name.
type link struct{ name string }

func (l link) Key() [16]byte {
	sum := sha256.Sum256([]byte(l.name))
	return [16]byte(sum[:16])
}

func (l link) String() string { return l.name }

// ParseEndpoint parses an endpoint in the form that b understands, for the configuration of a peer behind Bind(b). Use
// it if the endpoints of b are not an address and port. For an address and port, as with StdNetBind,
// [wireguard.ParseEndpoint] and [wireguard.EndpointOf] suffice.
func ParseEndpoint(b conn.Bind, s string) (wireguard.Endpoint, error) {
	ep, err := b.ParseEndpoint(s)
	if err != nil {
		return wireguard.Endpoint{}, fmt.Errorf("wgo: endpoint %q: %w", s, err)
	}
	return endpointOf(ep), nil
}

// endpointOf returns ep as a comparable value. It allocates for all endpoints except those of StdNetBind.
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

// routeLimit is how many endpoints one generation of routes holds. Two generations take about 1 MiB when strangers have
// filled them.
const routeLimit = 2048

// routes maps an Endpoint to its conn.Endpoint, because a conn.Endpoint with a source address can only be received, not
// made. It holds two generations. Routes in use move to the new generation. When the new generation is full, routes
// drops the old one, so strangers cannot fill memory. If strangers push out the route of a peer, the system chooses the
// source of answers to that peer until it is heard from again.
type routes struct {
	bind conn.Bind

	mu       sync.RWMutex // guards the maps; receivers and senders take it
	now, old map[wireguard.Endpoint]conn.Endpoint
}

// received stores ep for e. It writes only if that is new.
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

// find returns the conn.Endpoint for sending to e: the one with e's source if it is known, otherwise one without a
// source.
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
