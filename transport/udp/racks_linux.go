package udp

import (
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

const (
	// maxSlots is the largest number of slots in a rack. This limits a rack to 4 MiB of address space. Pages that no datagram
	// was long enough to touch take no memory.
	maxSlots = 64

	// trimEvery is the interval at which the pool frees memory that was not needed since the last trim.
	trimEvery = 4 * time.Second
)

// A rack is the memory that one call of recvmmsg fills. It consists of slots, each of which can hold a datagram or a train. A
// receiver has a rack from the moment when the socket becomes readable until the receiver waits again.
type rack struct {
	n    int // number of slots that have memory; at least the number that the receiver reads into
	used int // largest number of slots that a receiver has requested since the last trim

	hdrs   [maxSlots]mmsghdr
	iovs   [maxSlots]unix.Iovec
	names  [maxSlots]unix.RawSockaddrInet6 // or RawSockaddrInet4, which is smaller
	oobs   [maxSlots]controlBuffer
	mem    [maxSlots][]byte
	trains [maxSlots]wireguard.Train
}

// An mmsghdr has the layout of the kernel's struct of the same name.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32 // bytes received or sent
}

func newRack() *rack {
	r := new(rack)
	for i := range r.hdrs {
		h := &r.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Control = (*byte)(unsafe.Pointer(&r.oobs[i]))
		r.rearm(i)
	}
	return r
}

// rearm prepares slot i for another read.
func (r *rack) rearm(i int) {
	h := &r.hdrs[i].hdr
	h.Namelen = unix.SizeofSockaddrInet6
	h.SetControllen(controlSize)
}

// reach allocates slots until the rack has at least n.
func (r *rack) reach(n int) {
	r.used = max(r.used, n)
	for ; r.n < n; r.n++ {
		r.mem[r.n] = make([]byte, slotSize)
		r.iovs[r.n].Base = &r.mem[r.n][0]
		r.iovs[r.n].SetLen(slotSize)
	}
}

// cut frees the memory of all slots except the first n.
func (r *rack) cut(n int) {
	for r.n > n {
		r.n--
		release(r.mem[r.n])
		r.mem[r.n], r.trains[r.n], r.iovs[r.n] = nil, wireguard.Train{}, unix.Iovec{}
	}
}

// release returns the physical memory of a slot to the system at once. The garbage collector also frees the slot, but in an
// idle program it may run only minutes later. If the slot does not consist of whole pages, the system call fails, and the
// memory waits for the garbage collector.
func release(slot []byte) {
	if os.Getpagesize() <= slotSize {
		unix.Madvise(slot, unix.MADV_DONTNEED)
	}
}

// A rackPool keeps the racks that no receiver uses at the moment, as a stack. It never holds more racks than the largest number
// of receivers that had datagrams to read at the same time. Each trim returns to the system the memory that no receiver has
// needed since the previous trim. So the pool is empty some seconds after the last datagram. An empty pool has no timer.
type rackPool struct {
	mu    sync.Mutex
	free  []*rack
	low   int // smallest number of free racks since the last trim
	armed bool
}

var racks rackPool // one per process, so that the receivers of all sockets use memory that may still be in a cache

// get returns a rack with at least want slots.
func (p *rackPool) get(want int) *rack {
	var r *rack
	p.mu.Lock()
	if n := len(p.free) - 1; n >= 0 {
		r, p.free[n] = p.free[n], nil
		p.free = p.free[:n]
		p.low = min(p.low, n)
	}
	p.mu.Unlock()
	if r == nil {
		r = newRack()
	}
	r.reach(want)
	return r
}

// put returns a rack to the pool, and starts the timer for trim if it does not run.
func (p *rackPool) put(r *rack) {
	p.mu.Lock()
	p.free = append(p.free, r)
	if !p.armed {
		p.armed, p.low = true, len(p.free)
		time.AfterFunc(trimEvery, p.trim)
	}
	p.mu.Unlock()
}

// trim frees the racks, and the slots of racks, that no receiver has needed since the last trim or, in the first trim, since
// the timer was started.
func (p *rackPool) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, r := range p.free {
		if i < p.low { // no receiver has used the lowest racks of the stack
			r.used = 0
		}
		r.cut(r.used)
		r.used = 0
	}
	n := copy(p.free, p.free[p.low:])
	clear(p.free[n:])
	p.free = p.free[:n]
	if p.low, p.armed = n, n > 0; p.armed {
		time.AfterFunc(trimEvery, p.trim)
	}
}
