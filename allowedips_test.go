package wireguard

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/testkit"
	"pgregory.net/rapid"
)

// A routesModel is a simple model of cryptokey routing: it maps each prefix to its peer, and a lookup searches all prefixes.
type routesModel map[netip.Prefix]*peer

func (m routesModel) peer(a netip.Addr) (p *peer) {
	best := -1
	for prefix, owner := range m {
		if prefix.Contains(a) && prefix.Bits() > best {
			best, p = prefix.Bits(), owner
		}
	}
	return p
}

func (m routesModel) clone() routesModel {
	c := make(routesModel)
	for k, v := range m {
		c[k] = v
	}
	return c
}

// drawAddr draws one of a few addresses, so that the prefixes made from them are often nested or equal.
func drawAddr(t *rapid.T, name string) netip.Addr {
	b := rapid.SampledFrom([]byte{0, 1, 0x7f, 0x80, 0xff})
	if rapid.Bool().Draw(t, name+" is IPv4") {
		return netip.AddrFrom4([4]byte{10, 0, b.Draw(t, name), b.Draw(t, name)})
	}
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 7: b.Draw(t, name), 8: b.Draw(t, name), 15: b.Draw(t, name)})
}

func drawPrefix(t *rapid.T) netip.Prefix {
	a := drawAddr(t, "prefix")
	return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")) // the address may have bits beyond the length
}

// threePeers returns three peers with different keys and serial numbers.
func threePeers() (ps []*peer) {
	for i := range 3 {
		p := newPeer(PublicKey{byte(i + 1)})
		p.serial = uint64(i)
		ps = append(ps, p)
	}
	return ps
}

// TestAllowedIPsModel makes random changes to a table, some by copying the paths that change and some by cloning the whole table.
// After each change it compares all lookups and each peer's list of prefixes with the model. It also checks that a reader of the
// previous state of the table does not see the change.
func TestAllowedIPsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a allowedIPs[*peer]
		model := make(routesModel)
		peers := threePeers()
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			before, modelBefore := a.routes(), model.clone()
			edit := a.edit()
			edit.paths = rapid.SampledFrom([]int{-1 << 20, 0, 1 << 20}).Draw(t, "persistent, either, or clone")
			for range rapid.IntRange(1, 8).Draw(t, "steps") {
				p := rapid.SampledFrom(peers).Draw(t, "peer")
				switch rapid.IntRange(0, 6).Draw(t, "step") {
				case 6: // replace all prefixes of p
					for prefix, owner := range model {
						if owner == p {
							delete(model, prefix)
						}
					}
					var all []netip.Prefix
					for range rapid.IntRange(0, 4).Draw(t, "prefixes") {
						prefix := drawPrefix(t)
						if known := slices.Collect(a.of(p, netip.Prefix{})); len(known) > 0 && rapid.Bool().Draw(t, "kept") {
							prefix = rapid.SampledFrom(known).Draw(t, "kept prefix")
						}
						all = append(all, prefix)
						model[prefix.Masked()] = p
					}
					edit.change(all, nil, true, p)
				case 0:
					edit.removeAll(p)
					for prefix, owner := range model {
						if owner == p {
							delete(model, prefix)
						}
					}
				case 1:
					prefix := drawPrefix(t)
					if len(model) > 0 && rapid.Bool().Draw(t, "known") {
						prefix = drawKnown(t, model)
					}
					edit.remove(prefix, p)
					if model[prefix.Masked()] == p {
						delete(model, prefix.Masked())
					}
				case 2:
					if len(model) > 0 { // p gets a prefix that another peer has, or that p itself has
						prefix := drawKnown(t, model)
						edit.insert(prefix, p)
						model[prefix] = p
					}
				default:
					prefix := drawPrefix(t)
					edit.insert(prefix, p)
					model[prefix.Masked()] = p
				}
			}
			if a.routes() != before {
				t.Fatal("the table shows a change before the change is published")
			}
			edit.publish()
			checkRoutes(t, a.routes(), model)
			checkRoutes(t, before, modelBefore)
			checkOwned(t, &a, peers, model)
		}
	})
}

func drawKnown(t *rapid.T, model routesModel) netip.Prefix {
	known := make([]netip.Prefix, 0, len(model))
	for prefix := range model {
		known = append(known, prefix)
	}
	slices.SortFunc(known, netip.Prefix.Compare)
	return rapid.SampledFrom(known).Draw(t, "known prefix")
}

func checkRoutes(t *rapid.T, r routes[*peer], model routesModel) {
	for range 20 {
		addr := drawAddr(t, "address")
		if got, want := r.peer(addr), model.peer(addr); got != want {
			t.Fatalf("%v routes to %v, want %v, in the table %v", addr, name(got), name(want), model)
		}
	}
	for prefix := range model {
		if got, want := r.peer(prefix.Addr()), model.peer(prefix.Addr()); got != want {
			t.Fatalf("%v routes to %v, want %v", prefix.Addr(), name(got), name(want))
		}
	}
}

// checkOwned compares three things with the model: the list of each peer's prefixes, the part of that list after a random prefix,
// and the peer's count of its prefixes.
func checkOwned(t *rapid.T, a *allowedIPs[*peer], peers []*peer, model routesModel) {
	owned := make(map[*peer][]netip.Prefix)
	for prefix, p := range model {
		owned[p] = append(owned[p], prefix)
	}
	after := drawPrefix(t)
	for _, p := range peers {
		slices.SortFunc(owned[p], netip.Prefix.Compare)
		if got := slices.Collect(a.of(p, netip.Prefix{})); !slices.Equal(got, owned[p]) || int(p.prefixes.Load()) != len(got) {
			t.Fatalf("%v counts %d prefixes and lists %v, want %v in this order", name(p), p.prefixes.Load(), got, owned[p])
		}
		rest := slices.DeleteFunc(slices.Clone(owned[p]), func(prefix netip.Prefix) bool { return prefix.Compare(after) <= 0 })
		if got := slices.Collect(a.of(p, after)); !slices.Equal(got, rest) {
			t.Fatalf("after %v, the prefixes of %v are %v, want %v", after, name(p), got, rest)
		}
	}
}

func name(p *peer) string {
	if p == nil {
		return "nobody"
	}
	return fmt.Sprint("peer ", p.key[0])
}

// TestAllowedIPsTable checks the cases that other programs got wrong: nested prefixes of different peers, and a prefix that moves
// from one peer to another.
func TestAllowedIPsTable(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, paths := range []int{-1 << 20, 1 << 20} {
		ps := threePeers()
		a, b, c := ps[0], ps[1], ps[2]
		var table allowedIPs[*peer]
		begin := func() routesEdit[*peer] {
			e := table.edit()
			e.paths = paths
			return e
		}
		if table.routes().peer(netip.MustParseAddr("10.0.0.1")) != nil {
			t.Fatal("the zero value of the table routes an address to a peer")
		}
		edit := begin()
		edit.insert(prefix("0.0.0.0/0"), a)
		edit.insert(prefix("10.0.0.0/8"), b)
		edit.insert(prefix("10.1.2.3/16"), c) // the same as 10.1.0.0/16
		edit.insert(prefix("10.1.2.3/32"), a)
		edit.insert(prefix("::/0"), b)
		edit.publish()
		want := func(addr string, p *peer, why string) {
			t.Helper()
			if got := table.routes().peer(netip.MustParseAddr(addr)); got != p {
				t.Errorf("%s routes to %v, want %v: %s", addr, name(got), name(p), why)
			}
		}
		want("10.1.2.3", a, "the longest prefix wins")
		want("10.1.2.4", c, "bits beyond the prefix length are cleared")
		want("10.2.0.0", b, "the longest prefix wins")
		want("11.0.0.0", a, "the default route")
		want("2001:db8::1", b, "each family has its own default route")

		edit = begin()
		edit.remove(prefix("10.1.0.0/16"), b)
		edit.publish()
		want("10.1.2.4", c, "remove has no effect if another peer has the prefix")

		edit = begin()
		edit.insert(prefix("10.1.0.0/16"), b)
		edit.publish()
		want("10.1.2.4", b, "the last writer wins")
		if c.prefixes.Load() != 0 || b.prefixes.Load() != 3 {
			t.Error("the peers' counts of prefixes are wrong, want 0 for c and 3 for b")
		}

		edit = begin()
		edit.removeAll(b)
		edit.publish()
		want("10.1.2.4", a, "after the prefixes of b are removed, the default route of a applies")
		want("2001:db8::1", nil, "no other peer has a prefix that contains the address")
	}
}

// TestAllowedIPsReaders looks up addresses while 100 prefixes move together between two peers. Each lookup must find one of the
// two peers. Within one state of the table, all prefixes must belong to the same peer.
func TestAllowedIPsReaders(t *testing.T) {
	ps := threePeers()
	a, b := ps[0], ps[1]
	var prefixes []netip.Prefix
	for i := range 100 {
		prefixes = append(prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24))
	}
	var table allowedIPs[*peer]
	give := func(p *peer, paths int) {
		edit := table.edit()
		edit.paths = paths
		for _, prefix := range prefixes {
			edit.insert(prefix, p)
		}
		edit.publish()
	}
	give(a, 0)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for !stop.Load() {
				r := table.routes()
				owner := r.peer(prefixes[0].Addr())
				for _, prefix := range prefixes {
					if got := r.peer(prefix.Addr()); got != owner || got == nil {
						t.Errorf("in one state of the table, %v routes to %v and %v routes to %v", prefixes[0], name(owner), prefix, name(got))
						return
					}
				}
			}
		}()
	}
	for i := range 60 {
		give([]*peer{b, a}[i%2], []int{-1 << 20, 1 << 20}[i/2%2])
	}
	stop.Store(true)
	wg.Wait()
}

func TestAllowedIPsLookupAllocatesNothing(t *testing.T) {
	testkit.CountsAllocations(t)
	var table allowedIPs[*peer]
	edit := table.edit()
	edit.insert(netip.MustParsePrefix("10.0.0.0/8"), new(peer))
	edit.insert(netip.MustParsePrefix("2001:db8::/32"), new(peer))
	edit.publish()
	a4, a6 := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("2001:db8::1")
	if n := testing.AllocsPerRun(100, func() {
		if r := table.routes(); r.peer(a4) == nil || r.peer(a6) == nil {
			t.Error("the table has no route for an address")
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
