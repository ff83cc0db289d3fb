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

// routes notices when the route to a peer changes. A source is kept as long as the route from it to the peer uses the
// same interface. A new route through another interface has its own source, and packets with the old source might not
// get through there. The kernel's module checks each packet; routes checks again after a change of routes, rules,
// addresses or links. Like the kernel's module, it checks IPv4 only. It is safe for concurrent use.
//
// A stranger can choose the peers that need an entry, so memory and questions to the system are bounded. Beyond these
// bounds a source is kept until it is gone, or until a question is available for it.
type routes struct {
	events  io.ReadCloser // netlink, which delivers a message for each change
	changes atomic.Uint32 // number of changes so far

	last atomic.Pointer[seen] // the latest note, so that a lone peer needs no lock and no lookup

	mu    sync.RWMutex // guards the fields below
	ask   int          // netlink socket for questions; -1 after Close
	now   map[pair]way // takes new entries, and is searched first
	old   map[pair]way // what was in now until it was full; entries in use move back to now
	since time.Time    // when the present second began
	asked int          // questions about new pairs in the present second
	again int          // questions about known pairs in the present second
}

// A pair holds the source and destination of outbound packets. The port distinguishes peers behind one address: each
// has a source to drop.
type pair struct {
	to, source [4]byte
	port       uint16
}

// A way holds the interface through which packets last left, or 0 for none, and the number of changes until then.
type way struct{ ifindex, changes uint32 }

// A seen is a pair whose way was known after this number of changes.
type seen struct {
	pair
	changes uint32
}

const (
	maxWays      = 1 << 17 // in each map; if more pairs are used in turn, each is forgotten before it is used again
	maxQuestions = 250     // about new pairs, per second; each takes about 10 µs
	maxRepeats   = 1 << 13 // about known pairs, per second: a change of routes asks about each again
)

// watchRoutes returns nil if the system has no netlink. Sources are then kept until they are gone.
func watchRoutes() *routes {
	const family, flags = unix.AF_NETLINK, unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	events, err := unix.Socket(family, flags, unix.NETLINK_ROUTE)
	if err != nil {
		return nil
	}
	const rules = 1 << (unix.RTNLGRP_IPV4_RULE - 1)
	// For IPv4, the kernel sends no route message when a link goes down, nor for a gateway route that disappears with the
	// last address. So listen to links and addresses too.
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

// listen counts changes until Close. After any change, check asks about each pair again. So listen ignores what the messages
// say, and how many were lost. While reading fails with an unknown error, it counts a change at intervals, because anything may
// have changed.
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

// Close ends listen.
func (r *routes) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ask >= 0 {
		unix.Close(r.ask)
		r.ask = -1
	}
	return r.events.Close()
}

// concerns reports whether the route of t matters. It does not matter for a train that looks like a cookie reply: that
// goes to a stranger, and always from the address that the stranger sent to.
func (r *routes) concerns(t *wireguard.Train) bool {
	const size, kind = 64, 3
	return r != nil && t.Endpoint.Source.Unmap().Is4() && (len(t.Data) != size || t.Data[0] != kind)
}

// check drops the source of e if the route from it, for packets of the socket, now uses another interface, or none
// because the source is gone. Both addresses of e are IPv4.
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

// moved asks for the way of p, unless the way is known after this number of changes or no question is left. It reports
// whether the way differs from the one before.
func (r *routes) moved(p pair, changes uint32, socket syscall.RawConn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, had := r.find(p)
	if had && known.changes == changes {
		r.put(p, known)
		return false
	}
	if r.ask < 0 || !r.mayAsk(had) {
		return false
	}
	ifindex, ok := outgoing(r.ask, p, markOf(socket))
	if !ok {
		return false
	}
	r.put(p, way{ifindex, changes})
	return had && known.ifindex != ifindex
}

// find returns the stored way of p, if there is one. r.mu is held.
func (r *routes) find(p pair) (way, bool) {
	if w, ok := r.now[p]; ok {
		return w, true
	}
	w, ok := r.old[p]
	return w, ok
}

// put stores the way of p. r.mu is held.
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

// mayAsk takes one of the questions left in this second, and reports whether there was one. Questions about known pairs are
// counted separately, so that a stranger who makes new pairs cannot delay the answer to a change of routes for others. r.mu is
// held.
func (r *routes) mayAsk(known bool) bool {
	if now := time.Now(); now.Sub(r.since) >= time.Second {
		r.since, r.asked, r.again = now, 0, 0
	}
	n, most := &r.asked, maxQuestions
	if known {
		n, most = &r.again, maxRepeats
	}
	if *n == most {
		return false
	}
	*n++
	return true
}

// markOf returns the mark of a socket's packets.
func markOf(socket syscall.RawConn) (mark uint32) {
	socket.Control(func(fd uintptr) {
		m, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK)
		mark = uint32(m)
	})
	return mark
}

// outgoing asks the system through which interface packets with this mark leave from one IPv4 address to another. The
// index is 0 if there is no route, or if the system does not have the source. ok reports whether the system answered.
func outgoing(netlink int, p pair, mark uint32) (ifindex uint32, ok bool) {
	if unix.Sendto(netlink, question(p, mark), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return 0, false
	}
	var answer [1024]byte
	n, _, err := unix.Recvfrom(netlink, answer[:], unix.MSG_DONTWAIT) // the system has answered within sendto
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

// isNoWay reports whether errno says that packets cannot leave: because of their source, because no route exists, or
// because a route refuses them.
func isNoWay(errno syscall.Errno) bool {
	return isSourceGone(errno) || errno == unix.EHOSTUNREACH || errno == unix.EACCES
}

// question returns the message that outgoing sends. Like the kernel's own lookup, it names the source, because rules
// may depend on it.
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
	q = append(q, make([]byte, unix.SizeofRtMsg-3)...) // all other fields unset
	q = native.AppendUint16(q, attribute)
	q = append(native.AppendUint16(q, unix.RTA_DST), p.to[:]...)
	q = native.AppendUint16(q, attribute)
	q = append(native.AppendUint16(q, unix.RTA_SRC), p.source[:]...)
	q = native.AppendUint16(q, attribute)
	return native.AppendUint32(native.AppendUint16(q, unix.RTA_MARK), mark)
}
