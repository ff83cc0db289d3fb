package wireguard

import (
	"testing"

	"pgregory.net/rapid"
)

// A replayStep is a counter that the test gives to a replay window. fresh says whether the window must accept the counter.
type replayStep struct {
	counter uint64
	fresh   bool
}

// replayTable has sequences of counters for a window of size 8128: a counter may be at most 8128 less than the greatest one.
var replayTable = []struct {
	name  string
	steps []replayStep
}{
	{"in order, each once", []replayStep{{0, true}, {0, false}, {1, true}, {1, false}, {2, true}, {0, false}}},
	{"out of order", []replayStep{{9, true}, {8, true}, {7, true}, {7, false}, {0, true}, {8, false}, {9, false}}},
	{"oldest usable", []replayStep{{8128, true}, {0, true}, {0, false}, {1, true}}},
	{"one past the oldest", []replayStep{{8129, true}, {0, false}, {1, true}, {1, false}}},
	{"moving on by one forgets one", []replayStep{{8128, true}, {8129, true}, {0, false}, {1, true}}},
	{"bit of a word's end", []replayStep{{62, true}, {63, true}, {64, true}, {63, false}, {62, false}, {127, true}, {128, true}, {126, true}}},
	{"jump of a word", []replayStep{{0, true}, {64, true}, {1, true}, {63, true}, {0, false}, {64, false}}},
	{"jump of the whole ring", []replayStep{{5, true}, {5 + 8192, true}, {5, false}, {6 + 64, true}, {4 + 8192, true}}},
	{"jump of many rings", []replayStep{{5, true}, {5 + 8192*1000, true}, {5 + 8192*999, false}, {5 + 8192*1000 - 8128, true}, {5 + 8192*1000 - 8129, false}}},
	{"counters of more than 32 bits", []replayStep{{1 << 32, true}, {1<<32 - 1, true}, {0, false}, {1, false}, {1<<33 + 7, true}, {1<<32 + 7, false}, {1<<33 + 6, true}}},
	{"greatest of a key", []replayStep{{rejectAfterMessages - 1, true}, {rejectAfterMessages - 1, false}, {rejectAfterMessages - 2, true}, {rejectAfterMessages - 1 - 8128, true}, {rejectAfterMessages - 1 - 8129, false}, {0, false}}},
	{"past the greatest of a key", []replayStep{{rejectAfterMessages, false}, {rejectAfterMessages + 1, false}, {1<<64 - 1, false}, {1<<64 - 2, false}, {0, true}}},
	{"what is refused moves nothing", []replayStep{{10000, true}, {1871, false}, {1872, true}, {1<<64 - 1, false}, {1873, true}, {10001, true}}},
}

func TestReplayTable(t *testing.T) {
	for _, c := range replayTable {
		t.Run(c.name, func(t *testing.T) {
			var w window
			for i, s := range c.steps {
				if got := w.accept(s.counter); got != s.fresh {
					t.Fatalf("step %d: accept(%d) = %v, want %v", i, s.counter, got, s.fresh)
				}
			}
		})
	}
}

// TestReplayJumps increases the counter by many distances, up to more than the size of the ring of bits. After each jump, the
// window must accept each smaller counter within the window once, except the counter from before the jump.
func TestReplayJumps(t *testing.T) {
	for jump := uint64(1); jump <= windowBits+2*wordBits; jump += 1 + jump%7 {
		for _, start := range []uint64{0, 1, 62, 63, 64, 8191, 8192, 1<<32 - 1} {
			var w window
			w.accept(start)
			top := start + jump
			if !w.accept(top) {
				t.Fatalf("from %d: a jump of %d was refused", start, jump)
			}
			for _, back := range []uint64{1, 2, 63, 64, 65, 127, 4096, windowSize - 1, windowSize, windowSize + 1} {
				if back > top {
					continue
				}
				c := top - back
				if got, want := w.accept(c), back <= windowSize && c != start; got != want {
					t.Fatalf("from %d, jump %d: accept(%d behind) = %v, want %v", start, jump, back, got, want)
				}
				if w.accept(c) {
					t.Fatalf("from %d, jump %d: %d behind was accepted twice", start, jump, back)
				}
			}
		}
	}
}

func TestReplayWholeWindowBackwards(t *testing.T) {
	const top = 3*windowBits + 17
	var w window
	for round, want := range []bool{true, false} {
		for back := uint64(0); back <= windowSize; back++ {
			if w.accept(top-back) != want {
				t.Fatalf("round %d: the counter %d behind the greatest one was accepted: %v", round, back, !want)
			}
		}
	}
}

// A replayModel is a model of a replay window: it has the set of all accepted counters, and the greatest of them.
type replayModel struct {
	seen map[uint64]bool
	top  uint64
}

func (m *replayModel) accept(c uint64) bool {
	if c >= rejectAfterMessages || m.seen[c] || c < m.top && m.top-c > windowSize {
		return false
	}
	m.seen[c] = true
	m.top = max(m.top, c)
	return true
}

func TestReplayModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		m := replayModel{seen: make(map[uint64]bool)}
		near := func(c uint64) uint64 {
			by := rapid.SampledFrom([]uint64{0, 1, 2, 63, 64, 65, 128, windowSize - 1, windowSize, windowSize + 1, windowBits - 1, windowBits, windowBits + 1, 3 * windowBits}).Draw(t, "by")
			if rapid.Bool().Draw(t, "behind") {
				return c - min(c, by)
			}
			return c + by
		}
		last := rapid.SampledFrom([]uint64{0, 100, 1 << 32, 1 << 60, rejectAfterMessages - 2*windowBits}).Draw(t, "start")
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			c := last
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				c = near(m.top)
			case 1:
				c = near(last)
			case 2:
				c = m.top + 1
			default:
				c = m.top - min(m.top, rapid.Uint64Range(0, windowBits).Draw(t, "back"))
			}
			if got, want := w.accept(c), m.accept(c); got != want {
				t.Fatalf("accept(%d) = %v, want %v (greatest %d)", c, got, want, m.top)
			}
			last = c
		}
	})
}
