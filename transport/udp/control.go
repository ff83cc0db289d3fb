package udp

import "net/netip"

// A control holds the contents of the control messages of a received datagram or train.
type control struct {
	local     netip.Addr // the address that the datagram was sent to, if an answer can be sent from it; otherwise the zero Addr
	ifindex   uint32     // index of the interface that the datagram arrived on
	tos       uint8
	size      int  // bytes of each datagram of a train except the last; 0 means a single datagram
	malformed bool // a control message is shorter than its length field says
}

// answerable returns a if it can be the source of an answer, and otherwise the zero Addr.
func answerable(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.IsUnspecified() || a.IsMulticast() {
		return netip.Addr{}
	}
	return a
}

// source returns the Source and the Interface for the Endpoint of the received train. As in the kernel's WireGuard module, the
// Interface is normally 0, which means any: if the route changes to another interface, answers leave through that one. It is not
// 0 if the Source is a link-local IPv6 address, because such an address has no meaning without an interface.
func (c *control) source() (netip.Addr, uint32) {
	if c.local.Is6() && c.local.IsLinkLocalUnicast() {
		return c.local, c.ifindex
	}
	return c.local, 0
}

// A controlBuffer holds the control messages of one sent or received datagram or train. It is an array of uint64, because the
// headers of control messages need the alignment of a uint64.
type controlBuffer [controlSize / 8]uint64

// controlSize is the size of a controlBuffer in bytes. The messages that this package requests need at most 40 bytes of packet
// information, 24 bytes of traffic class and 24 bytes of train size. The rest is for messages that Bind.Control may have
// requested.
const controlSize = 192
