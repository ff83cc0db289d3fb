package wireguard

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/seed-86b749af/wireguard/internal/staged"
)

// TestStagedPoolModel makes some peers stage and send small and large packets. The pool must know the total size of all staged
// packets, and find the peer whose packets use the most memory. relieve must drop packets of that peer until the rest fits into
// the limit.
func TestStagedPoolModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := &Device{maxStagedBytes: 20 * (staged.Large + staged.Overhead), maxStagedPerPeer: 1 << 30}
		ps := make([]*peer, 6)
		for i := range ps {
			ps[i] = new(peer)
		}
		check := func() (largest int32) {
			sum := int64(0)
			for _, p := range ps {
				sum += int64(p.staged.Bytes)
				largest = max(largest, p.staged.Bytes)
			}
			if got := d.pool.Bytes(); got != sum {
				t.Fatalf("the pool counts %d bytes, want %d", got, sum)
			}
			if p, ok := d.pool.Largest(0); ok != (sum > 0) || ok && p.staged.Bytes != largest {
				t.Fatalf("of %d staged bytes, the largest peer has %d, but Largest does not find it", sum, largest)
			}
			return largest
		}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			p := ps[rapid.IntRange(0, len(ps)-1).Draw(t, "peer")]
			switch n := rapid.IntRange(1, 5).Draw(t, "packets"); rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				for range min(n, int(p.staged.N)) {
					p.staged.Pop()
				}
			case 1:
				p.dropStaged(new(outbox))
			default:
				size := rapid.SampledFrom([]int{0, 1, staged.Small + 1}).Draw(t, "size")
				for range n {
					d.stage(p, make([]byte, size))
				}
			}
			d.pool.Count(p, &p.account, p.staged.Bytes)
			check()
			kept := make([]int32, len(ps))
			for i, p := range ps {
				kept[i] = p.staged.Bytes
			}
			d.relieve()
			largest := check()
			if used := d.pool.Bytes(); used > d.maxStagedBytes {
				t.Fatalf("%d bytes are left, want at most %d", used, d.maxStagedBytes)
			}
			for i, p := range ps {
				if kept[i] < largest && p.staged.Bytes != kept[i] {
					t.Fatalf("relieve dropped packets of a peer with %d bytes, although another peer keeps %d", kept[i], largest)
				}
			}
		}
	})
}
