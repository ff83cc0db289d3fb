package udp

import "net/netip"

// A control holds what the control messages of a received datagram or train say about it.
type control struct {
	local     netip.Addr // the address it was sent to, if an answer can be sent from there
	ifindex   uint32     // the interface it arrived on
	tos       uint8
	size      int  // of each datagram of a train except the last; 0 means a single datagram
	malformed bool // a message is shorter than its length says
}

// answerable returns a if it can be the source of an answer, and otherwise the zero Addr.
func answerable(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.IsUnspecified() || a.IsMulticast() {
		return netip.Addr{}
	}
	return a
}

// source returns the source and interface that an Endpoint should hold for c. As in the kernel's module, it pins no
// interface: if the route to the peer has moved to another interface, datagrams through a pinned interface would be
// lost. Only a link-local address needs its interface.
func (c *control) source() (netip.Addr, uint32) {
	if c.local.Is6() && c.local.IsLinkLocalUnicast() {
		return c.local, c.ifindex
	}
	return c.local, 0
}

// A controlBuffer holds the control messages of one datagram or train, in either direction. It consists of words,
// because the headers of control messages need that alignment.
type controlBuffer [controlSize / 8]uint64

// controlSize has room for the messages that this package asks for: at most 40 bytes of packet information, 24 of
// traffic class and 24 of train size. The rest is for messages that a Bind's Control may have asked for.
const controlSize = 192
