// Package owned keeps the prefixes of many owners. The package lists the prefixes of one owner in the order of
// netip.Prefix.Compare. The package takes no lock and starts no goroutine.
package owned

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/seed-86b749af/wireguard/internal/ordered"
)

// Prefixes are the prefixes of all owners. The zero value is empty. Readers take no lock. The caller serialises edits.
type Prefixes struct {
	set ordered.Published[item]
}

// An item is a masked prefix with the number of its owner, in 32 bytes and without a pointer. In the set, the items of one owner
// are next to each other.
type item struct {
	owner     uint64 // the owner's number, shifted left by one bit; the lowest bit is 1 for IPv6
	high, low uint64 // the address, as its 16-byte form
	bits      uint8  // the length of the prefix
}

// itemOf returns a prefix with the number of its owner. The item of the zero Prefix is less than all other items of the owner.
func itemOf(owner uint64, prefix netip.Prefix) item {
	o := item{owner: owner << 1}
	if !prefix.IsValid() {
		return o
	}
	a := prefix.Masked().Addr().As16()
	o.high, o.low, o.bits = binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:]), uint8(prefix.Bits())
	if prefix.Addr().Is6() {
		o.owner |= 1
	}
	return o
}

func (o item) isOf(owner uint64) bool { return o.owner>>1 == owner }

func (o item) prefix() netip.Prefix {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], o.high)
	binary.BigEndian.PutUint64(b[8:], o.low)
	a := netip.AddrFrom16(b)
	if o.owner&1 == 0 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, int(o.bits))
}

// Compare orders items by owner, and the prefixes of one owner as netip.Prefix.Compare does.
func (o item) Compare(other item) int {
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

// After yields, in order, the owner's prefixes that are greater than after. The zero Prefix is less than all others.
func (s *Prefixes) After(owner uint64, after netip.Prefix, yield func(netip.Prefix) bool) {
	from := itemOf(owner, after)
	for o := range s.set.Load().From(from) {
		if !o.isOf(owner) || (o != from || !after.IsValid()) && !yield(o.prefix()) {
			return
		}
	}
}

// An Edit is a change to the prefixes of all owners. Readers see it once it is published.
type Edit struct {
	set ordered.Edit[item]
}

// Edit begins a change.
func (s *Prefixes) Edit() Edit { return Edit{s.set.Load().Edit()} }

// Publish lets readers see a change.
func (s *Prefixes) Publish(e *Edit) { s.set.Store(e.set.Set()) }

// Put gives a prefix to an owner. Other owners that have the same prefix keep it.
func (e *Edit) Put(owner uint64, prefix netip.Prefix) { e.set.Put(itemOf(owner, prefix)) }

// Delete removes a prefix from an owner.
func (e *Edit) Delete(owner uint64, prefix netip.Prefix) { e.set.Delete(itemOf(owner, prefix)) }

// Others returns the owner's prefixes that are not in the list these.
func (e *Edit) Others(owner uint64, these []netip.Prefix) (others []netip.Prefix) {
	var keep []item // the items of the list these, sorted; nil until a prefix of the owner is found
	for o := range e.set.From(itemOf(owner, netip.Prefix{})) {
		if !o.isOf(owner) {
			break
		}
		if keep == nil {
			keep = make([]item, len(these))
			for i, prefix := range these {
				keep[i] = itemOf(owner, prefix)
			}
			slices.SortFunc(keep, item.Compare)
		}
		for len(keep) > 0 && keep[0].Compare(o) < 0 {
			keep = keep[1:]
		}
		if len(keep) == 0 || keep[0] != o {
			others = append(others, o.prefix())
		}
	}
	return others
}
