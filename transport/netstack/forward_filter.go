package netstack

import (
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// portOf returns the port that gets the packet p, whose IP header is intact. The Net's own stack gets packets to the Net's
// addresses, to multicast addresses and to the broadcast address. The second stack gets all other packets that may be
// forwarded. If p may not be forwarded, portOf counts it as dropped and returns nil.
func (fw *forwarder) portOf(p []byte) *port {
	src, dst := addressesOf(p)
	if slices.Contains(fw.net.addrs, dst) || dst.IsMulticast() || dst == broadcast {
		return &fw.net.link.own
	}
	if !isForwardable(src) || !isForwardable(dst) || src == dst || slices.Contains(fw.net.addrs, src) || isOtherICMP(p) {
		fw.net.link.drops.martian.Add(1)
		return nil
	}
	return &fw.port
}

// isOwn reports whether the packet p is for the Net's own stack.
func (l *link) isOwn(p []byte) bool {
	return l.forward == nil || l.isForNet(p)
}

// isForNet reports whether the destination of the packet p is an address of the Net.
func (l *link) isForNet(p []byte) bool {
	_, dst := addressesOf(p)
	return l.owner.owns(dst)
}

// addressesOf returns the addresses of the IP packet p.
func addressesOf(p []byte) (src, dst netip.Addr) {
	if p[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(p[ip4Addresses:])), netip.AddrFrom4([4]byte(p[ip4Addresses+4:]))
	}
	return netip.AddrFrom16([16]byte(p[ip6Addresses:])), netip.AddrFrom16([16]byte(p[ip6Addresses+16:]))
}

// isForwardable reports whether a router may forward packets from and to the address a. It returns false for multicast addresses,
// and for addresses in some of the blocks that RFC 6890 lists as not forwardable. For the blocks for documentation, it returns
// true.
func isForwardable(a netip.Addr) bool {
	if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.Is4In6() {
		return false
	}
	if a.Is4() {
		first := a.As4()[0]
		return first != 0 && first < 240 // 0 is "this network"; 240 and above are reserved, or broadcast
	}
	return true
}

// isOtherICMP reports whether p is an ICMP message that is neither an error nor an echo request. The Net does not forward such
// messages, and gVisor would answer some of them. isOtherICMP returns false for a fragment. If the reassembled packet is such a
// message, takePing drops it.
func isOtherICMP(p []byte) bool {
	if p[0]>>4 == 4 {
		l3 := int(p[0]&15) * 4
		return p[ip4Protocol] == protoICMP4 && !isFragment4(p) &&
			(len(p) <= l3 || !isICMP4Error(p[l3]) && header.ICMPv4Type(p[l3]) != header.ICMPv4Echo)
	}
	const l3 = header.IPv6MinimumSize
	return p[ip6Next] == protoICMP6 &&
		(len(p) <= l3 || !isICMP6Error(p[l3]) && header.ICMPv6Type(p[l3]) != header.ICMPv6EchoRequest)
}
