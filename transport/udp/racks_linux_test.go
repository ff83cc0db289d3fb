package udp

import (
	"testing"

	"github.com/seed-86b749af/wireguard"
)

// settle receives the n datagrams that are in the socket of y, and then tries another read, as a receiver does before it waits.
func settle(t *testing.T, y *end, n int) {
	t.Helper()
	y.receive(ipv4, n)
	p := fast(t, y, ipv4)
	p.raw.Control(func(fd uintptr) {
		if p.tryReceive(fd) {
			t.Fatal("the socket still holds a datagram")
		}
	})
}

// TestSlotsGrowAndShrink checks that the number of slots grows to 64 while many small datagrams arrive, and shrinks to 1 when
// they arrive one at a time. It also checks that a receiver that waits has no rack.
func TestSlotsGrowAndShrink(t *testing.T) {
	for _, v := range variants[:2] {
		x, y := v.pair(t, ipv4)
		p := fast(t, y, ipv4)
		single := trainOf(1, 100, 100, y.at(ipv4))
		var burst []wireguard.Train
		for range 200 {
			burst = append(burst, single)
		}
		for range 3 {
			x.send(burst...)
			settle(t, y, len(burst))
			if p.rack != nil {
				t.Fatalf("%s: a receiver that waits still holds a rack", v.name)
			}
		}
		if p.want != maxSlots {
			t.Errorf("%s: %d slots under load, want %d", v.name, p.want, maxSlots)
		}
		before := y.Stats()
		x.send(burst...)
		settle(t, y, len(burst))
		if calls := y.Stats().ReceiveCalls - before.ReceiveCalls; calls > 4 {
			t.Errorf("%s: receiving 200 datagrams took %d system calls, want at most 4", v.name, calls)
		}
		for range 7 * quietReads {
			x.send(single)
			settle(t, y, 1)
		}
		if p.want != 1 {
			t.Errorf("%s: %d slots when datagrams arrive one at a time, want 1", v.name, p.want)
		}
	}
}

// TestSlotsForTrainsAreFew checks that a receiver reads into few slots if trains are large, so that the data of one read fits
// into a core's cache.
func TestSlotsForTrainsAreFew(t *testing.T) {
	x, y := variants[0].pair(t, ipv4)
	p := fast(t, y, ipv4)
	if !p.gso || !p.gro {
		t.Skip("needs UDP offloads")
	}
	p.want = maxSlots
	long := trainOf(1, 40*1400, 1400, y.at(ipv4))
	for range 20 {
		x.send(long, long, long, long, long, long, long, long)
		settle(t, y, 8*40)
	}
	if p.want > 4 {
		t.Errorf("%d slots for trains of 56 KB, want at most 4", p.want)
	}
}

// TestPoolIsTrimmed checks that trim frees the memory that no receiver has needed since the previous trim, and that further trims
// empty the pool.
func TestPoolIsTrimmed(t *testing.T) {
	var p rackPool
	a, b := p.get(maxSlots), p.get(4)
	if a.n != maxSlots || b.n != 4 {
		t.Fatalf("got %d and %d slots, want %d and 4", a.n, b.n, maxSlots)
	}
	p.put(a)
	p.put(b)
	p.mu.Lock()
	p.low = 0 // as if all racks had been in use at once since the last trim
	p.mu.Unlock()
	for _, s := range []struct {
		what         string
		use          func()
		racks, slots int
	}{
		{"both racks used", func() {}, 2, maxSlots + 4},
		{"one rack used, with two slots", func() { p.put(p.get(2)) }, 1, 2},
		{"one rack used, with one slot", func() { p.put(p.get(1)) }, 1, 1},
		{"one rack used, with nine slots", func() { p.put(p.get(9)) }, 1, 9},
		{"no rack used", func() {}, 0, 0},
	} {
		s.use()
		p.trim()
		p.mu.Lock() // the timer may call trim at the same time
		slots := 0
		for _, r := range p.free {
			slots += r.n
		}
		if len(p.free) != s.racks || slots != s.slots {
			t.Errorf("%s: after trim, the pool has %d racks with %d slots, want %d with %d", s.what, len(p.free), slots, s.racks, s.slots)
		}
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed {
		t.Error("the pool is empty, but its timer is still set")
	}
}

// TestReleasedMemoryIsGone checks that the memory of a released slot is returned to the system at once, without the garbage
// collector.
func TestReleasedMemoryIsGone(t *testing.T) {
	r := newRack()
	r.reach(1)
	slot := r.mem[0]
	slot[0], slot[slotSize-1] = 1, 1
	r.cut(0)
	if slot[0] != 0 || slot[slotSize-1] != 0 {
		t.Error("cut did not return the pages of the slot to the system")
	}
	if r.reach(3); r.n != 3 || len(r.mem[2]) != slotSize || r.iovs[2].Base != &r.mem[2][0] {
		t.Error("reach did not give memory to a slot that cut had released")
	}
}
