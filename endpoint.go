package wireguard

import "net/netip"

// An Endpoint says where a peer can be reached. It can be compared with == and can be the key of a map. The zero value means that
// the endpoint is unknown.
type Endpoint struct {
	// Addr is the peer's address and port. It is never an IPv4-mapped IPv6 address. The zero value means that the peer
	// has no address.
	Addr netip.AddrPort

	// Source is the local address that the peer last reached, and from which the device answers. The zero value leaves
	// the choice to the system.
	Source netip.Addr

	// Interface is the index of the interface that has Source. Zero leaves the choice to the system.
	Interface uint32

	// Link is the handle of a Bind for a peer that has no address, such as one behind a relay or a WebSocket. Nil means that the
	// peer is reached at Addr.
	Link Link
}

// A Link is a Bind's own handle for a connection that has no address. Its dynamic type must be comparable with ==, because two
// endpoints with an equal Addr and equal Links are the same place. Any goroutine may call its methods.
type Link interface {
	// Key identifies the sender, for cookies and rate limits. Return the same key for senders that the Bind cannot tell apart.
	Key() [16]byte
	// String returns a name of the connection for logs and for a status.
	String() string
}

// EndpointOf returns the endpoint at address a. It turns an IPv4-mapped IPv6 address into the IPv4 address.
func EndpointOf(a netip.AddrPort) Endpoint {
	return Endpoint{Addr: netip.AddrPortFrom(a.Addr().Unmap(), a.Port())}
}

// IsValid reports whether e says where the peer is, in Addr or in Link.
func (e Endpoint) IsValid() bool { return e.Addr.IsValid() || e.Link != nil }

// forgetSource clears the local address and interface, so that the system chooses them again.
func (e *Endpoint) forgetSource() { e.Source, e.Interface = netip.Addr{}, 0 }

// SamePlace reports whether e and f have the same Addr and the same Link. It does not compare Source and Interface.
func (e Endpoint) SamePlace(f Endpoint) bool { return e.Addr == f.Addr && e.Link == f.Link }

// String returns the address and port, or the name of the Link. It returns "none" for the zero Endpoint.
func (e Endpoint) String() string {
	switch {
	case e.Link != nil:
		return e.Link.String()
	case e.Addr.IsValid():
		return e.Addr.String()
	}
	return "none"
}
