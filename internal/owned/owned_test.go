package owned

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// drawPrefix draws one of few prefixes, some with bits set after the prefix length.
func drawPrefix(t *rapid.T) netip.Prefix {
	b := rapid.SampledFrom([]byte{0, 1, 0x80, 0xff}).Draw(t, "byte")
	a := netip.AddrFrom4([4]byte{10, 0, b, b})
	if rapid.Bool().Draw(t, "IPv6") {
		a = netip.AddrFrom16([16]byte{0: 0x20, 7: b, 8: b, 15: b})
	}
	return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
}

// TestModel checks that Prefixes lists the same prefixes as sorted slices, and that Others returns the prefixes that are not in
// the list of those to keep.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Prefixes
		model := make(map[uint64][]netip.Prefix)
		for range rapid.IntRange(1, 5).Draw(t, "edits") {
			e := s.Edit()
			for range rapid.IntRange(1, 10).Draw(t, "steps") {
				owner, prefix := rapid.Uint64Range(0, 3).Draw(t, "owner"), drawPrefix(t)
				model[owner] = slices.DeleteFunc(model[owner], func(p netip.Prefix) bool { return p == prefix.Masked() })
				if rapid.IntRange(0, 3).Draw(t, "step") == 0 {
					e.Delete(owner, prefix)
				} else {
					e.Put(owner, prefix)
					model[owner] = append(model[owner], prefix.Masked())
				}
			}
			s.Publish(&e)
		}
		e := s.Edit()
		keep := rapid.SliceOfN(rapid.Custom(drawPrefix), 0, 5).Draw(t, "kept")
		after := drawPrefix(t)
		for owner := range uint64(4) {
			want := slices.SortedFunc(slices.Values(model[owner]), netip.Prefix.Compare)
			if got := list(&s, owner, netip.Prefix{}); !slices.Equal(got, want) {
				t.Fatalf("owner %d has the prefixes %v, want %v", owner, got, want)
			}
			others := slices.DeleteFunc(slices.Clone(want), func(p netip.Prefix) bool {
				return slices.ContainsFunc(keep, func(k netip.Prefix) bool { return k.Masked() == p })
			})
			if got := e.Others(owner, keep); !slices.Equal(got, others) {
				t.Fatalf("Others(%d, %v) returned %v, want %v", owner, keep, got, others)
			}
			rest := slices.DeleteFunc(want, func(p netip.Prefix) bool { return p.Compare(after.Masked()) <= 0 })
			if got := list(&s, owner, after); !slices.Equal(got, rest) {
				t.Fatalf("after %v, owner %d has the prefixes %v, want %v", after, owner, got, rest)
			}
		}
	})
}

// list returns the prefixes that After yields.
func list(s *Prefixes, owner uint64, after netip.Prefix) (prefixes []netip.Prefix) {
	s.After(owner, after, func(p netip.Prefix) bool {
		prefixes = append(prefixes, p)
		return true
	})
	return prefixes
}
