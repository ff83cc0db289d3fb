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

// The outbound path of a packet, on the goroutine that reads its queue:
//
//	ReadPackets ─▶ rest of the last packet ─▶ poller ─▶ try: read into memory that the queue holds only while there is
//	            something to read ─▶ cutter: straight into the batch, in as many segments as it takes

// A queue is one descriptor of the interface. One goroutine at a time may read it.
type queue struct {
	d    *Interface
	n    int
	file *os.File
	raw  syscall.RawConn

	// Only the reader uses these fields.
	memory *readMemory // nil while the queue is idle and no packet is pending
	cut    cutter
	b      *wireguard.Batch
	waited bool // this call had to wait for a packet
	errno  syscall.Errno
	try    func(fd uintptr) bool // tryRead, bound once
}

// readMemory holds one packet as the kernel hands it over, behind a virtio header. The length field of IPv6, at most 65,535, does
// not include the 40 bytes of the IPv6 header.
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
		return nil // the packet is larger than the batch
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

// tryRead reads without waiting, and reports whether ReadPackets should return. The poller calls tryRead at once, and
// then each time that the descriptor becomes readable.
//
// A packet that ReadPackets waited for is returned alone, since more packets are rarely queued at that moment. Packets
// that arrive in the meantime make the next batch.
func (q *queue) tryRead(fd uintptr) bool {
	if q.memory == nil {
		q.memory = readMemories.Get().(*readMemory)
	}
	for {
		n, errno := q.d.read(fd, q.memory[:])
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

// take puts the packet that was read into the batch, as far as it fits.
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

// failed returns the reader's error for err, and ends the device. The poller and the kernel report an interface that is
// gone with several errors.
func (q *queue) failed(err error) error {
	if _, gone := q.d.interfaceName(); errors.Is(gone, ErrDeleted) {
		err = ErrDeleted
	}
	q.d.end(err) // no effect after Close
	return q.d.ending()
}

// read reads without waiting, because the descriptor is non-blocking: this process opened it, and nobody else holds it. The kernel
// allocates nothing for it: the packet exists already. If memory is short, b may have to be paged in, as in any other code that
// touches b. It is a raw call for the reason given at recvmmsg in transport/udp.
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
