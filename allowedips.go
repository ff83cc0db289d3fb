package wireguard

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/gaissmai/bart"
)

// An allowedIPs is the table of cryptokey routing (whitepaper, section 2). The longest prefix that contains an address
// names the peer that the address is routed to, which is also the only peer that may send from it. Readers take no lock.
// The device's configuration lock serialises writers, which publish a new table.
//
// The zero value is empty.
type allowedIPs[P owner] struct {
	table atomic.Pointer[bart.Table[P]]
}

// An owner is a peer as the table sees it: a pointer to something with a list of its own prefixes.
type owner interface {
	comparable
	prefixes() *[]netip.Prefix
}

// A routes is one state of the table. A batch uses the same state throughout. The zero value has no routes.
type routes[P owner] struct{ t *bart.Table[P] }

func (a *allowedIPs[P]) routes() routes[P] { return routes[P]{a.table.Load()} }

// peer returns the peer that addr belongs to, or nil.
func (r routes[P]) peer(addr netip.Addr) (p P) {
	if r.t != nil {
		p, _ = r.t.Lookup(addr)
	}
	return p
}

// A routesEdit is a change to the table. Readers see all of it at once, when it is published. It also updates each peer's
// list of prefixes.
type routesEdit[P owner] struct {
	a     *allowedIPs[P]
	t     *bart.Table[P]
	owned bool           // t is a copy that has no readers yet, and may be changed in place
	lost  map[P]struct{} // peers that lost prefixes, whose lists are put right by publish
}

// edit begins a change of about n prefixes. A large change copies the whole table once and then works in place. A small
// change copies only the paths to its prefixes. Copying the table costs about a fiftieth of a path per prefix in it.
func (a *allowedIPs[P]) edit(n int) routesEdit[P] {
	t := a.table.Load()
	switch {
	case t == nil:
		return routesEdit[P]{a: a, t: new(bart.Table[P]), owned: true}
	case n > t.Size()/50:
		return routesEdit[P]{a: a, t: t.Clone(), owned: true}
	}
	return routesEdit[P]{a: a, t: t}
}

// insert gives prefix to p, and takes it from the peer that has it.
func (e *routesEdit[P]) insert(prefix netip.Prefix, p P) {
	prefix = prefix.Masked()
	if owner, ok := e.t.Get(prefix); ok {
		if owner == p {
			return
		}
		e.loses(owner)
	}
	own := p.prefixes()
	*own = append(*own, prefix)
	if e.owned {
		e.t.Insert(prefix, p)
	} else {
		e.t = e.t.InsertPersist(prefix, p)
	}
}

// loses leaves p's list to publish.
func (e *routesEdit[P]) loses(p P) {
	if e.lost == nil {
		e.lost = make(map[P]struct{})
	}
	e.lost[p] = struct{}{}
}

// remove takes prefix from p, if it is p's. Of a large change each search in p's list would be too many.
func (e *routesEdit[P]) remove(prefix netip.Prefix, p P) {
	prefix = prefix.Masked()
	if owner, ok := e.t.Get(prefix); ok && owner == p {
		e.delete(prefix)
		if e.owned {
			e.loses(p)
		} else if i := slices.Index(*p.prefixes(), prefix); i >= 0 {
			*p.prefixes() = slices.Delete(*p.prefixes(), i, i+1)
		}
	}
}

// removeAll takes all its prefixes from p.
func (e *routesEdit[P]) removeAll(p P) {
	own := p.prefixes()
	for _, prefix := range *own {
		if owner, ok := e.t.Get(prefix); ok && owner == p {
			e.delete(prefix)
		}
	}
	*own = nil
}

func (e *routesEdit[P]) delete(prefix netip.Prefix) {
	if e.owned {
		e.t.Delete(prefix)
	} else {
		e.t = e.t.DeletePersist(prefix)
	}
}

// publish lets readers see the change.
func (e *routesEdit[P]) publish() {
	for p := range e.lost {
		// A prefix that went and came back is in the list twice.
		own := p.prefixes()
		slices.SortFunc(*own, netip.Prefix.Compare)
		*own = slices.DeleteFunc(slices.Compact(*own), func(prefix netip.Prefix) bool {
			owner, _ := e.t.Get(prefix)
			return owner != p
		})
	}
	e.a.table.Store(e.t)
}
