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

// The path of packets that are read from the system, on the goroutine that reads their queue:
//
//	ReadPackets ─▶ rest of the last packet ─▶ poller ─▶ try: read into memory that the queue has only while there is
//	            a packet to read ─▶ cutter: copy the packet into the batch, in segments if it is large

// A queue reads and writes one descriptor of the interface. Only one goroutine at a time may read it.
type queue struct {
	d    *Interface
	n    int
	file *os.File
	raw  syscall.RawConn

	// Only ReadPackets uses these fields.
	memory *readMemory // nil while the queue is idle and no packet is pending
	cut    cutter
	b      *wireguard.Batch
	waited bool // this call of ReadPackets had to wait for a packet
	errno  syscall.Errno
	try    func(fd uintptr) bool // calls tryRead; made once, so that a call allocates nothing
}

// readMemory has space for one packet that the kernel returns, with its virtio header. The 40 bytes are for the IPv6 header,
// which the length field of IPv6, at most 65,535, does not include.
type readMemory [virtioSize + 40 + 65535]byte

var readMemories = sync.Pool{New: func() any { return new(readMemory) }}

func newQueue(d *Interface, n int, f *os.File) *queue {
	q := &queue{d: d, n: n, file: f}
	q.try = q.tryRead
	return q
}

// ReadPackets waits until at least one packet is available, and appends packets to b.
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
		return nil // the rest of the packet filled the batch
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

// tryRead reads without waiting, and reports whether ReadPackets should return. The runtime's poller calls tryRead at once, and
// then each time that the descriptor becomes readable, until it returns true.
//
// If ReadPackets had to wait for a packet, it returns this packet alone, since more packets are rarely available at that
// moment. The next call returns the packets that have arrived meanwhile.
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

// take processes b, a packet with its virtio header that was just read. It copies the packet into the batch. From a large packet,
// it copies as many segments as fit.
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

// failed ends the interface because of err, and returns the error that ReadPackets must return. For a deleted interface the
// poller and the kernel return several different errors, so failed asks the kernel whether the interface still exists.
func (q *queue) failed(err error) error {
	if _, gone := q.d.interfaceName(); errors.Is(gone, ErrDeleted) {
		err = ErrDeleted
	}
	q.d.end(err) // no effect after Close
	return q.d.ending()
}

// read reads without waiting, since the descriptor is non-blocking: this process opened it, and no other program has it. The kernel
// allocates no memory for the call, because the packet exists already. If memory is short, the kernel may have to page in b, as for
// any other code that writes to b. The system call is raw for the reason given at recvmmsg in transport/udp.
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
