package wireguard

import (
	"iter"
	"net/netip"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/seed-86b749af/wireguard/internal/owned"
)

// An allowedIPs is the table of cryptokey routing (whitepaper, section 2). The longest prefix that contains an address decides to
// which peer the address is routed. Only this peer may send packets from the address. A goroutine that reads the table takes no
// lock. A goroutine that changes the table holds the configuration lock, and publishes a new table.
//
// The zero value is empty.
type allowedIPs[P owner] struct {
	table  atomic.Pointer[bart.Table[P]]
	listed owned.Prefixes // the same prefixes, sorted by owner
}

// An owner is what the table needs to know about a peer.
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

// A routes is a snapshot of the table. All packets of a batch use the same snapshot. The zero value has no routes.
type routes[P owner] struct{ t *bart.Table[P] }

func (a *allowedIPs[P]) routes() routes[P] { return routes[P]{a.table.Load()} }

// peer returns the peer that addr belongs to, or nil.
func (r routes[P]) peer(addr netip.Addr) (p P) {
	if r.t != nil {
		p, _ = r.t.Lookup(addr)
	}
	return p
}

// A routesEdit is a change to the table. Other goroutines see the whole change at once, when publish is called. Only the number of
// prefixes that is stored in each owner changes earlier, while the edit is prepared.
type routesEdit[P owner] struct {
	a      *allowedIPs[P]
	t      *bart.Table[P]
	listed owned.Edit
	paths  int  // the number of changes so far; until copied is true, each change copies a path in t
	copied bool // whether t is a copy that no other goroutine reads yet, so that it may be changed in place
}

func (a *allowedIPs[P]) edit() routesEdit[P] {
	e := routesEdit[P]{a: a, t: a.table.Load(), listed: a.listed.Edit()}
	if e.t == nil {
		e.t, e.copied = new(bart.Table[P]), true
	}
	return e
}

// inPlace reports whether the next change may be made in t itself. If not, the change has to copy the path to its prefix in t.
// Copying one path takes about as long as copying fifty prefixes when the whole table is copied. So an edit copies paths until
// these copies have taken as long as a copy of the table would. It then copies the table once, and changes the copy in place.
func (e *routesEdit[P]) inPlace() bool {
	if e.paths++; !e.copied && e.paths > e.t.Size()/50 {
		e.t, e.copied = e.t.Clone(), true
	}
	return e.copied
}

// insert gives prefix to p. If another peer has the prefix, insert takes it from that peer.
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

// change carries out what a PeerChange says about the prefixes of p. For a prefix that p has already and keeps, change does no
// more than a lookup.
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

// publish makes the change visible to other goroutines.
func (e *routesEdit[P]) publish() {
	e.a.listed.Publish(&e.listed)
	e.a.table.Store(e.t)
}
