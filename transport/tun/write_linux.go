//go:build linux && !android

package tun

import (
	"encoding/binary"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"github.com/seed-86b749af/wireguard/internal/packet"
	"golang.org/x/sys/unix"
)

// The path of packets that are written to the system, on the goroutine that has decrypted them:
//
//	WritePackets ─▶ packet: to the coalescer if the packet may be merged ─▶ Single, Merged ─▶ writev, without a copy

// These kinds of packets are merged.
const (
	tcp4 = iota
	tcp6
	udp4
	udp6
	kinds
)

// These values say what is known about merging one kind of packet. A value between mergeUntried and mergeRefused is the number
// of merged packets of this kind that the kernel has refused so far.
const (
	mergeProven  = -1 // the kernel has accepted a merged packet, so it supports this kind
	mergeUntried = 0
	mergeRefused = 3 // the kernel refused three merged packets and accepted none, so it does not support this kind
)

// A writer holds the temporary data of one call of WritePackets.
type writer struct {
	packet.Coalescer
	d *Interface

	head [virtioSize + packet.MaxHeaders]byte // the headers of a merged packet
	iovs []unix.Iovec

	// These fields hold the result of the last system call, and the counts of this call of WritePackets.
	errno syscall.Errno
	try   func(fd uintptr) // calls writev; made once, so that a call allocates nothing
	taken int
	err   error
	done  struct{ calls, packets, bytes, merged uint64 }
}

var writers = sync.Pool{New: func() any {
	w := new(writer)
	w.try = func(fd uintptr) { _, w.errno = w.d.writev(fd, w.iovs) }
	return w
}}

// zeroHeader is the virtio header of a packet that is not merged. It makes the kernel verify the packet's checksums.
var zeroHeader [virtioSize]byte

func (d *Interface) write(pkts [][]byte) (int, error) {
	w := writers.Get().(*writer)
	w.d = d
	for _, p := range pkts {
		w.packet(p)
	}
	w.Flush(w)
	n, err := w.taken, w.err
	w.account()
	writers.Put(w)
	return n, err
}

// account adds the writer's counts to the interface's counters, and resets the writer.
func (w *writer) account() {
	t := &w.d.traffic
	t.writeCalls.Add(w.done.calls)
	t.writtenPackets.Add(w.done.packets)
	t.writtenBytes.Add(w.done.bytes)
	t.merged.Add(w.done.merged)
	w.done.calls, w.done.packets, w.done.bytes, w.done.merged = 0, 0, 0, 0
	w.d, w.taken, w.err = nil, 0, nil
}

// packet writes p, or gives it to the coalescer, which merges consecutive packets of a flow.
func (w *writer) packet(p []byte) {
	if l3, l4, kind, ok := transport(p); ok && w.d.merges[kind].Load() != mergeRefused {
		w.Add(w, p, l3, l4, kind >= udp4, false)
		return
	}
	w.Single(p, 0)
}

// transport returns the offsets of the transport header (l3) and of the payload (l4) of p, and its kind. ok is false if p is
// not a complete TCP or UDP packet.
func transport(p []byte) (l3, l4, kind int, ok bool) {
	if len(p) < packet.IP4Header {
		return 0, 0, 0, false
	}
	var proto uint8
	switch p[0] >> 4 {
	case 4:
		const fragment = 0x3fff // mask of the fragment offset and of the flag that more fragments follow
		l3, proto = int(p[0]&15)*4, p[packet.IP4Protocol]
		if l3 < packet.IP4Header || int(binary.BigEndian.Uint16(p[packet.IP4Length:])) != len(p) ||
			binary.BigEndian.Uint16(p[packet.IP4Fragment:])&fragment != 0 {
			return 0, 0, 0, false
		}
	case 6:
		l3, proto, kind = packet.IP6Header, p[packet.IP6Next], tcp6
		if len(p) < l3 || int(binary.BigEndian.Uint16(p[packet.IP6Length:]))+l3 != len(p) {
			return 0, 0, 0, false
		}
	default:
		return 0, 0, 0, false
	}
	switch proto {
	case packet.TCP:
		l4, ok = packet.TCPEnd(p, l3)
		return l3, l4, kind, ok
	case packet.UDP:
		l4 = l3 + packet.UDPHeader
		return l3, l4, kind + udp4, l4 <= len(p)
	}
	return 0, 0, 0, false
}

// Single writes one packet that is not merged.
func (w *writer) Single(p []byte, _ int) {
	w.iovs = w.iovs[:0]
	if w.d.header > 0 {
		w.add(zeroHeader[:])
	}
	w.add(p)
	if w.call(p); w.errno == 0 {
		w.wrote(1, len(p))
		return
	}
	w.drop(w.errno)
}

// Merged writes the packets of a run, which belong to one flow, as one large packet. It builds the headers of the large packet
// in separate memory. So the packets stay unchanged, and Merged can write them one by one if the kernel refuses the large
// packet.
func (w *writer) Merged(r *packet.Run) {
	kind := tcp4
	h := virtio{flags: needsSum, gso: gsoTCP4, headers: uint16(r.L4), size: uint16(r.Size), start: uint16(r.L3), offset: packet.TCPChecksum}
	if r.Packets[0][0]>>4 == 6 {
		kind, h.gso = tcp6, gsoTCP6
	}
	if r.UDP {
		kind, h.gso, h.offset = kind+udp4, gsoUDP, packet.UDPChecksum
	}
	known := &w.d.merges[kind]
	if known.Load() == mergeRefused {
		w.oneByOne(r)
		return
	}
	h.put(w.head[:])
	n := r.Headers(w.head[virtioSize:])
	// The kernel completes the transport checksum. It expects the sum of the pseudo-header in the checksum field.
	head := w.head[virtioSize : virtioSize+n]
	binary.BigEndian.PutUint16(head[r.L3+int(h.offset):], packet.PseudoSum(head, r.Total-r.L3))
	w.iovs = w.iovs[:0]
	w.add(w.head[:virtioSize+n])
	for _, p := range r.Packets {
		w.add(p[r.L4:])
	}
	switch w.call(r.Packets[0]); w.errno {
	case 0:
		if known.Load() != mergeProven {
			known.Store(mergeProven)
		}
		w.wrote(len(r.Packets), r.Total+(len(r.Packets)-1)*r.L4)
		w.done.merged += uint64(len(r.Packets))
	case unix.EINVAL, unix.EOPNOTSUPP, unix.EMSGSIZE:
		// Do not count refusals once the kernel has accepted a merged packet of this kind, because a peer could send packets
		// that the kernel refuses for other reasons. If two writers are refused at the same time, only one refusal is counted.
		if n := known.Load(); n >= mergeUntried && n < mergeRefused {
			known.CompareAndSwap(n, n+1)
		}
		w.d.traffic.refused.Add(1)
		w.oneByOne(r)
	default:
		for range r.Packets {
			w.drop(w.errno)
		}
	}
}

func (w *writer) oneByOne(r *packet.Run) {
	for _, p := range r.Packets {
		w.Single(p, r.L4)
	}
}

func (w *writer) add(b []byte) {
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	w.iovs = append(w.iovs, iov)
}

// call writes the data in w.iovs to the queue of p's flow, in one system call. It does not lock the descriptor, so that
// concurrent writers do not wait for each other.
func (w *writer) call(p []byte) {
	q := w.d.queues[0]
	if f := w.d.flows; f != nil {
		q = w.d.queues[f.queue(p, len(w.d.queues))]
	}
	if err := q.raw.Control(w.try); err != nil {
		w.errno = unix.EBADF
	}
	clear(w.iovs) // a pooled writer must not keep the caller's memory
}

func (w *writer) wrote(packets, bytes int) {
	w.taken += packets
	w.done.calls++
	w.done.packets += uint64(packets)
	w.done.bytes += uint64(bytes)
}

// drop counts a packet that the system did not accept, and sets the error that WritePackets returns.
func (w *writer) drop(errno syscall.Errno) {
	t := &w.d.traffic
	switch errno {
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		t.full.Add(1)
	case unix.EIO: // the interface is down (tun_get_user in the kernel)
		t.down.Add(1)
	case unix.EBADFD:
		w.d.end(ErrDeleted)
		w.err = ErrDeleted
		return
	case unix.EBADF:
		w.err = errClosed
		return
	default:
		t.invalid.Add(1)
	}
	if w.err == nil {
		w.err = os.NewSyscallError("writev", errno)
	}
}

// writev writes without waiting, since the descriptor is non-blocking and no other program has it. The send buffer of a TUN has
// no limit, so the call never waits for space in it (tun.c: "sk->sk_sndbuf = INT_MAX"). If memory is short, the call may take
// longer, because the kernel reclaims memory, or it fails with ENOMEM or ENOBUFS. In both cases it does not wait for another
// program. Like read, it makes a raw system call, of which the Go runtime is not informed.
func writev(fd uintptr, iovs []unix.Iovec) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(iovs))), uintptr(len(iovs)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
