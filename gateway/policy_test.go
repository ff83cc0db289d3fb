package gateway

import (
	"net"
	"net/netip"
	"testing"
)

func TestIsPrivate(t *testing.T) {
	tunnel := []netip.Prefix{netip.MustParsePrefix("10.7.0.0/24"), netip.MustParsePrefix("fd07::/64")}
	for a, want := range map[string]bool{
		"127.0.0.1": true, "127.9.9.9": true, "::1": true, "0.0.0.0": true, "0.1.2.3": true, "::": true,
		"169.254.169.254": true, "fe80::1": true, "224.0.0.1": true, "ff02::1": true, "255.255.255.255": true, "240.0.0.1": true,
		"::ffff:127.0.0.1": true, "64:ff9b::7f00:1": true, "64:ff9b::a07:9": true, "10.7.0.9": true, "fd07::9": true, "fe80::1%eth0": true,
		"10.8.0.9": false, "192.0.2.1": false, "2001:db8::1": false, "64:ff9b::c000:201": false, "fd08::9": false,
	} {
		if got := isPrivate(netip.MustParseAddr(a), tunnel); got != want {
			t.Errorf("isPrivate(%s) = %t, want %t", a, got, want)
		}
	}
	if !isPrivate(netip.Addr{}, nil) {
		t.Error("isPrivate returned false for the zero address")
	}
}

// TestHostAddrs checks that addrsOf returns the host's addresses and the broadcast addresses of its networks, but not the
// addresses of neighbours. It also checks that Public refuses all addresses of this host.
func TestHostAddrs(t *testing.T) {
	ip, n, _ := net.ParseCIDR("192.168.5.9/24")
	point, p, _ := net.ParseCIDR("192.168.6.0/31")
	six, s, _ := net.ParseCIDR("2001:db8::5/64")
	addrs := addrsOf([]net.Addr{&net.IPNet{IP: ip, Mask: n.Mask}, &net.IPNet{IP: point, Mask: p.Mask}, &net.IPNet{IP: six, Mask: s.Mask}, &net.TCPAddr{}})
	for a, want := range map[string]bool{
		"192.168.5.9": true, "192.168.5.255": true, "192.168.5.0": true, "192.168.5.10": false,
		"192.168.6.0": true, "192.168.6.1": false, "2001:db8::5": true, "2001:db8::6": false,
	} {
		if got := addrs[netip.MustParseAddr(a)]; got != want {
			t.Errorf("addrsOf contains %s: %t, want %t", a, got, want)
		}
	}
	found, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	policy := Public()
	for a := range addrsOf(found) {
		if policy(Request{Network: "tcp", Destination: netip.AddrPortFrom(a, 22)}).Allow {
			t.Errorf("Public allows the host's address %v", a)
		}
		if !a.Is4() {
			continue
		}
		b, four := nat64.Addr().As16(), a.As4()
		copy(b[12:], four[:])
		if policy(Request{Network: "tcp", Destination: netip.AddrPortFrom(netip.AddrFrom16(b), 22)}).Allow {
			t.Errorf("Public allows the host's address %v as an address of NAT64", a)
		}
	}
}
