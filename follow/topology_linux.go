package follow

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"
)

// A topology is the state of the machine's network, as netlink messages have reported it. The kernel also sends messages when
// nothing has changed, for example when a router advertisement extends the lifetime of an address. So update compares each
// message with the topology.
type topology struct {
	tunnel string // the name of the device's own interface, whose changes do not count
	links  map[uint32]link
	addrs  map[address]bool
	routes map[route]bool
}

// A link is an interface.
type link struct {
	name    string
	running bool // the interface is up, and has a carrier
}

// An address is an address of an interface. A topology does not keep addresses whose scope is only the link or the host.
type address struct {
	index        uint32
	family, bits uint8
	addr         string // the bytes of the address
}

// A route is a default route.
type route struct {
	slot
	index uint32 // the index of its interface; 0 if the route has several interfaces or a nexthop object
	via   string // its netlink attributes for gateways, sources and nexthops
}

// A slot has the values that competing routes have in common. A message with NLM_F_REPLACE replaces all routes of a slot by one
// route.
type slot struct {
	family, tos     uint8
	table, priority uint32
}

// maxKnown is the largest number of links, of addresses and of routes in a topology. Each message about an address or a route
// that does not fit counts as a change. So does each message about a link that does not fit, if the link is running and has an
// address.
const maxKnown = 4096

// update applies the netlink messages in b, and reports whether they contain a change that counts; see Changes. If learn is true,
// the messages answer a request for the present state, and nothing in them counts as a change.
func (t *topology) update(b []byte, learn bool) (changed bool) {
	messages(b, func(kind, flags uint16, data []byte) {
		switch kind {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			changed = t.link(kind == unix.RTM_NEWLINK, data) || changed
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			changed = t.address(kind == unix.RTM_NEWADDR, data) || changed
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			changed = t.route(kind == unix.RTM_NEWROUTE, flags&unix.NLM_F_REPLACE != 0, data) || changed
		}
	})
	return changed && !learn
}

// link applies a message about an interface. It reports whether an interface with an address has begun or ceased to run.
func (t *topology) link(exists bool, b []byte) bool {
	if len(b) < unix.SizeofIfInfomsg || b[0] != unix.AF_UNSPEC { // messages of other families are about ports of bridges
		return false
	}
	index, flags := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[8:])
	var now link
	attributes(b[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
		if kind == unix.IFLA_IFNAME {
			now.name, _, _ = strings.Cut(string(value), "\x00")
		}
	})
	now.running = exists && flags&(unix.IFF_UP|unix.IFF_RUNNING) == unix.IFF_UP|unix.IFF_RUNNING
	if flags&unix.IFF_UP == 0 || !exists {
		t.forgetRoutes(index)
	}
	old, had := t.links[index]
	counts := old.running != now.running && t.counts(index) && t.hasAddress(index)
	if exists && (had || len(t.links) < maxKnown) {
		set(&t.links, index, now)
		counts = counts && now.name != t.tunnel
	}
	if !exists {
		delete(t.links, index)
		for a := range t.addrs {
			if a.index == index {
				delete(t.addrs, a)
			}
		}
	}
	return counts
}

// address applies a message about an address, and reports whether it is a change that counts.
func (t *topology) address(exists bool, b []byte) bool {
	if len(b) < unix.SizeofIfAddrmsg || b[3] >= unix.RT_SCOPE_LINK {
		return false
	}
	a := address{index: binary.NativeEndian.Uint32(b[4:]), family: b[0], bits: b[1]}
	flags := uint32(b[2])
	attributes(b[unix.SizeofIfAddrmsg:], func(kind uint16, value []byte) {
		switch {
		case kind == unix.IFA_LOCAL, kind == unix.IFA_ADDRESS && a.addr == "": // with IFA_LOCAL, IFA_ADDRESS is the remote address
			a.addr = string(value)
		case kind == unix.IFA_FLAGS && len(value) >= 4:
			flags = binary.NativeEndian.Uint32(value)
		}
	})
	// An address cannot be used while the kernel checks whether another host on the link has it (IFA_F_TENTATIVE). Another
	// message says when the address can be used.
	unusable := flags&unix.IFA_F_DADFAILED != 0 || flags&unix.IFA_F_TENTATIVE != 0 && flags&unix.IFA_F_OPTIMISTIC == 0
	if exists = exists && !unusable; exists {
		return add(&t.addrs, a) && t.counts(a.index)
	}
	had := t.addrs[a]
	delete(t.addrs, a)
	if had {
		t.forgetRoutes(a.index)
	}
	return (had || !unusable && len(t.addrs) >= maxKnown) && t.counts(a.index)
}

// route applies a message about a route, and reports whether it is a change that counts.
func (t *topology) route(exists, replace bool, b []byte) bool {
	if len(b) < unix.SizeofRtMsg || b[1] != 0 || b[7] != unix.RTN_UNICAST {
		return false
	}
	if binary.NativeEndian.Uint32(b[8:])&unix.RTM_F_CLONED != 0 {
		return false
	}
	r := route{slot: slot{family: b[0], tos: b[3], table: uint32(b[4])}}
	const nexthop = 30 // RTA_NH_ID
	var via strings.Builder
	attributes(b[unix.SizeofRtMsg:], func(kind uint16, value []byte) {
		number := uint32(0)
		if len(value) >= 4 {
			number = binary.NativeEndian.Uint32(value)
		}
		switch kind {
		case unix.RTA_OIF:
			r.index = number
		case unix.RTA_TABLE:
			r.table = number
		case unix.RTA_PRIORITY:
			r.priority = number
		case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_PREFSRC, unix.RTA_MULTIPATH, nexthop:
			via.WriteByte(byte(kind))
			via.Write(value)
		}
	})
	r.via = via.String()
	if !exists {
		had := t.routes[r]
		delete(t.routes, r)
		return (had || len(t.routes) >= maxKnown) && t.counts(r.index)
	}
	replaced := false
	if replace {
		for o := range t.routes {
			if o.slot == r.slot && o != r {
				delete(t.routes, o)
				replaced = replaced || t.counts(o.index)
			}
		}
	}
	return add(&t.routes, r) && t.counts(r.index) || replaced
}

// forgetRoutes removes the routes that may have used an interface, because the kernel does not report their removal. The kernel
// sends a message if such a route is added again.
func (t *topology) forgetRoutes(index uint32) {
	for r := range t.routes {
		if r.index == index || r.index == 0 {
			delete(t.routes, r)
		}
	}
}

// counts reports whether changes of an interface count: whether it is not the device's own interface.
func (t *topology) counts(index uint32) bool {
	return t.tunnel == "" || t.links[index].name != t.tunnel
}

func (t *topology) hasAddress(index uint32) bool {
	for a := range t.addrs {
		if a.index == index {
			return true
		}
	}
	return false
}

// add reports whether v is a new value. It adds a new value to the known values, unless there are maxKnown of them.
func add[T comparable](known *map[T]bool, v T) bool {
	if (*known)[v] {
		return false
	}
	if len(*known) < maxKnown {
		set(known, v, true)
	}
	return true
}

func set[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = make(map[K]V)
	}
	(*m)[k] = v
}

// messages calls f with the type, the flags and the content of each message of netlink in b. The last message may be cut off.
func messages(b []byte, f func(kind, flags uint16, data []byte)) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(min(uint32(len(b)), binary.NativeEndian.Uint32(b)))
		if size < unix.SizeofNlMsghdr {
			return
		}
		f(binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), b[unix.SizeofNlMsghdr:size])
		b = b[aligned(size, len(b)):]
	}
}

// attributes calls f with the type and the value of each attribute in b.
func attributes(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return
		}
		const kinds = 1<<14 - 1 // the other bits say how the value is encoded
		f(binary.NativeEndian.Uint16(b[2:])&kinds, b[unix.SizeofRtAttr:size])
		b = b[aligned(size, len(b)):]
	}
}

// aligned returns size rounded up to netlink's alignment, and at most limit.
func aligned(size, limit int) int {
	return min(limit, (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1))
}
