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

// The outbound path on Linux, in the order in which a train passes it:
//
//	send ─▶ a flight from the pool ─▶ train: cut to the size of a message ─▶ add: address and control messages
//	     ─▶ flush: sendmmsg, or sendmsg for a single message ─▶ fault: handle the refusal of the first message left

const (
	maxMessages = 64 // maximum number of messages per call of sendmmsg
	maxSegments = 64 // maximum number of datagrams per message (UDP_MAX_SEGMENTS in the kernel)
)

// maxPayload is the largest UDP payload in a packet of 65,535 bytes.
var maxPayload = [families]int{65535 - 20 - 8, 65535 - 40 - 8}

// A flight holds the messages of one system call.
type flight struct {
	path *linuxPath
	n    int // number of messages
	at   int // number of messages that were sent or have failed; they are the first ones

	messages [maxMessages]message
	hdrs     [maxMessages]mmsghdr
	iovs     [maxMessages]unix.Iovec
	names    [maxMessages]unix.RawSockaddrInet6 // or RawSockaddrInet4, which is smaller
	oobs     [maxMessages]controlBuffer

	// These fields hold the result of the last system call.
	sent  int
	errno syscall.Errno
	try   func(fd uintptr)      // calls sendmmsg; made once, so that a call allocates nothing
	retry func(fd uintptr) bool // calls try, and returns false if the socket's send buffer is still full
}

// A message holds datagrams of one train that are sent together.
type message struct {
	train *wireguard.Train
	data  []byte
	tried bool // one attempt has failed with an error that may belong to an earlier datagram
	noTOS bool // sent without its type of service, to find out whether the system refuses types of service
}

// segmented reports whether m consists of more than one datagram.
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

// land sends the messages that have not been sent yet, and returns the flight to the pool.
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

// perMessage returns how many datagrams of t one message may carry.
func (p *linuxPath) perMessage(t *wireguard.Train) int {
	if t.Size <= 0 || len(t.Data) <= t.Size || !p.gso || p.plain.has(t.Endpoint.Addr.Addr()) {
		return 1
	}
	return max(1, min(maxSegments, maxPayload[p.family]/t.Size))
}

// train adds the messages of t. Each message carries as many datagrams as the parameter per says; the last one may carry fewer.
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

// add adds a message with data, which is a part of t's data. If the flight is full, add first sends all its messages.
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

// address writes the destination and the control messages of message i.
func (f *flight) address(i int) {
	m, h := &f.messages[i], &f.hdrs[i].hdr
	e := &m.train.Endpoint
	h.Namelen = f.path.putName(&f.names[i], e.Addr)

	b := f.oobs[i].bytes()
	tos := m.train.TOS
	if m.noTOS || f.path.tos.Load() == tosRefused {
		tos = 0
	}
	n := putControl(b, f.path.family, e, tos)
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

// putName writes a to sa in the form that the system expects, and returns its length in bytes.
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
	// A pooled flight must not keep the caller's memory.
	for i := range f.n {
		f.iovs[i].Base = nil
		f.messages[i] = message{}
	}
	f.n, f.at = 0, 0
}

// write makes one system call for all messages that have neither been sent nor failed. The call may send only the first few of
// them. write does not lock the descriptor. So goroutines that send at the same time do not wait for each other, except while the
// socket's send buffer is full.
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
	if f.path.tos.Load() == tosUnknown {
		f.learnTOS()
	}
}

// These values say whether the system accepts a type of service for outgoing datagrams. Linux before 3.13 and some emulators of
// Linux refuse the control message for the type of service with EINVAL. All handshake messages have a type of service, and must
// be sent on these systems too.
const (
	tosUnknown = iota
	tosTaken
	tosRefused // datagrams are sent without a type of service
)

// learnTOS stores whether the system accepts a type of service, if the messages that were just sent show this.
func (f *flight) learnTOS() {
	for i := f.at; i < f.at+f.sent; i++ {
		switch m := &f.messages[i]; {
		case m.train.TOS == 0:
		case m.noTOS:
			f.path.tos.CompareAndSwap(tosUnknown, tosRefused)
		default:
			f.path.tos.CompareAndSwap(tosUnknown, tosTaken)
		}
	}
}

// fault handles the message with the index f.at, which failed with errno. It changes the message for another attempt, sends its
// datagrams one by one, or gives it up. Each change happens at most once, so the attempts end.
func (f *flight) fault(errno syscall.Errno) {
	m := &f.messages[f.at]
	e := &m.train.Endpoint
	if errno == unix.EINVAL && m.train.TOS != 0 && !m.noTOS && f.path.tos.Load() != tosTaken {
		m.noTOS = true
		f.address(f.at)
		return
	}
	m.noTOS = false // the type of service was not the only reason
	switch {
	case m.segmented() && isTrainRefused(errno):
		f.single(m)
		f.at++
	case dropSource(e, errno):
		for i := f.at; i < f.n && f.messages[i].train == m.train; i++ {
			f.address(i)
		}
	case !m.tried:
		// Try again. The system can have kept the error from an earlier datagram. The error can also mean that the interface
		// was replaced by one with another index, or that this message still has a source that was cleared from the train's
		// endpoint.
		m.tried = true
		if e.Addr.Addr().Zone() != "" {
			f.path.zones.forget()
		}
		f.address(f.at)
	default:
		f.fail(sendError(errno))
	}
}

// fail gives up the message with the index f.at, and sets err as the error of its train if the train has none yet.
func (f *flight) fail(err error) {
	if t := f.messages[f.at].train; t.Err == nil {
		t.Err = err
	}
	f.at++
}

// single sends the datagrams of m one by one, since the system refused them together. If the system then accepts the single
// datagrams with their source, the reason was not the source but the train. So from then on, the destination gets single
// datagrams for plainTime.
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

// isTrainRefused reports whether errno can mean that the system does not accept a train. EIO means that the interface computes
// no checksums, or that IPsec transforms the packets. EMSGSIZE, or EINVAL in older kernels, means that the datagrams are larger
// than the path's MTU.
func isTrainRefused(errno syscall.Errno) bool {
	return errno == unix.EMSGSIZE || errno == unix.EIO || errno == unix.EINVAL
}

// sendmmsg sends as many messages of m as it can without waiting. Like recvmmsg, it makes a raw system call, of which the Go
// runtime is not informed.
func sendmmsg(fd uintptr, m []mmsghdr) (int, syscall.Errno) {
	return messages(unix.SYS_SENDMSG, unix.SYS_SENDMMSG, fd, m)
}
