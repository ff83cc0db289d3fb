package udp

import (
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

// routes notices when the way to a peer changes. A source is kept for as long as the route from it to the peer leads out by
// the same interface: one that takes precedence brings its own source, and by an interface of another network the old one
// might not get through. The kernel's module looks at each packet; this looks again after a change of routes, rules, addresses
// or links. It is for IPv4 alone, as there. It is safe for concurrent use.
//
// Whom a source is kept for can be a stranger's choice, so memory and questions are bounded: beyond that a source is kept
// until it is gone, or until there is a question left for it.
type routes struct {
	events  io.ReadCloser // netlink, with a message for each change
	changes atomic.Uint32 // how many there were

	last atomic.Pointer[seen] // what was noted last, so that a lone peer takes no lock and no lookup

	mu    sync.RWMutex // guards all below
	ask   int          // netlink, for questions; -1: closed
	now   map[pair]way // where ways are written, and read first
	old   map[pair]way // what now was when it was full; those in use find their way back
	since time.Time    // when the present second began
	asked int          // questions in it
}

// A pair is the two ends of packets on the way out. The port tells peers behind one address apart: each has a source to let
// go of.
type pair struct {
	to, source [4]byte
	port       uint16
}

// A way is by which interface packets last went, 0 if by none, and how many changes there had been.
type way struct{ ifindex, changes uint32 }

// A seen is the pair whose way was known after so many changes.
type seen struct {
	pair
	changes uint32
}

const (
	maxWays      = 1 << 13 // of each map
	maxQuestions = 1000    // a second, each of some microseconds
)

// watchRoutes is nil where the system has no netlink: then sources are kept until they are gone.
func watchRoutes() *routes {
	const family, flags = unix.AF_NETLINK, unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	events, err := unix.Socket(family, flags, unix.NETLINK_ROUTE)
	if err != nil {
		return nil
	}
	const rules = 1 << (unix.RTNLGRP_IPV4_RULE - 1)
	// Routes that go with their link or address go without a message of their own.
	const groups = unix.RTMGRP_IPV4_ROUTE | rules | unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR
	if err = unix.Bind(events, &unix.SockaddrNetlink{Family: family, Groups: groups}); err != nil {
		unix.Close(events)
		return nil
	}
	ask, err := unix.Socket(family, flags, unix.NETLINK_ROUTE)
	if err != nil {
		unix.Close(events)
		return nil
	}
	r := &routes{events: os.NewFile(uintptr(events), "netlink"), ask: ask}
	go r.listen()
	return r
}

// listen counts changes until Close. What a message says does not matter, nor how many were lost. While there is an error that
// it does not know, anything may have changed every now and then.
func (r *routes) listen() {
	b := make([]byte, 4096)
	for {
		_, err := r.events.Read(b)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		r.changes.Add(1)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// Close ends the listening.
func (r *routes) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ask >= 0 {
		unix.Close(r.ask)
		r.ask = -1
	}
	return r.events.Close()
}

// concerns reports whether the route of t matters: not if it looks like a cookie reply, which goes to a stranger, and back to
// where that one sent to in any case.
func (r *routes) concerns(t *wireguard.Train) bool {
	const size, kind = 64, 3
	return r != nil && t.Endpoint.Source.Unmap().Is4() && (len(t.Data) != size || t.Data[0] != kind)
}

// check lets go of the source of e if the route from it, for packets of the socket, now leads by another interface, or by none
// since the source is gone. Both ends of e are IPv4 addresses.
func (r *routes) check(e *wireguard.Endpoint, socket syscall.RawConn) {
	p := pair{e.Addr.Addr().As4(), e.Source.As4(), e.Addr.Port()}
	changes := r.changes.Load()
	if last := r.last.Load(); last != nil && *last == (seen{p, changes}) {
		return
	}
	r.mu.RLock()
	known, ok := r.now[p]
	r.mu.RUnlock()
	if ok && known.changes == changes {
		return
	}
	if r.moved(p, changes, socket) {
		e.Source, e.Interface = netip.Addr{}, 0
	}
}

// moved asks for the way of p, if it is not known of after so many changes and there is a question left, and reports whether
// it was another one before.
func (r *routes) moved(p pair, changes uint32, socket syscall.RawConn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, had := r.find(p)
	if had && known.changes == changes {
		r.put(p, known)
		return false
	}
	if r.ask < 0 || !r.mayAsk() {
		return false
	}
	ifindex, ok := outgoing(r.ask, p, markOf(socket))
	if !ok {
		return false
	}
	r.put(p, way{ifindex, changes})
	return had && known.ifindex != ifindex
}

// find is what is known of p. r.mu is held.
func (r *routes) find(p pair) (way, bool) {
	if w, ok := r.now[p]; ok {
		return w, true
	}
	w, ok := r.old[p]
	return w, ok
}

// put notes the way of p. r.mu is held.
func (r *routes) put(p pair, w way) {
	if len(r.now) >= maxWays {
		r.old, r.now = r.now, nil
	}
	if r.now == nil {
		r.now = make(map[pair]way)
	}
	r.now[p] = w
	r.last.Store(&seen{p, w.changes})
}

// mayAsk takes one question of those that are left in this second. r.mu is held.
func (r *routes) mayAsk() bool {
	if now := time.Now(); now.Sub(r.since) >= time.Second {
		r.since, r.asked = now, 0
	}
	if r.asked == maxQuestions {
		return false
	}
	r.asked++
	return true
}

// markOf is the mark of a socket's packets.
func markOf(socket syscall.RawConn) (mark uint32) {
	socket.Control(func(fd uintptr) {
		m, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK)
		mark = uint32(m)
	})
	return mark
}

// outgoing asks the system by which interface packets with a mark go from an IPv4 address to another; 0 if by none, which is
// also the answer for a source that it does not have. It reports whether there was an answer.
func outgoing(netlink int, p pair, mark uint32) (ifindex uint32, ok bool) {
	if unix.Sendto(netlink, question(p, mark), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return 0, false
	}
	var answer [1024]byte
	n, _, err := unix.Recvfrom(netlink, answer[:], unix.MSG_DONTWAIT) // the system answers within sendto
	if err != nil {
		return 0, false
	}
	messages, err := syscall.ParseNetlinkMessage(answer[:n])
	if err != nil || len(messages) == 0 {
		return 0, false
	}
	m := &messages[0]
	if m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4 {
		return 0, isNoWay(syscall.Errno(-int32(binary.NativeEndian.Uint32(m.Data))))
	}
	attributes, err := syscall.ParseNetlinkRouteAttr(m)
	if err != nil || m.Header.Type != unix.RTM_NEWROUTE {
		return 0, false
	}
	for _, a := range attributes {
		if a.Attr.Type == unix.RTA_OIF && len(a.Value) == 4 {
			ifindex = binary.NativeEndian.Uint32(a.Value)
		}
	}
	return ifindex, true
}

// isNoWay reports whether errno says that packets do not get out: for their source, for want of a route, or by one that is
// made to refuse them.
func isNoWay(errno syscall.Errno) bool {
	return isSourceGone(errno) || errno == unix.EHOSTUNREACH || errno == unix.EACCES
}

// question is the message that outgoing sends. Like the kernel's own lookup it says where from, for the sake of rules about
// sources.
func question(p pair, mark uint32) []byte {
	const attribute = unix.SizeofRtAttr + 4
	const size = unix.SizeofNlMsghdr + unix.SizeofRtMsg + 3*attribute
	native := binary.NativeEndian
	q := make([]byte, 0, size)
	q = native.AppendUint32(q, size)
	q = native.AppendUint16(q, unix.RTM_GETROUTE)
	q = native.AppendUint16(q, unix.NLM_F_REQUEST)
	q = append(q, make([]byte, 8)...)                  // sequence, port
	q = append(q, unix.AF_INET, 32, 32)                // family, lengths of destination and source
	q = append(q, make([]byte, unix.SizeofRtMsg-3)...) // everything else open
	q = native.AppendUint16(q, attribute)
	q = append(native.AppendUint16(q, unix.RTA_DST), p.to[:]...)
	q = native.AppendUint16(q, attribute)
	q = append(native.AppendUint16(q, unix.RTA_SRC), p.source[:]...)
	q = native.AppendUint16(q, attribute)
	return native.AppendUint32(native.AppendUint16(q, unix.RTA_MARK), mark)
}
