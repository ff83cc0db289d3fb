package wireguard

import (
	"iter"
	"net/netip"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/seed-86b749af/wireguard/internal/owned"
)

// An allowedIPs is the table of cryptokey routing (whitepaper, section 2). The longest prefix that contains an address
// names the peer that the address is routed to, which is also the only peer that may send from it. Readers take no lock.
// The device's configuration lock serialises writers, which publish a new table.
//
// The zero value is empty.
type allowedIPs[P owner] struct {
	table  atomic.Pointer[bart.Table[P]]
	listed owned.Prefixes // the same prefixes, by owner
}

// An owner is a peer as the table sees it.
type owner interface {
	comparable
	serialNumber() uint64 // differs from that of every other owner
	addPrefixes(n int)    // adds n, which may be negative, to the number of the owner's prefixes
}

// of returns, in order, the prefixes that p has when the loop begins and that are greater than after. The zero Prefix is less
// than all others.
func (a *allowedIPs[P]) of(p P, after netip.Prefix) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) { a.listed.After(p.serialNumber(), after, yield) }
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

// A routesEdit is a change to the table. Readers see all of it at once, when it is published. Only the owners' counts
// change before that.
type routesEdit[P owner] struct {
	a      *allowedIPs[P]
	t      *bart.Table[P]
	listed owned.Edit
	paths  int  // the number of paths in t that were copied, one per change
	copied bool // t is a copy that has no readers yet, and may be changed in place
}

func (a *allowedIPs[P]) edit() routesEdit[P] {
	e := routesEdit[P]{a: a, t: a.table.Load(), listed: a.listed.Edit()}
	if e.t == nil {
		e.t, e.copied = new(bart.Table[P]), true
	}
	return e
}

// inPlace reports whether the next change is to be made to t itself. Otherwise the change copies the path to its prefix. A
// path costs about as much as fifty prefixes of a copy of the whole table. An edit copies paths until they have cost as much
// as the table would. Then it copies the table once, and changes the copy in place.
func (e *routesEdit[P]) inPlace() bool {
	if e.paths++; !e.copied && e.paths > e.t.Size()/50 {
		e.t, e.copied = e.t.Clone(), true
	}
	return e.copied
}

// insert gives prefix to p, and takes it from another peer that has it.
func (e *routesEdit[P]) insert(prefix netip.Prefix, p P) {
	prefix = prefix.Masked()
	if owner, ok := e.t.Get(prefix); ok {
		if owner == p {
			return
		}
		e.disown(prefix, owner)
	}
	e.listed.Put(p.serialNumber(), prefix)
	p.addPrefixes(1)
	if e.inPlace() {
		e.t.Insert(prefix, p)
	} else {
		e.t = e.t.InsertPersist(prefix, p)
	}
}

func (e *routesEdit[P]) disown(prefix netip.Prefix, p P) {
	e.listed.Delete(p.serialNumber(), prefix)
	p.addPrefixes(-1)
}

// remove takes prefix from p, if p has it.
func (e *routesEdit[P]) remove(prefix netip.Prefix, p P) {
	prefix = prefix.Masked()
	if owner, ok := e.t.Get(prefix); !ok || owner != p {
		return
	}
	e.disown(prefix, p)
	if e.inPlace() {
		e.t.Delete(prefix)
	} else {
		e.t = e.t.DeletePersist(prefix)
	}
}

// removeAll takes all prefixes from p.
func (e *routesEdit[P]) removeAll(p P) { e.removeOthers(nil, p) }

// removeOthers takes all prefixes from p, except for those in prefixes.
func (e *routesEdit[P]) removeOthers(prefixes []netip.Prefix, p P) {
	for _, prefix := range e.listed.Others(p.serialNumber(), prefixes) {
		e.remove(prefix, p)
	}
}

// change carries out what a PeerChange says about the prefixes of p. A prefix that p has and keeps is only looked up.
func (e *routesEdit[P]) change(add, remove []netip.Prefix, replace bool, p P) {
	if replace {
		e.removeOthers(add, p)
	}
	for _, prefix := range add {
		e.insert(prefix, p)
	}
	for _, prefix := range remove {
		e.remove(prefix, p)
	}
}

// publish lets readers see the change.
func (e *routesEdit[P]) publish() {
	e.a.listed.Publish(&e.listed)
	e.a.table.Store(e.t)
}
