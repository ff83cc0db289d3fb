package gateway

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/seed-86b749af/wireguard/transport/netstack"
)

// Public returns a policy that lets peers reach all other hosts. It refuses flows to loopback, link-local, multicast, broadcast,
// reserved and unspecified addresses, to the addresses of the host's interfaces, and to the given prefixes of the tunnel.
//
// To allow one of these destinations, wrap the policy. The following policy redirects one destination in the tunnel to a service
// on the host's loopback interface:
//
//	public := gateway.Public(tunnel)
//	policy := func(r gateway.Request) gateway.Verdict {
//		if r.Network == "tcp" && r.Destination == netip.MustParseAddrPort("10.7.0.53:80") {
//			return gateway.Verdict{Allow: true, To: netip.MustParseAddrPort("127.0.0.1:8080")}
//		}
//		return public(r)
//	}
func Public(tunnel ...netip.Prefix) func(Request) Verdict {
	tunnel = slices.Clone(tunnel)
	for i, p := range tunnel {
		tunnel[i] = p.Masked()
	}
	host := new(hostAddrs)
	return func(r Request) Verdict {
		to := r.Destination.Addr()
		if isPrivate(to, tunnel) || host.has(to) {
			return Verdict{Refusal: netstack.Prohibited}
		}
		return Verdict{Allow: true}
	}
}

// nat64 is the prefix of IPv6 addresses that contain an IPv4 address in their last 32 bits (RFC 6052).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// embedded returns the IPv4 address that a contains, or a.
func embedded(a netip.Addr) netip.Addr {
	if a = a.Unmap(); nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	return a
}

// isPrivate reports whether the address a belongs to the tunnel, or is special: loopback, link-local, multicast and so on. It
// does not know the addresses of the host's interfaces; hostAddrs does.
func isPrivate(a netip.Addr, tunnel []netip.Prefix) bool {
	a = embedded(a)
	if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return true
	}
	if a.Is4() {
		if first := a.As4()[0]; first == 0 || first >= 240 { // "this network", or a reserved or broadcast address
			return true
		}
	}
	return slices.ContainsFunc(tunnel, func(p netip.Prefix) bool { return p.Contains(a) })
}

// hostAddrs knows the addresses of the host's interfaces and their broadcast addresses. The method has reads them again if
// the last reading is at least 10 s (lookEvery) old, because interfaces change.
type hostAddrs struct {
	mu     sync.Mutex // guards the rest
	addrs  map[netip.Addr]bool
	looked time.Time
}

const lookEvery = 10 * time.Second

func (h *hostAddrs) has(a netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); h.addrs == nil || now.Sub(h.looked) >= lookEvery {
		h.looked = now
		if found, err := net.InterfaceAddrs(); err == nil || h.addrs == nil {
			h.addrs = addrsOf(found)
		}
	}
	return h.addrs[embedded(a)]
}

// addrsOf returns the addresses in found, and for IPv4 also the first and the last address of their networks, because these two
// are broadcast addresses and Go's UDP sockets are allowed to send to them.
func addrsOf(found []net.Addr) map[netip.Addr]bool {
	addrs := make(map[netip.Addr]bool)
	for _, f := range found {
		n, ok := f.(*net.IPNet)
		if !ok {
			continue
		}
		a, ok := netip.AddrFromSlice(n.IP)
		if !ok {
			continue
		}
		a = a.Unmap()
		addrs[a] = true
		ones, bits := n.Mask.Size()
		if !a.Is4() || bits != 32 || ones >= 31 {
			continue
		}
		first, last := a.As4(), a.As4()
		for i, m := range n.Mask {
			first[i] &= m
			last[i] |= ^m
		}
		addrs[netip.AddrFrom4(first)], addrs[netip.AddrFrom4(last)] = true, true
	}
	return addrs
}
