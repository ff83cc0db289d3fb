package wgo

import (
	"crypto/sha256"
	"fmt"
	"sync"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/seed-86b749af/wireguard"
)

// A link is a conn.Endpoint that has no IP address and port: a node key, a URL. Its name is what its bind parses.
type link struct{ name string }

func (l link) Key() [16]byte {
	sum := sha256.Sum256([]byte(l.name))
	return [16]byte(sum[:16])
}

func (l link) String() string { return l.name }

// ParseEndpoint parses an endpoint in the form that b understands, for the configuration of a peer that is reached
// through Bind(b). A b with endpoints other than an address and port needs it. For an address and port, as with
// StdNetBind, [wireguard.ParseEndpoint] and [wireguard.EndpointOf] suffice.
func ParseEndpoint(b conn.Bind, s string) (wireguard.Endpoint, error) {
	ep, err := b.ParseEndpoint(s)
	if err != nil {
		return wireguard.Endpoint{}, fmt.Errorf("wgo: endpoint %q: %w", s, err)
	}
	return endpointOf(ep), nil
}

// endpointOf is ep as a comparable value. It allocates for all but the endpoints of StdNetBind.
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

// routeLimit is how many endpoints one generation of routes holds. Two of them take about 1 MiB when strangers from as
// many addresses have filled them.
const routeLimit = 2048

// routes remember which conn.Endpoint stands behind an Endpoint: the one with its source address in it can be
// received and not made. They hold two generations. What is in use moves to the new one, and when that is full the
// old one is dropped, so strangers cannot fill memory; a peer whose route they pushed out is answered from an address
// of the system's choice until it is heard again.
type routes struct {
	bind conn.Bind

	mu       sync.RWMutex // guards the maps, taken by the receivers and by senders
	now, old map[wireguard.Endpoint]conn.Endpoint
}

// received notes that e is ep. Only what is new is written.
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

// find is the conn.Endpoint to send to e with: from its source if that one is known, otherwise from any.
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
