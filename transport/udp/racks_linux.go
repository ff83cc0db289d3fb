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
	// maxSlots limits a rack to 4 MiB of address space. Pages that no datagram was long enough to touch take no memory.
	maxSlots = 64

	// trimEvery is the interval at which the pool frees memory that was not needed since the last trim.
	trimEvery = 4 * time.Second
)

// A rack is the memory that one recvmmsg fills: slots, each for a datagram or a train. A receiver holds a rack from the
// moment when the socket becomes readable until it waits again.
type rack struct {
	n    int // slots that have memory; at least as many as the receiver reads with
	used int // most slots that a receiver asked for since the last trim

	hdrs   [maxSlots]mmsghdr
	iovs   [maxSlots]unix.Iovec
	names  [maxSlots]unix.RawSockaddrInet6 // or RawSockaddrInet4, which is smaller
	oobs   [maxSlots]controlBuffer
	mem    [maxSlots][]byte
	trains [maxSlots]wireguard.Train
}

// mmsghdr is the kernel's struct of that name.
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

// reach gives the rack at least n slots.
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

// release returns the pages of a slot to the system. The garbage collector frees the slot itself, but on a quiet
// machine it may run only minutes later. The call fails, without harm, if a slot does not consist of whole pages.
func release(slot []byte) {
	if os.Getpagesize() <= slotSize {
		unix.Madvise(slot, unix.MADV_DONTNEED)
	}
}

// A rackPool keeps the racks that no receiver uses at the moment, with the last used on top. It never holds more racks
// than the largest number of receivers that had something to read at the same time. Each trim returns the memory that
// was not needed since the last trim to the system. So some seconds after the last datagram the pool is empty. An empty
// pool has no timer.
type rackPool struct {
	mu    sync.Mutex
	free  []*rack
	low   int // fewest racks that were free since the last trim
	armed bool
}

var racks rackPool // one per process, so that the receivers of all sockets share warm memory

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

// put takes a rack back.
func (p *rackPool) put(r *rack) {
	p.mu.Lock()
	p.free = append(p.free, r)
	if !p.armed {
		p.armed, p.low = true, len(p.free)
		time.AfterFunc(trimEvery, p.trim)
	}
	p.mu.Unlock()
}

// trim frees the racks, and the slots of racks, that no receiver needed since trim last ran or since the timer was
// armed.
func (p *rackPool) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, r := range p.free {
		if i < p.low { // the least used racks are at the bottom
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
