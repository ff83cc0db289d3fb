package wireguard

import "net/netip"

// An Endpoint is the place where a peer can be reached. It is a comparable value and can be a map key. The zero value
// means that the place is unknown.
type Endpoint struct {
	// Addr is the peer's address and port. It is never an IPv4-mapped IPv6 address. The zero value means that the peer
	// has no address.
	Addr netip.AddrPort

	// Source is the local address that the peer last reached, and from which it is answered. The zero value leaves
	// the choice to the system. Interface is the index of the interface that has Source; zero pins no interface.
	Source    netip.Addr
	Interface uint32

	// Link is the handle of a Bind for a peer that has no address, such as a peer behind a relay or a WebSocket. It is
	// nil for all others.
	Link Link
}

// A Link is a Bind's own handle for a connection that has no address. Its dynamic type must be comparable: two
// endpoints with an equal Addr and equal Links are the same place.
type Link interface {
	// Key distinguishes sources for cookies and rate limits. Hostile senders that the Bind cannot tell apart should
	// have the same key.
	Key() [16]byte
	// String names the place in logs and status.
	String() string
}

// EndpointOf returns the endpoint at address a. It turns an IPv4-mapped IPv6 address into the IPv4 address.
func EndpointOf(a netip.AddrPort) Endpoint {
	return Endpoint{Addr: netip.AddrPortFrom(a.Addr().Unmap(), a.Port())}
}

// IsValid reports whether e has an address or a Link.
func (e Endpoint) IsValid() bool { return !e.IsZero() }

// IsZero reports whether e has neither an address nor a Link.
func (e Endpoint) IsZero() bool { return !e.Addr.IsValid() && e.Link == nil }

// forgetSource leaves the choice of the local address to the system again.
func (e *Endpoint) forgetSource() { e.Source, e.Interface = netip.Addr{}, 0 }

// SamePlace reports whether e and f name the same remote place. It does not compare Source and Interface.
func (e Endpoint) SamePlace(f Endpoint) bool { return e.Addr == f.Addr && e.Link == f.Link }

// String returns the address and port, or the name of the Link, or "none" for the zero Endpoint.
func (e Endpoint) String() string {
	switch {
	case e.Link != nil:
		return e.Link.String()
	case e.Addr.IsValid():
		return e.Addr.String()
	}
	return "none"
}
