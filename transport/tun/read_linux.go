//go:build linux && !android

package tun

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

// The way out of a packet, on the goroutine that reads its queue:
//
//	ReadPackets ─▶ what was left of the packet before ─▶ poller ─▶ try: read into memory that is had only while there is
//	            something to read ─▶ cutter: straight into the batch, in as many segments as it takes

// A queue is one descriptor of the interface. One goroutine at a time reads it.
type queue struct {
	d    *Interface
	n    int
	file *os.File
	raw  syscall.RawConn

	// For the reader alone.
	memory *readMemory // nil while nothing is read and nothing is left
	cut    cutter
	b      *wireguard.Batch
	waited bool // this call found nothing at first
	errno  syscall.Errno
	try    func(fd uintptr) bool // tryRead, bound once
}

// readMemory holds one packet as the kernel hands it over: IPv6 counts 65,535 bytes without its header.
type readMemory [virtioSize + 40 + 65535]byte

var readMemories = sync.Pool{New: func() any { return new(readMemory) }}

func newQueue(d *Interface, n int, f *os.File) *queue {
	q := &queue{d: d, n: n, file: f}
	q.try = q.tryRead
	return q
}

// ReadPackets waits for packets and appends them to b.
func (q *queue) ReadPackets(b *wireguard.Batch) error {
	q.b, q.waited, q.errno = b, false, 0
	err := q.readSome()
	q.b = nil
	n, bytes := b.Len(), 0
	for i := range n {
		bytes += len(b.Packet(i))
	}
	q.d.traffic.readPackets.Add(uint64(n))
	q.d.traffic.readBytes.Add(uint64(bytes))
	return err
}

func (q *queue) readSome() error {
	if q.cut.pending() && !q.cut.into(q.b) {
		return nil // it is larger than the batch
	}
	err := q.raw.Read(q.try)
	if !q.cut.pending() {
		q.release()
	}
	switch {
	case err != nil:
		return q.failed(err)
	case q.errno != 0:
		return q.failed(os.NewSyscallError("read", q.errno))
	}
	return nil
}

func (q *queue) release() {
	if q.memory != nil {
		readMemories.Put(q.memory)
		q.memory = nil
	}
}

// tryRead reads without waiting, and reports whether the outcome is one to return. The poller calls it at once and then
// each time that there is something to read.
//
// A packet that was waited for is handed on by itself, since there are seldom more at that moment; what arrives while it
// is on its way makes the next batch.
func (q *queue) tryRead(fd uintptr) bool {
	if q.memory == nil {
		q.memory = readMemories.Get().(*readMemory)
	}
	for {
		n, errno := read(fd, q.memory[:])
		switch errno {
		case 0:
		case unix.EAGAIN:
			if q.b.Len() > 0 {
				return true
			}
			q.release()
			q.waited = true
			return false
		default:
			q.errno = errno
			return true
		}
		q.d.traffic.readCalls.Add(1)
		q.take(q.memory[:n])
		if q.cut.pending() || q.b.Len() > 0 && (q.waited || q.b.Next(q.d.MTU()) == nil) {
			return true
		}
	}
}

// take puts what was read into the batch, as far as it fits.
func (q *queue) take(b []byte) {
	h := virtio{}
	if q.d.header > 0 {
		if len(b) < q.d.header {
			q.d.traffic.malformed.Add(1)
			return
		}
		h, b = getVirtio(b), b[q.d.header:]
	}
	if f := q.d.flows; f != nil {
		f.seen(b, q.n)
	}
	if !q.cut.begin(h, b) {
		q.d.traffic.malformed.Add(1)
		return
	}
	q.cut.into(q.b)
}

// failed is what the reader returns for an error, which ends the device: the poller and the kernel have several for an
// interface that is gone.
func (q *queue) failed(err error) error {
	if _, gone := q.d.interfaceName(); errors.Is(gone, ErrDeleted) {
		err = ErrDeleted
	}
	q.d.end(err) // which is nothing new after Close
	return q.d.ending()
}

// read reads without waiting: the descriptor is set so. It is a raw call for the reason that recvmmsg of transport/udp gives.
func read(fd uintptr, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
