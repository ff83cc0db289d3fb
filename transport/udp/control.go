package udp

import "net/netip"

// A control is what the control messages of a received datagram, or train, say about it.
type control struct {
	local     netip.Addr // the address it was sent to, where that can be answered from
	ifindex   uint32     // the interface it came in through
	tos       uint8
	size      int  // of each datagram of a train but the last; 0: it is a single datagram
	malformed bool // the messages ended before their lengths said
}

// answerable is a if it can be the source of an answer, and otherwise the zero Addr.
func answerable(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.IsUnspecified() || a.IsMulticast() {
		return netip.Addr{}
	}
	return a
}

// source is what an Endpoint should hold of c. As in the kernel no interface is pinned: where the route to the peer
// leads elsewhere by now, a pinned one sends into the void. Only an address of link scope means nothing without it.
func (c *control) source() (netip.Addr, uint32) {
	if c.local.Is6() && c.local.IsLinkLocalUnicast() {
		return c.local, c.ifindex
	}
	return c.local, 0
}

// A controlBuffer holds the control messages of one datagram or train, in either direction. It is made of words since
// their headers are aligned so.
type controlBuffer [controlSize / 8]uint64

// controlSize has room for what this package asks for (at most 40 bytes of packet information, 24 of traffic class and 24
// of train size) and for some more that a Bind's Control may have asked for.
const controlSize = 192
