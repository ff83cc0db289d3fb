package udp

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

// The inbound path on Linux, in the order in which a datagram passes it:
//
//	Receive ─▶ poller ─▶ try: recvmmsg into the slots of a rack, held only while there is something to read
//	        ─▶ trains: one train per slot, with its control messages ─▶ adapt: more slots, or fewer

// A linuxPath sends and receives the datagrams of one socket with all offloads of Linux. Only one goroutine may call Receive.
type linuxPath struct {
	*conn

	// Only Receive uses these fields.
	rack  *rack // nil while the receiver waits
	want  int   // number of slots to read into, from 1 to maxSlots
	busy  bool  // the last read found a datagram without waiting
	quiet int   // number of consecutive reads that filled at most half of the slots
	got   int   // number of slots that the last read filled
	errno syscall.Errno
	try   func(fd uintptr) bool // calls tryReceive; made once, so that a call allocates nothing

	zones  zones
	plain  plainPaths   // for Send
	routes *routes      // for Send; nil means that no routes are watched
	tos    atomic.Int32 // for Send: tosUnknown, tosTaken or tosRefused

	// Tests replace these system calls to make them fail.
	recvmmsg func(fd uintptr, m []mmsghdr) (int, syscall.Errno)
	sendmmsg func(fd uintptr, m []mmsghdr) (int, syscall.Errno)
}

// newLinux makes the path of c. beside is the path of the Socket's first socket of the same family, or nil if c is that socket. All
// IPv4 paths of a Socket use the same routes value, which is closed with the first socket.
func newLinux(c *conn, beside path) *linuxPath {
	p := &linuxPath{conn: c, want: 1, recvmmsg: recvmmsg, sendmmsg: sendmmsg}
	p.try = p.tryReceive
	if first, ok := beside.(*linuxPath); ok {
		p.routes = first.routes
	} else if c.family == ipv4 {
		if p.routes = watchRoutes(); p.routes != nil {
			c.also = p.routes
		}
	}
	return p
}

// Receive waits for datagrams and returns them.
func (p *linuxPath) Receive() ([]wireguard.Train, error) {
	for faults := 0; ; {
		p.busy = p.rack != nil
		if err := p.read(); err != nil {
			p.putRack()
			return nil, closedOr(err)
		}
		if p.errno != 0 {
			if faults++; faults > faultsInRow {
				p.putRack()
				return nil, receiveError(p.errno)
			}
			continue
		}
		ts := p.trains()
		if len(ts) > 0 {
			return ts, nil
		}
	}
}

// read waits until the socket has datagrams, and reads them into the rack. On a retired socket, read fails when two reads in a
// row, retirePause apart, have found no datagram, and at the latest at the end of retireTime.
func (p *linuxPath) read() error {
	if err := p.raw.Read(p.try); !p.isRetired(err) {
		return err
	}
	for r := p.retired.Load(); !r.isLate(); {
		some := false
		if err := p.raw.Control(func(fd uintptr) { some = p.tryReceive(fd) }); err != nil {
			return err
		}
		if some {
			r.vain = 0
			return nil
		}
		if r.isOver(2) {
			break
		}
	}
	return errClosed
}

// tryReceive reads without waiting. It returns false if the socket has no datagram. The runtime's poller calls it at once, and
// then each time that the socket becomes readable, until it returns true.
func (p *linuxPath) tryReceive(fd uintptr) bool {
	if p.rack == nil {
		p.rack = racks.get(p.want)
	}
	p.got, p.errno = p.recvmmsg(fd, p.rack.hdrs[:p.want])
	if p.errno == unix.EAGAIN {
		p.putRack()
		p.busy = false
		return false
	}
	return true
}

func (p *linuxPath) putRack() {
	if p.rack != nil {
		racks.put(p.rack)
		p.rack = nil
	}
}

// trains returns the trains in the slots that were filled. It leaves out slots whose contents are damaged.
func (p *linuxPath) trains() []wireguard.Train {
	r := p.rack
	n, datagrams, bytes := 0, 0, 0
	for i := range p.got {
		t := &r.trains[n]
		if p.train(t, i) {
			n++
			datagrams += t.Len()
			bytes += len(t.Data)
		} else {
			p.in.faults.Add(1)
		}
		r.rearm(i)
	}
	p.in.add(datagrams, bytes)
	p.adapt(bytes)
	return r.trains[:n]
}

// train sets t to the train in slot i, and reports whether the train is complete.
func (p *linuxPath) train(t *wireguard.Train, i int) bool {
	r := p.rack
	m := &r.hdrs[i]
	n := int(m.n)
	from, ok := p.from(&r.names[i], m.hdr.Namelen)
	if !ok || n == 0 || n > slotSize || m.hdr.Flags&unix.MSG_TRUNC != 0 {
		return false
	}
	c := parseControl(r.oobs[i].bytes()[:min(controlSize, int(m.hdr.Controllen))])
	if c.size <= 0 {
		// If control messages were cut off, the one that says where each datagram of a train ends may be missing.
		if c.malformed || p.gro && m.hdr.Flags&unix.MSG_CTRUNC != 0 {
			return false
		}
		c.size = n
	}
	*t = wireguard.Train{Data: r.mem[i][:n:n], Size: min(c.size, n), TOS: c.tos}
	t.Endpoint.Addr = from
	t.Endpoint.Source, t.Endpoint.Interface = c.source()
	return true
}

// from returns the sender's address. ok is false if that address is not of the socket's family.
func (p *linuxPath) from(sa *unix.RawSockaddrInet6, length uint32) (netip.AddrPort, bool) {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	switch {
	case p.family == ipv4 && sa.Family == unix.AF_INET && length >= unix.SizeofSockaddrInet4:
		a := netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr)
		return netip.AddrPortFrom(a, port), true
	case p.family == ipv6 && sa.Family == unix.AF_INET6 && length >= unix.SizeofSockaddrInet6:
		a := netip.AddrFrom16(sa.Addr).Unmap()
		if sa.Scope_id != 0 && a.IsLinkLocalUnicast() {
			a = a.WithZone(p.zones.name(sa.Scope_id))
		}
		return netip.AddrPortFrom(a, port), true
	}
	return netip.AddrPort{}, false
}

const (
	// If a read returns enoughBytes, the cost of its system call no longer matters. More slots would only spread the data over
	// more memory than a core's cache holds.
	enoughBytes = 128 << 10

	// quietReads is how many consecutive reads must fill at most half of the slots before adapt halves their number.
	quietReads = 32
)

// adapt sets the number of slots for the next read. bytes is how many bytes the last read returned.
func (p *linuxPath) adapt(bytes int) {
	full := p.got == p.want
	switch {
	case bytes >= 2*enoughBytes && p.want > 1:
		p.want /= 2
		p.quiet = 0
	case full && (p.busy || p.want > 1):
		p.quiet = 0
		if bytes < enoughBytes && p.want < maxSlots {
			p.want *= 2
			p.rack.reach(p.want)
		}
	case p.got <= p.want/2:
		if p.quiet++; p.quiet >= quietReads {
			p.want /= 2
			p.quiet = 0
		}
	default:
		p.quiet = 0
	}
}

// recvmmsg reads datagrams into m until m is full or the socket has no more, and returns how many elements of m it filled.
//
// recvmmsg makes a raw system call, which is allowed because the call cannot wait. Before an ordinary system call, the Go runtime
// prepares to continue without this thread, and in an idle process it wakes another thread to monitor the call. This would delay
// each single packet.
func recvmmsg(fd uintptr, m []mmsghdr) (int, syscall.Errno) {
	return messages(unix.SYS_RECVMSG, unix.SYS_RECVMMSG, fd, m)
}

// messages passes the messages in m to the kernel. The parameter one is the number of the system call for a single message, and
// the parameter many is the number of the system call for several messages. messages returns how many messages the kernel has
// sent or filled. It returns an error only if the first message failed.
//
// Because of MSG_DONTWAIT, the call does not wait for a datagram or for space in the send buffer, even if the program has used
// Bind.Control to make the socket blocking. If memory is short, a call that sends may take longer, because the kernel reclaims
// memory, or it fails with ENOMEM or ENOBUFS. In both cases it does not wait for another program.
func messages(one, many, fd uintptr, m []mmsghdr) (int, syscall.Errno) {
	for {
		n := uintptr(1)
		var errno syscall.Errno
		if len(m) == 1 {
			var size uintptr
			size, _, errno = unix.RawSyscall(one, fd, uintptr(unsafe.Pointer(&m[0].hdr)), unix.MSG_DONTWAIT)
			m[0].n = uint32(size)
		} else {
			n, _, errno = unix.RawSyscall6(many, fd, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), unix.MSG_DONTWAIT, 0, 0)
		}
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}
