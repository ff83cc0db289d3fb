package wireguard

import (
	"cmp"
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/seed-86b749af/wireguard/internal/ordered"
)

// An allowedIPs is the table of cryptokey routing (whitepaper, section 2). The longest prefix that contains an address
// names the peer that the address is routed to, which is also the only peer that may send from it. Readers take no lock.
// The device's configuration lock serialises writers, which publish a new table.
//
// The zero value is empty.
type allowedIPs[P owner] struct {
	table  atomic.Pointer[bart.Table[P]]
	listed atomic.Pointer[ordered.Set[owned]] // the same prefixes; those of one owner are next to each other
}

// An owner is a peer as the table sees it.
type owner interface {
	comparable
	serialNumber() uint64 // differs from that of every other owner
	addPrefixes(n int)    // keeps count of the prefixes that the owner has; n may be negative
}

// An owned is a prefix with the number of its owner, in 32 bytes and without a pointer.
type owned struct {
	owner     uint64 // shifted by one bit, which tells IPv6 from IPv4
	high, low uint64 // the address, as its 16-byte form
	bits      uint8  // the length of the prefix
}

// ownedBy returns a masked prefix with the number of its owner. The zero Prefix is less than all others of the owner.
func ownedBy(owner uint64, prefix netip.Prefix) owned {
	o := owned{owner: owner << 1}
	if !prefix.IsValid() {
		return o
	}
	a := prefix.Addr().As16()
	o.high, o.low, o.bits = binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:]), uint8(prefix.Bits())
	if prefix.Addr().Is6() {
		o.owner |= 1
	}
	return o
}

// isOf reports whether the prefix is one of owner's.
func (o owned) isOf(owner uint64) bool { return o.owner>>1 == owner }

func (o owned) prefix() netip.Prefix {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], o.high)
	binary.BigEndian.PutUint64(b[8:], o.low)
	a := netip.AddrFrom16(b)
	if o.owner&1 == 0 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, int(o.bits))
}

// Compare orders items by owner. It orders the prefixes of one owner as netip.Prefix.Compare does.
func (o owned) Compare(other owned) int {
	switch {
	case o.owner != other.owner:
		return cmp.Compare(o.owner, other.owner)
	case o.high != other.high:
		return cmp.Compare(o.high, other.high)
	case o.low != other.low:
		return cmp.Compare(o.low, other.low)
	}
	return cmp.Compare(o.bits, other.bits)
}

// of returns, in order, the prefixes that p has when the loop begins and that are greater than after. The zero Prefix is less
// than all others.
func (a *allowedIPs[P]) of(p P, after netip.Prefix) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		if s := a.listed.Load(); s != nil {
			from := ownedBy(p.serialNumber(), after.Masked())
			for o := range s.From(from) {
				if !o.isOf(p.serialNumber()) || (o != from || !after.IsValid()) && !yield(o.prefix()) {
					return
				}
			}
		}
	}
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
	listed ordered.Edit[owned]
	paths  int  // the number of paths in t that were copied, one per change
	copied bool // t is a copy that has no readers yet, and may be changed in place
}

func (a *allowedIPs[P]) edit() routesEdit[P] {
	e := routesEdit[P]{a: a, t: a.table.Load()}
	if e.t == nil {
		e.t, e.copied = new(bart.Table[P]), true
	}
	if s := a.listed.Load(); s != nil {
		e.listed = s.Edit()
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

// insert gives prefix to p, and takes it from the peer that has it.
func (e *routesEdit[P]) insert(prefix netip.Prefix, p P) {
	prefix = prefix.Masked()
	if owner, ok := e.t.Get(prefix); ok {
		if owner == p {
			return
		}
		e.disown(prefix, owner)
	}
	e.listed.Put(ownedBy(p.serialNumber(), prefix))
	p.addPrefixes(1)
	if e.inPlace() {
		e.t.Insert(prefix, p)
	} else {
		e.t = e.t.InsertPersist(prefix, p)
	}
}

func (e *routesEdit[P]) disown(prefix netip.Prefix, p P) {
	e.listed.Delete(ownedBy(p.serialNumber(), prefix))
	p.addPrefixes(-1)
}

// remove takes prefix from p, if it is p's.
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

// next returns the first prefix of p that is not less than from.
func (e *routesEdit[P]) next(p P, from netip.Prefix) (next netip.Prefix, ok bool) {
	for o := range e.listed.From(ownedBy(p.serialNumber(), from)) {
		return o.prefix(), o.isOf(p.serialNumber())
	}
	return next, false
}

// removeAll takes all its prefixes from p.
func (e *routesEdit[P]) removeAll(p P) {
	for prefix, ok := e.next(p, netip.Prefix{}); ok; prefix, ok = e.next(p, prefix) {
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

// removeOthers takes from p all prefixes except for these.
func (e *routesEdit[P]) removeOthers(prefixes []netip.Prefix, p P) {
	if _, has := e.next(p, netip.Prefix{}); !has {
		return // as of a new peer, without sorting
	}
	keep := make([]owned, len(prefixes))
	for i := range prefixes {
		keep[i] = ownedBy(p.serialNumber(), prefixes[i].Masked())
	}
	slices.SortFunc(keep, owned.Compare)
	var gone []netip.Prefix // listed must not change inside the loop
	for o := range e.listed.From(ownedBy(p.serialNumber(), netip.Prefix{})) {
		if !o.isOf(p.serialNumber()) {
			break
		}
		for len(keep) > 0 && keep[0].Compare(o) < 0 {
			keep = keep[1:]
		}
		if len(keep) == 0 || keep[0] != o {
			gone = append(gone, o.prefix())
		}
	}
	for _, prefix := range gone {
		e.remove(prefix, p)
	}
}

// publish lets readers see the change.
func (e *routesEdit[P]) publish() {
	listed := e.listed.Set()
	e.a.listed.Store(&listed)
	e.a.table.Store(e.t)
}
