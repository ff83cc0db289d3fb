package wireguard

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// wantErrors fails unless err has as many lines as want has elements, and each line contains all strings in the element of want
// with the same index.
func wantErrors(t *testing.T, err error, want ...[]string) {
	t.Helper()
	var lines []string
	if err != nil {
		lines = strings.Split(err.Error(), "\n")
	}
	if len(lines) != len(want) {
		t.Fatalf("%d errors, want %d:\n%v", len(lines), len(want), err)
	}
	for i, line := range lines {
		for _, part := range append(want[i], "wireguard: ") {
			if !strings.Contains(line, part) {
				t.Errorf("error %d is %q, want %q in it", i, line, part)
			}
		}
	}
}

// TestConfigAllErrorsAtOnce checks that New reports all mistakes of a configuration in one joined error. Each line must name the
// peer that has the mistake, and say what to do.
func TestConfigAllErrorsAtOnce(t *testing.T) {
	self := testKey(1)
	k := func(n int) PublicKey { return testKey(n).Public() }
	endpoint := func(s string) Endpoint { return EndpointOf(netip.MustParseAddrPort(s)) }
	prefix := netip.MustParsePrefix
	d, err := New(Config{
		PrivateKey: self, StagedBytes: -1, MaxLookedUp: -1, MaxLookups: -1,
		Peers: []PeerConfig{
			{PublicKey: k(10), Endpoint: endpoint("192.0.2.1:1"), AllowedIPs: []netip.Prefix{prefix("10.0.0.0/8"), prefix("::/0")}, PersistentKeepalive: 65535 * time.Second},
			{},
			{PublicKey: self.Public()},
			{PublicKey: k(13), PersistentKeepalive: -time.Second, MTU: 575},
			{PublicKey: k(14), PersistentKeepalive: 1500 * time.Millisecond, Endpoint: endpoint("192.0.2.1:0"), MTU: 65536},
			{PublicKey: k(15), PersistentKeepalive: 65536 * time.Second, Endpoint: endpoint("0.0.0.0:5")},
			{PublicKey: k(16), Endpoint: endpoint("224.0.0.1:5"), AllowedIPs: []netip.Prefix{{}}},
			{PublicKey: k(17), Endpoint: endpoint("[ff02::1]:5"), AllowedIPs: []netip.Prefix{prefix("::ffff:10.0.0.0/104")}},
			{PublicKey: k(18), Endpoint: Endpoint{Addr: netip.AddrPortFrom(netip.Addr{}, 5)}, AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 33)}},
			{PublicKey: k(10)},
			{PublicKey: k(19), Endpoint: Endpoint{Link: testLink{"relay", 1}}},
		},
	})
	if d != nil {
		t.Error("New returned a device, want nil and an error")
	}
	peer := func(i int, key PublicKey) string { return fmt.Sprintf("peer %d (%v): ", i, key) }
	wantErrors(t, err,
		[]string{"Config.Tunnel is nil", "transport/netstack"},
		[]string{"Config.Bind is nil", "transport/udp"},
		[]string{"Config.StagedBytes is -1", "want 0"},
		[]string{"Config.MaxLookedUp is -1", "want 0"},
		[]string{"Config.MaxLookups is -1", "want 0"},
		[]string{peer(9, k(10)), "configured twice", "join"},
		[]string{peer(1, PublicKey{}), "public key is missing"},
		[]string{peer(2, self.Public()), "own public key", "name the other end's"},
		[]string{peer(3, k(13)), "persistent keepalive -1s", "whole seconds from 1 to 65535"},
		[]string{peer(3, k(13)), "MTU 575", "want 576 to 65535, or 0"},
		[]string{peer(4, k(14)), "persistent keepalive 1.5s"},
		[]string{peer(4, k(14)), "MTU 65536"},
		[]string{peer(4, k(14)), "endpoint 192.0.2.1:0", "port other than 0"},
		[]string{peer(5, k(15)), "persistent keepalive 18h12m16s"},
		[]string{peer(5, k(15)), "endpoint 0.0.0.0:5", "one host"},
		[]string{peer(6, k(16)), "endpoint 224.0.0.1:5", "one host"},
		[]string{peer(6, k(16)), "not a valid prefix", "10.0.0.0/24"},
		[]string{peer(7, k(17)), "endpoint [ff02::1]:5", "one host"},
		[]string{peer(7, k(17)), "::ffff:10.0.0.0/104", "write an IPv4 prefix as such"},
		[]string{peer(8, k(18)), "endpoint", "want an address"},
		[]string{peer(8, k(18)), "not a valid prefix"},
	)
}

func TestConfigureRefusesAsAWhole(t *testing.T) {
	a, b := newRemote(1, PublicKey{}), newRemote(2, PublicKey{})
	e := newEnd(t, testKey(1), a.config())
	before, status := fmt.Sprint(e.Device.Status()), fmt.Sprint(peers(e.Device))
	own, bad := testKey(1), 500*time.Millisecond
	port, mark := uint16(7), uint32(9)
	err := e.Configure(Change{
		PrivateKey: &own, ListenPort: &port, FirewallMark: &mark, ReplacePeers: true,
		Peers: []PeerChange{
			{PublicKey: b.id.public, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}},
			{PublicKey: a.id.public, PersistentKeepalive: &bad, RemoveAllowedIPs: []netip.Prefix{{}}},
			{PublicKey: testKey(1).Public()},
			{PublicKey: testKey(1).Public(), Remove: true}, // no error, although the device has no such peer
		},
	})
	wantErrors(t, err,
		[]string{"peer 1 (" + a.id.public.String(), "persistent keepalive 500ms"},
		[]string{"peer 1 (" + a.id.public.String(), "not a valid prefix"},
		[]string{"peer 2 (", "own public key"},
	)
	if got := fmt.Sprint(e.Device.Status()); got != before {
		t.Errorf("Configure returned an error, but changed the device from\n%s\nto\n%s", before, got)
	}
	if got := fmt.Sprint(peers(e.Device)); got != status {
		t.Errorf("Configure returned an error, but changed the peers from\n%s\nto\n%s", status, got)
	}
}

func peers(d *Device) (all []PeerStatus) {
	for s := range d.Peers() {
		all = append(all, s)
	}
	return all
}

// TestConfigureNewKeyIsChecked checks that if a change sets the private key, Configure compares the keys of the change's peers
// with the new key. A peer with the device's own public key is an error.
func TestConfigureNewKeyIsChecked(t *testing.T) {
	e := newEnd(t, testKey(1))
	key := testKey(2)
	err := e.Configure(Change{PrivateKey: &key, Peers: []PeerChange{{PublicKey: key.Public()}}})
	wantErrors(t, err, []string{"peer 0", "own public key"})
	err = e.Configure(Change{PrivateKey: &key, Peers: []PeerChange{{PublicKey: testKey(1).Public()}}})
	wantErrors(t, err)
}

func TestConfigDefaults(t *testing.T) {
	for _, c := range []struct {
		config Config
		want   [4]int64
	}{
		{Config{}, [4]int64{16 << 20, 512 << 10, 65536, 256}},
		{Config{StagedBytes: 1, StagedPerPeer: 2, MaxLookedUp: 3, MaxLookups: 4}, [4]int64{1, 2, 3, 4}},
		{Config{StagedBytes: 5, StagedPerPeer: -1}, [4]int64{5, 5, 65536, 256}},
	} {
		d := newEndOf(t, c.config).Device
		if got := [4]int64{d.maxStagedBytes, d.maxStagedPerPeer, int64(d.lookups.MaxAdmitted), int64(d.lookups.Max)}; got != c.want {
			t.Errorf("the limits are %d, want %d", got, c.want)
		}
	}
}

// TestNewCopiesConfig checks that a device does not change if the caller overwrites the slices of the Config after New.
func TestNewCopiesConfig(t *testing.T) {
	a := newRemote(1, PublicKey{})
	config := a.config()
	prefixes := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	config.AllowedIPs = prefixes
	e := newEnd(t, testKey(1), config)
	for i := range prefixes {
		prefixes[i] = netip.MustParsePrefix("192.0.2.0/24")
	}
	if got := slices.Collect(e.AllowedIPs(a.id.public)); !slices.Equal(got, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}) {
		t.Fatalf("the allowed IPs changed together with the caller's slice: %v", got)
	}
}

// TestPeerChangeOfConfig checks that SetPeer resets each setting that is zero in the PeerConfig, except the endpoint and the
// timestamp.
func TestPeerChangeOfConfig(t *testing.T) {
	a := newRemote(1, PublicKey{})
	full := PeerConfig{
		PublicKey: a.id.public, PresharedKey: PresharedKey{1}, Endpoint: a.from, PersistentKeepalive: 25 * time.Second,
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.7/24")}, Timestamp: Timestamp{5},
	}
	e := newEnd(t, testKey(1), full)
	if e.PrivateKey() != testKey(1) || e.PrivateKey().Public() != e.Status().PublicKey {
		t.Error("the device does not have the configured private key")
	}
	if _, ok := e.PresharedKey(PublicKey{1}); ok {
		t.Error("a peer that does not exist has a preshared key")
	}
	s, _ := e.Peer(a.id.public)
	psk, ok := e.PresharedKey(a.id.public)
	if !ok || psk != full.PresharedKey || s.Endpoint != full.Endpoint || s.PersistentKeepalive != 25*time.Second ||
		s.AllowedIPs != 1 || !slices.Equal(slices.Collect(e.AllowedIPs(a.id.public)), []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}) || s.Timestamp != full.Timestamp {
		t.Errorf("the peer is %+v, want the settings of its PeerConfig", s)
	}
	if err := e.SetPeer(PeerConfig{PublicKey: a.id.public}); err != nil {
		t.Fatal(err)
	}
	s, _ = e.Peer(a.id.public)
	psk, ok = e.PresharedKey(a.id.public)
	if !ok || !psk.IsZero() || s.Endpoint != full.Endpoint || s.PersistentKeepalive != 0 || s.AllowedIPs != 0 {
		t.Errorf("SetPeer kept a setting that the PeerConfig leaves out, or lost the endpoint: %+v", s)
	}
	if s.Timestamp != full.Timestamp {
		t.Error("SetPeer lost the timestamp, so the device would accept a recorded initiation")
	}
}

// A textAddr is a net.Addr that this package does not know.
type textAddr string

func (textAddr) Network() string  { return "text" }
func (a textAddr) String() string { return string(a) }

func TestPeerOf(t *testing.T) {
	a, b := newRemote(1, PublicKey{}), newRemote(2, PublicKey{})
	ca, cb := a.config(), b.config()
	ca.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fe80::/64")}
	cb.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("10.1.2.3/32")}
	e := newEnd(t, testKey(1), ca, cb)
	v4, mapped, v6 := net.IPv4(10, 1, 2, 3).To4(), net.IPv4(10, 1, 2, 3), net.ParseIP("fe80::1")
	for _, c := range []struct {
		addr net.Addr
		want PublicKey
	}{
		{&net.TCPAddr{IP: v4, Port: 80}, b.id.public},
		{&net.TCPAddr{IP: mapped, Port: 80}, b.id.public},
		{&net.UDPAddr{IP: net.IPv4(10, 1, 2, 4)}, a.id.public},
		{&net.UDPAddr{IP: v6, Zone: "wg0", Port: 1}, a.id.public},
		{&net.IPAddr{IP: v4}, b.id.public},
		{&net.IPAddr{IP: v6, Zone: "wg0"}, a.id.public},
		{net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.1.2.3:0")), b.id.public},
		{textAddr("10.1.2.3:80"), b.id.public},
		{textAddr("[fe80::1%wg0]:80"), a.id.public},
		{textAddr("10.1.2.4"), a.id.public},
		{textAddr("10.2.2.4:80"), PublicKey{}},
		{textAddr("example.org:80"), PublicKey{}},
		{&net.UnixAddr{Name: "/x"}, PublicKey{}},
		{&net.TCPAddr{}, PublicKey{}},
		{(*net.TCPAddr)(nil), PublicKey{}},
		{(*net.IPAddr)(nil), PublicKey{}},
		{nil, PublicKey{}},
	} {
		if key, ok := e.PeerOf(c.addr); key != c.want || ok != !c.want.IsZero() {
			t.Errorf("PeerOf(%T %v) = %v, %v, want %v", c.addr, c.addr, key, ok, c.want)
		}
	}
}
