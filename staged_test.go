package wireguard

import (
	"testing"

	"pgregory.net/rapid"
)

// TestStagedPoolModel lets some peers stage and send packets of two sizes. The pool has the sum, and finds a peer that takes
// most; relieve takes its packets until the rest fits.
func TestStagedPoolModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := &Device{maxStagedBytes: 20 * (stagedLarge + 32), maxStagedPerPeer: 1 << 30}
		ps := make([]*peer, 6)
		for i := range ps {
			ps[i] = new(peer)
		}
		check := func() (largest int32) {
			sum, holders := int64(0), 0
			for _, p := range ps {
				sum += int64(p.staged.bytes)
				if largest = max(largest, p.staged.bytes); p.staged.bytes > 0 {
					holders++
				}
			}
			if got := d.pool.bytes.Load(); got != sum || len(d.pool.holders) != holders {
				t.Fatalf("the pool counts %d bytes of %d peers, want %d of %d", got, len(d.pool.holders), sum, holders)
			}
			if p := d.pool.largest(0); (p != nil) != (sum > 0) || p != nil && p.staged.bytes != largest {
				t.Fatalf("of %d bytes, the largest peer has %d, and is not found", sum, largest)
			}
			return largest
		}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			p := ps[rapid.IntRange(0, len(ps)-1).Draw(t, "peer")]
			switch n := rapid.IntRange(1, 5).Draw(t, "packets"); rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				for range min(n, int(p.staged.n)) {
					p.staged.pop().recycle()
				}
			case 1:
				p.dropStaged(new(outbox))
			default:
				size := rapid.SampledFrom([]int{0, 1, stagedSmall + 1}).Draw(t, "size")
				for range n {
					d.stage(p, make([]byte, size))
				}
			}
			d.pool.count(p)
			check()
			kept := make([]int32, len(ps))
			for i, p := range ps {
				kept[i] = p.staged.bytes
			}
			d.relieve()
			largest := check()
			if used := d.pool.bytes.Load(); used > d.maxStagedBytes {
				t.Fatalf("%d bytes are left, want %d at most", used, d.maxStagedBytes)
			}
			for i, p := range ps {
				if kept[i] < largest && p.staged.bytes != kept[i] {
					t.Fatalf("a peer with %d bytes pays, and another one keeps %d", kept[i], largest)
				}
			}
		}
	})
}
