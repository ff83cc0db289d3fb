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
	// maxSlots limits a rack, to 4 MiB of address space. What no datagram was long enough to touch is no memory.
	maxSlots = 64

	// trimEvery is how often the pool looks for memory that nobody needed since the last look.
	trimEvery = 4 * time.Second
)

// A rack is what one recvmmsg fills: slots, each for a datagram or a train of them. A receiver has one from when the
// poller says that there is something to read until it goes back to waiting.
type rack struct {
	n    int // slots that have memory: at least as many as its receiver reads with
	used int // most slots that a receiver asked for since the pool looked last

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

// rearm makes slot i ready to be read into again.
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

// cut takes the memory of all slots but the first n.
func (r *rack) cut(n int) {
	for r.n > n {
		r.n--
		release(r.mem[r.n])
		r.mem[r.n], r.trains[r.n], r.iovs[r.n] = nil, wireguard.Train{}, unix.Iovec{}
	}
}

// release gives the pages of a slot back to the system. The garbage collector takes the slot itself, but on a machine
// that went quiet that can be minutes later. A slot consists of whole pages or the call fails.
func release(slot []byte) {
	if os.Getpagesize() <= slotSize {
		unix.Madvise(slot, unix.MADV_DONTNEED)
	}
}

// A rackPool keeps the racks that no receiver uses at the moment, the last used on top: never more than there were
// receivers with something to read at one time. What was not needed between two looks goes back to the system, so that
// some seconds after the last datagram nothing is left. While it is empty it has no timer.
type rackPool struct {
	mu    sync.Mutex
	free  []*rack
	low   int // fewest racks that were free since the last look
	armed bool
}

var racks rackPool // of the process: receivers of all sockets share warm memory

// get hands out a rack with at least want slots.
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

// trim drops the racks, and the slots of racks, that nobody needed since it ran last, or since the timer was armed.
func (p *rackPool) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, r := range p.free {
		if i < p.low { // the least used lie at the bottom
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
