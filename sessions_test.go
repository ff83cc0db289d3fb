package wireguard

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"
)

// TestIndexPrefix checks that each session index that the table draws begins with the prefix. If three quarters of the indices
// with this prefix are in use, reserve must return an error. Freeing the index that it returns with the error must not free an
// index in use.
func TestIndexPrefix(t *testing.T) {
	seed := rand.NewChaCha8([32]byte{1})
	random := func(b []byte) { seed.Read(b) }
	for _, x := range []IndexPrefix{{}, {0, 1}, {1, 1}, {5, 3}, {0x7fff, 15}, {0, 16}, {0xffff, 16}, {0xabcd, 16}} {
		s := sessionTable{prefix: x}
		seen := uint32(0)
		for range 100 {
			index, err := s.reserve(new(peer), random)
			if err != nil || index>>(32-x.Bits) != uint32(x.Value) {
				t.Fatalf("prefix %+v: reserve returned the index %#x and the error %v", x, index, err)
			}
			seen |= index ^ uint32(x.Value)<<(32-x.Bits)
		}
		if want := ^uint32(0) >> x.Bits; seen != want {
			t.Errorf("prefix %+v: the random bits are %#x, want %#x", x, seen, want)
		}
	}
	s := sessionTable{prefix: IndexPrefix{0xabcd, 16}}
	var last uint32
	for range 3 << 14 {
		index, err := s.reserve(new(peer), random)
		if err != nil {
			t.Fatal(err)
		}
		last = index
	}
	index, err := s.reserve(new(peer), random)
	if err != refusal(DropIndexFull) || index>>16 == 0xabcd {
		t.Errorf("a full table returned the index %#x and the error %v, want an index without the prefix and DropIndexFull", index, err)
	}
	if s.free(index); s.m.Len() != 3<<14 {
		t.Error("freeing the index that the full table returned freed an index in use")
	}
	s.free(last)
	if _, err := s.reserve(new(peer), random); err != nil {
		t.Error(err)
	}
}

// TestIndexPrefixOnWire checks that the device's indices in its initiations and responses, and in the answers of its peers, begin
// with the prefix.
func TestIndexPrefixOnWire(t *testing.T) {
	r, other := newRemote(1, testKey(1).Public()), newRemote(2, testKey(1).Public())
	e := newEndOf(t, Config{PrivateKey: testKey(1), Peers: []PeerConfig{r.config(), other.config()}, IndexPrefix: IndexPrefix{0xabcd, 16}})
	if err := e.Up(); err != nil {
		t.Fatal(err)
	}
	want := func(b []byte, at int) {
		t.Helper()
		if index := binary.LittleEndian.Uint32(b[at:]); index>>16 != 0xabcd {
			t.Errorf("a message of type %d has the index %#x of the device, want one with the prefix 0xabcd", b[0], index)
		}
	}
	e.send(t, r.numbered(1))
	m := e.line.next(t, "an initiation").b
	want(m, 4)
	answer := r.response(t, m)
	want(answer, 8)
	e.line.receive(r.train(answer))
	e.line.next(t, "the staged packet")
	e.advance(t, 6*time.Second)
	e.line.receive(r.train(r.initiation()))
	want(e.line.next(t, "a response").b, 4)

	// When the table of indices is full, the device drops a message that needs an index, and no goroutine waits for an index.
	random := rand.NewChaCha8([32]byte{1})
	for err := error(nil); err == nil; {
		_, err = e.sessions.reserve(new(peer), func(b []byte) { random.Read(b) })
	}
	before := e.drops.load()
	e.advance(t, 6*time.Second)
	e.line.receive(r.train(r.initiation()))
	e.settle(t)
	e.line.nothing(t, "there is no index for a response")
	e.wantDrops(t, before, DropIndexFull, 1, "the device cannot make a response")
	e.send(t, other.numbered(1))
	e.settle(t)
	e.line.nothing(t, "there is no index for an initiation")
	e.wantDrops(t, before, DropIndexFull, 2, "the device cannot make an initiation")
}

func TestIndexPrefixBounds(t *testing.T) {
	for _, x := range []IndexPrefix{{0, -1}, {0, 17}, {1, 0}, {4, 2}} {
		_, err := New(Config{Tunnel: newDrain(), Bind: newLine(), IndexPrefix: x})
		wantErrors(t, err, []string{"Config.IndexPrefix is ", "want 0 to 16 bits"})
	}
}

// TestIndicesAreUnpredictable checks 1,000 indices of a new device, because another implementation used consecutive indices. Each
// bit must be set in about half of the indices, and nearly all differences between an index and the next one must be distinct.
func TestIndicesAreUnpredictable(t *testing.T) {
	d, err := New(Config{Tunnel: newDrain(), Bind: newLine()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const n = 1000
	var set [32]int
	distances := make(map[uint32]bool)
	last := uint32(0)
	for range n {
		index, err := d.sessions.reserve(new(peer), d.random)
		if err != nil {
			t.Fatal(err)
		}
		for bit := range set {
			set[bit] += int(index >> bit & 1)
		}
		distances[index-last] = true
		last = index
	}
	for bit, times := range set {
		if times < n/3 || times > n*2/3 { // 10 standard deviations
			t.Errorf("bit %d is set in %d of %d indices", bit, times, n)
		}
	}
	if len(distances) < n-2 {
		t.Errorf("there are %d different distances between consecutive indices, want about %d", len(distances), n)
	}
}
