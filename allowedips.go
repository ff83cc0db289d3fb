package wireguard

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/gaissmai/bart"
)

// An allowedIPs is the table of cryptokey routing (whitepaper, section 2): the longest prefix that holds an address
// names the peer that the address is routed to, and the only one that may send from it. Readers take no lock. Writers
// are serialised by the device's configuration lock and publish a new table.
//
// The zero value is empty.
type allowedIPs struct {
	table atomic.Pointer[bart.Table[*peer]]
}

// A routes is one state of the table, for the length of a batch. The zero value has no routes.
type routes struct{ t *bart.Table[*peer] }

func (a *allowedIPs) routes() routes { return routes{a.table.Load()} }

// peer is who addr belongs to, or nil.
func (r routes) peer(addr netip.Addr) *peer {
	if r.t == nil {
		return nil
	}
	p, _ := r.t.Lookup(addr)
	return p
}

// A routesEdit is a change to the table that readers see as a whole, once it is published. Each peer's own list of
// prefixes is kept in step.
type routesEdit struct {
	a     *allowedIPs
	t     *bart.Table[*peer]
	owned bool               // t is a copy that nobody reads yet, and may be changed in place
	lost  map[*peer]struct{} // peers that lost prefixes, whose lists are put right by publish
}

// edit begins a change of about n prefixes. Many are cheaper in place in a copy of the whole table, few by copying the
// paths to them alone: a copy costs about a fiftieth of a path for each prefix that the table holds.
func (a *allowedIPs) edit(n int) routesEdit {
	t := a.table.Load()
	switch {
	case t == nil:
		return routesEdit{a: a, t: new(bart.Table[*peer]), owned: true}
	case n > t.Size()/50:
		return routesEdit{a: a, t: t.Clone(), owned: true}
	}
	return routesEdit{a: a, t: t}
}

// insert gives prefix to p, and takes it from the peer that has it.
func (e *routesEdit) insert(prefix netip.Prefix, p *peer) {
	prefix = prefix.Masked()
	if owner, ok := e.t.Get(prefix); ok {
		if owner == p {
			return
		}
		e.loses(owner)
	}
	p.allowed = append(p.allowed, prefix)
	if e.owned {
		e.t.Insert(prefix, p)
	} else {
		e.t = e.t.InsertPersist(prefix, p)
	}
}

// loses leaves p's list to publish.
func (e *routesEdit) loses(p *peer) {
	if e.lost == nil {
		e.lost = make(map[*peer]struct{})
	}
	e.lost[p] = struct{}{}
}

// remove takes prefix from p, if it is p's. Of a large change each search in p's list would be too many.
func (e *routesEdit) remove(prefix netip.Prefix, p *peer) {
	prefix = prefix.Masked()
	if owner, ok := e.t.Get(prefix); ok && owner == p {
		e.delete(prefix)
		if e.owned {
			e.loses(p)
		} else if i := slices.Index(p.allowed, prefix); i >= 0 {
			p.allowed = slices.Delete(p.allowed, i, i+1)
		}
	}
}

// removeAll takes all its prefixes from p.
func (e *routesEdit) removeAll(p *peer) {
	for _, prefix := range p.allowed {
		if owner, ok := e.t.Get(prefix); ok && owner == p {
			e.delete(prefix)
		}
	}
	p.allowed = nil
}

func (e *routesEdit) delete(prefix netip.Prefix) {
	if e.owned {
		e.t.Delete(prefix)
	} else {
		e.t = e.t.DeletePersist(prefix)
	}
}

// publish lets readers see the change.
func (e *routesEdit) publish() {
	for p := range e.lost {
		// A prefix that went and came back is in the list twice.
		slices.SortFunc(p.allowed, netip.Prefix.Compare)
		p.allowed = slices.DeleteFunc(slices.Compact(p.allowed), func(prefix netip.Prefix) bool {
			owner, _ := e.t.Get(prefix)
			return owner != p
		})
	}
	e.a.table.Store(e.t)
}
