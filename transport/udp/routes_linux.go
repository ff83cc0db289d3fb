package udp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

// routes notices when the way to a peer changes. A source is kept for as long as the route to the peer leads out by the
// same interface: one that takes precedence brings its own source, and by an interface of another network the old one might
// not get through. The kernel's module looks at each packet; this looks again after a change of routes or rules. It is for IPv4
// alone, as there. It is safe for concurrent use.
type routes struct {
	events  *os.File      // netlink, with a message for each change
	changes atomic.Uint32 // how many there were

	mu  sync.RWMutex
	ask int // netlink, for questions; -1: closed
	via map[netip.Addr]way
}

// A way is by which interface a peer was last reached, and how many changes there had been.
type way struct{ ifindex, changes uint32 }

const maxWays = 1 << 16

// watchRoutes is nil where the system has no netlink: then sources are kept until they are gone.
func watchRoutes() *routes {
	const family, flags = unix.AF_NETLINK, unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	events, err := unix.Socket(family, flags, unix.NETLINK_ROUTE)
	if err != nil {
		return nil
	}
	const rules = 1 << (unix.RTNLGRP_IPV4_RULE - 1)
	err = unix.Bind(events, &unix.SockaddrNetlink{Family: family, Groups: unix.RTMGRP_IPV4_ROUTE | rules})
	if err != nil {
		unix.Close(events)
		return nil
	}
	ask, err := unix.Socket(family, flags, unix.NETLINK_ROUTE)
	if err != nil {
		unix.Close(events)
		return nil
	}
	r := &routes{events: os.NewFile(uintptr(events), "netlink"), ask: ask, via: map[netip.Addr]way{}}
	go r.listen()
	return r
}

// listen counts changes until Close. What a message says does not matter, nor how many were lost.
func (r *routes) listen() {
	b := make([]byte, 4096)
	for {
		if _, err := r.events.Read(b); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		r.changes.Add(1)
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

// check lets go of the source of e if the route to it, for packets of the socket, now leads by another interface.
func (r *routes) check(e *wireguard.Endpoint, socket syscall.RawConn) {
	to := e.Addr()
	now := r.changes.Load()
	r.mu.RLock()
	known, ok := r.via[to]
	r.mu.RUnlock()
	if ok && known.changes == now {
		return
	}
	var mark int
	socket.Control(func(fd uintptr) { mark, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) })
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ask < 0 {
		return
	}
	if len(r.via) >= maxWays {
		clear(r.via)
	}
	ifindex := outgoing(r.ask, to.Unmap(), uint32(mark))
	r.via[to] = way{ifindex, now}
	if ok && known.ifindex != ifindex {
		e.Source, e.Interface = netip.Addr{}, 0
	}
}

// outgoing asks the system by which interface packets with a mark go to an IPv4 address; 0 if by none.
func outgoing(netlink int, to netip.Addr, mark uint32) (ifindex uint32) {
	const size = unix.SizeofNlMsghdr + unix.SizeofRtMsg + 2*(unix.SizeofRtAttr+4)
	native := binary.NativeEndian
	q := make([]byte, 0, size)
	q = native.AppendUint32(q, size)
	q = native.AppendUint16(q, unix.RTM_GETROUTE)
	q = native.AppendUint16(q, unix.NLM_F_REQUEST)
	q = append(q, make([]byte, 8)...)                  // sequence, port
	q = append(q, unix.AF_INET, 32)                    // family, length of the destination
	q = append(q, make([]byte, unix.SizeofRtMsg-2)...) // everything else open
	q = native.AppendUint16(q, unix.SizeofRtAttr+4)    //
	q = append(native.AppendUint16(q, unix.RTA_DST), to.AsSlice()...)
	q = native.AppendUint16(q, unix.SizeofRtAttr+4)
	q = native.AppendUint32(native.AppendUint16(q, unix.RTA_MARK), mark)
	if unix.Sendto(netlink, q, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return 0
	}
	var answer [1024]byte
	n, _, err := unix.Recvfrom(netlink, answer[:], unix.MSG_DONTWAIT) // the system answers within sendto
	if err != nil {
		return 0
	}
	messages, err := syscall.ParseNetlinkMessage(answer[:n])
	if err != nil || len(messages) == 0 || messages[0].Header.Type != unix.RTM_NEWROUTE {
		return 0
	}
	attributes, err := syscall.ParseNetlinkRouteAttr(&messages[0])
	if err != nil {
		return 0
	}
	for _, a := range attributes {
		if a.Attr.Type == unix.RTA_OIF && len(a.Value) == 4 {
			return native.Uint32(a.Value)
		}
	}
	return 0
}
