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

// routes drops the source address of an endpoint when the route to the peer moves to another interface. The new route has another
// source address, and packets with the old source address might be filtered on the new route. The kernel's WireGuard module
// checks the route of each packet. The type routes checks it only after a change of routes, rules, addresses or links. Like the
// kernel's module, it checks IPv4 only. It is safe for concurrent use.
//
// It asks the system for the route of each pair of source and destination, and stores the answer. An attacker who sends from
// many addresses causes many such questions and entries, so both are limited. If the limit does not permit a question about a
// pair, the source is kept for now. A later train for the same pair may then cause the question.
type routes struct {
	events  io.ReadCloser // netlink socket, from which a message can be read after each change
	changes atomic.Uint32 // number of changes so far

	last atomic.Pointer[seen] // the pair that was stored last; if it is checked next, no lock is needed

	mu    sync.RWMutex // guards the fields below
	ask   int          // netlink socket for questions; -1 after Close
	now   map[pair]way // takes new entries, and is searched first
	old   map[pair]way // the entries that were in now when it became full; an entry that is used moves back to now
	since time.Time    // when the current second began; asked and again count in this second
	asked int          // questions about new pairs in the current second
	again int          // questions about known pairs in the current second
}

// A pair holds the source and the destination of outbound packets. The destination port is included because several peers can
// share one address, for example behind a NAT. After a change of routes, only the first train of a pair finds that its way has
// changed, and clears its source. Without the port, the other peers at that address would keep their old source.
type pair struct {
	to, source [4]byte
	port       uint16
}

// A way is the system's answer for a pair: the index of the interface through which its packets leave, or 0 if they cannot
// leave. changes is the value of routes.changes when the question was asked.
type way struct{ ifindex, changes uint32 }

// A seen records that the stored way of the pair was up to date when routes.changes had the value of the field changes.
type seen struct {
	pair
	changes uint32
}

const (
	maxWays      = 1 << 17 // entries per map; if more pairs are in use, an entry can be dropped before its next use
	maxQuestions = 250     // questions about new pairs per second; each takes about 10 µs
	maxRepeats   = 1 << 13 // questions about known pairs per second; after a change, check asks about each known pair again
)

// watchRoutes opens netlink and starts the goroutine that counts changes. It returns nil if the system has no netlink. A source
// is then kept until sending from it fails.
func watchRoutes() *routes {
	const family, flags = unix.AF_NETLINK, unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	events, err := unix.Socket(family, flags, unix.NETLINK_ROUTE)
	if err != nil {
		return nil
	}
	const rules = 1 << (unix.RTNLGRP_IPV4_RULE - 1)
	// When an IPv4 route disappears because its link goes down or because the last address is removed, the kernel sends no
	// message about the route. So listen to links and addresses too.
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

// listen increments changes after each message from netlink, until Close. The contents of the messages do not matter, because
// check asks about every pair again after any change. For the same reason, lost messages do not matter. While reading fails
// with an unknown error, listen increments changes every 100 ms, because there may have been a change.
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

// Close closes both sockets, which ends listen.
func (r *routes) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ask >= 0 {
		unix.Close(r.ask)
		r.ask = -1
	}
	return r.events.Close()
}

// concerns reports whether the route of t must be checked. It is not checked for a train that looks like a cookie reply. A cookie
// reply goes to a sender that is not authenticated, and comes from the address to which that sender has sent its message.
func (r *routes) concerns(t *wireguard.Train) bool {
	const size, kind = 64, 3
	return r != nil && t.Endpoint.Source.Unmap().Is4() && (len(t.Data) != size || t.Data[0] != kind)
}

// check clears the source of e if packets of the socket with this source now leave through another interface than before, or
// can no longer leave. Both addresses of e must be IPv4.
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

// moved asks the system for the way of p and reports whether the interface differs from the stored one. It returns false without
// asking if the stored way has this value of changes already, or if no more questions are allowed in this second.
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

// find returns the stored way of p, if there is one. The caller holds r.mu.
func (r *routes) find(p pair) (way, bool) {
	if w, ok := r.now[p]; ok {
		return w, true
	}
	w, ok := r.old[p]
	return w, ok
}

// put stores the way of p. The caller holds r.mu.
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

// mayAsk reports whether another question is allowed in this second, and counts it. known says that the question is about a
// known pair. Such questions are counted separately. So an attacker who causes questions about many new pairs cannot delay the
// check of known pairs after a change of routes. The caller holds r.mu.
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

// markOf returns the firewall mark of the socket.
func markOf(socket syscall.RawConn) (mark uint32) {
	socket.Control(func(fd uintptr) {
		m, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK)
		mark = uint32(m)
	})
	return mark
}

// outgoing asks the system through which interface the packets of p leave if they have this mark. It returns the interface's
// index, or 0 if the system has no route for them or no longer has their source address. ok reports whether the system
// answered.
func outgoing(netlink int, p pair, mark uint32) (ifindex uint32, ok bool) {
	if unix.Sendto(netlink, question(p, mark), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return 0, false
	}
	var answer [1024]byte
	n, _, err := unix.Recvfrom(netlink, answer[:], unix.MSG_DONTWAIT) // the kernel queues its answer during Sendto
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

// isNoWay reports whether errno says that packets cannot leave. The reason may be their source, a missing route, or a route
// that refuses them.
func isNoWay(errno syscall.Errno) bool {
	return isSourceGone(errno) || errno == unix.EHOSTUNREACH || errno == unix.EACCES
}

// question returns the netlink message that outgoing sends. It contains the source, because routing rules may depend on the
// source.
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
