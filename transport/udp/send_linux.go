package udp

import (
	"net/netip"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

// The way out on Linux, in the order a train meets it:
//
//	send ─▶ a flight from the pool ─▶ train: cut to what one message may carry ─▶ add: address and control messages
//	     ─▶ flush: sendmmsg, or sendmsg for a single message ─▶ fault: what the first message left was refused for

const (
	maxMessages = 64 // of one sendmmsg
	maxSegments = 64 // of one message (UDP_MAX_SEGMENTS)
)

// maxPayload is the largest UDP payload in a packet of 65,535 bytes.
var maxPayload = [families]int{65535 - 20 - 8, 65535 - 40 - 8}

// A flight is the messages of one system call.
type flight struct {
	path *linuxPath
	n    int // messages added
	at   int // of which so many are dealt with

	messages [maxMessages]message
	hdrs     [maxMessages]mmsghdr
	iovs     [maxMessages]unix.Iovec
	names    [maxMessages]unix.RawSockaddrInet6 // or RawSockaddrInet4, which is smaller
	oobs     [maxMessages]controlBuffer

	// The outcome of the last system call.
	sent  int
	errno syscall.Errno
	try   func(fd uintptr)      // sendmmsg, bound once
	retry func(fd uintptr) bool // the same, false if there is no room yet
}

// A message is datagrams of one train that go out together.
type message struct {
	train *wireguard.Train
	data  []byte
	tried bool // and failed for a reason that can be an earlier datagram's
}

// segmented reports whether m is more than one datagram.
func (m *message) segmented() bool { return m.train.Size > 0 && len(m.data) > m.train.Size }

func (m *message) datagrams() int {
	if !m.segmented() {
		return 1
	}
	return (len(m.data) + m.train.Size - 1) / m.train.Size
}

var flights = sync.Pool{New: func() any {
	f := new(flight)
	for i := range f.hdrs {
		h := &f.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&f.names[i]))
		h.Iov = &f.iovs[i]
		h.SetIovlen(1)
	}
	f.try = func(fd uintptr) { f.sent, f.errno = f.path.sendmmsg(fd, f.hdrs[f.at:f.n]) }
	f.retry = func(fd uintptr) bool {
		f.try(fd)
		return f.errno != unix.EAGAIN
	}
	return f
}}

func (p *linuxPath) newFlight() *flight {
	f := flights.Get().(*flight)
	f.path = p
	return f
}

// land sends what the flight still holds and gives it back.
func (f *flight) land() {
	f.flush()
	f.path = nil
	flights.Put(f)
}

func (p *linuxPath) send(ts []wireguard.Train) {
	f := p.newFlight()
	for i := range ts {
		t := &ts[i]
		if familyOf(t.Endpoint.Addr.Addr()) == p.family {
			if p.routes.concerns(t) {
				p.routes.check(&t.Endpoint, p.raw)
			}
			f.train(t, p.perMessage(t))
		}
	}
	f.land()
}

// perMessage is how many of t's datagrams one message may carry.
func (p *linuxPath) perMessage(t *wireguard.Train) int {
	if t.Size <= 0 || len(t.Data) <= t.Size || !p.gso || p.plain.has(t.Endpoint.Addr.Addr()) {
		return 1
	}
	return max(1, min(maxSegments, maxPayload[p.family]/t.Size))
}

// train adds t in messages of per datagrams.
func (f *flight) train(t *wireguard.Train, per int) {
	size := t.Size * per
	if t.Size <= 0 {
		size = len(t.Data)
	}
	for rest := t.Data; ; {
		n := min(size, len(rest))
		f.add(t, rest[:n])
		if rest = rest[n:]; len(rest) == 0 {
			return
		}
	}
}

// add adds one message.
func (f *flight) add(t *wireguard.Train, data []byte) {
	if f.n == maxMessages {
		f.flush()
	}
	i := f.n
	f.n++
	f.messages[i] = message{train: t, data: data}
	f.iovs[i].Base = unsafe.SliceData(data)
	f.iovs[i].SetLen(len(data))
	f.address(i)
}

// address writes where message i goes, and its control messages.
func (f *flight) address(i int) {
	m, h := &f.messages[i], &f.hdrs[i].hdr
	e := &m.train.Endpoint
	h.Namelen = f.path.putName(&f.names[i], e.Addr)

	b := f.oobs[i].bytes()
	n := putControl(b, f.path.family, e, m.train.TOS)
	if m.segmented() {
		data := putMessage(b[n:], unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
		*(*uint16)(unsafe.Pointer(&data[0])) = uint16(m.train.Size)
		n += unix.CmsgSpace(2)
	}
	h.Control = nil
	if n > 0 {
		h.Control = &b[0]
	}
	h.SetControllen(n)
}

// putName writes the socket address of a.
func (p *linuxPath) putName(sa *unix.RawSockaddrInet6, a netip.AddrPort) uint32 {
	port := [2]byte{byte(a.Port() >> 8), byte(a.Port())}
	if p.family == ipv4 {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		*sa4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().As4()}
		*(*[2]byte)(unsafe.Pointer(&sa4.Port)) = port
		return unix.SizeofSockaddrInet4
	}
	*sa = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: a.Addr().As16()}
	*(*[2]byte)(unsafe.Pointer(&sa.Port)) = port
	if zone := a.Addr().Zone(); zone != "" {
		sa.Scope_id = p.zones.index(zone)
	}
	return unix.SizeofSockaddrInet6
}

// flush sends all messages and empties the flight.
func (f *flight) flush() {
	for f.at < f.n {
		if err := f.write(); err != nil {
			f.fail(closedOr(err))
			continue
		}
		if f.errno != 0 {
			f.fault(f.errno)
			continue
		}
		f.count()
		f.at += f.sent
	}
	// What is pooled must not keep the caller's memory.
	for i := range f.n {
		f.iovs[i].Base = nil
		f.messages[i] = message{}
	}
	f.n, f.at = 0, 0
}

// write is one system call for all messages that are left. It may send the first of them only. The file is not
// locked meanwhile, so that senders do not wait for each other, except for those that found the socket's buffer full.
func (f *flight) write() error {
	if err := f.path.raw.Control(f.try); err != nil {
		return err
	}
	if f.errno == unix.EAGAIN {
		return f.path.raw.Write(f.retry)
	}
	return nil
}

func (f *flight) count() {
	datagrams, bytes := 0, 0
	for i := f.at; i < f.at+f.sent; i++ {
		datagrams += f.messages[i].datagrams()
		bytes += len(f.messages[i].data)
	}
	f.path.out.add(datagrams, bytes)
}

// fault deals with the first message that is left, which failed with errno: it is changed to be tried again, sent
// otherwise, or given up. Each change happens once, so this ends.
func (f *flight) fault(errno syscall.Errno) {
	m := &f.messages[f.at]
	e := &m.train.Endpoint
	switch {
	case m.segmented() && isTrainRefused(errno):
		f.single(m)
		f.at++
	case dropSource(e, errno):
		for i := f.at; i < f.n && f.messages[i].train == m.train; i++ {
			f.address(i)
		}
	case !m.tried:
		// The error can be that of a datagram sent earlier, which the system had kept for us; it can come from an
		// interface that was replaced by one of another index, or from a source that has been cleared meanwhile.
		m.tried = true
		if e.Addr.Addr().Zone() != "" {
			f.path.zones.forget()
		}
		f.address(f.at)
	default:
		f.fail(sendError(errno))
	}
}

// fail gives the first message that is left up.
func (f *flight) fail(err error) {
	if t := f.messages[f.at].train; t.Err == nil {
		t.Err = err
	}
	f.at++
}

// single sends the datagrams of m one by one, since the system refused them together. If it takes them so, it was not
// the source that it refused, and the destination gets single datagrams for a while.
func (f *flight) single(m *message) {
	p, t := f.path, m.train
	p.out.faults.Add(1)
	before := *t
	g := p.newFlight()
	for rest := m.data; len(rest) > 0; {
		n := min(t.Size, len(rest))
		g.add(t, rest[:n])
		rest = rest[n:]
	}
	g.land()
	if t.Err == before.Err && t.Endpoint == before.Endpoint {
		p.plain.add(t.Endpoint.Addr.Addr(), time.Now())
	}
}

// isTrainRefused reports whether errno can mean that the system does not take a train: EIO without checksum offload or
// with IPsec, EMSGSIZE or, in older kernels, EINVAL where its datagrams are larger than the path's MTU.
func isTrainRefused(errno syscall.Errno) bool {
	return errno == unix.EMSGSIZE || errno == unix.EIO || errno == unix.EINVAL
}

// sendmmsg sends what it can of m without waiting. It is a raw call as recvmmsg is.
func sendmmsg(fd uintptr, m []mmsghdr) (int, syscall.Errno) {
	return messages(unix.SYS_SENDMSG, unix.SYS_SENDMMSG, fd, m)
}
