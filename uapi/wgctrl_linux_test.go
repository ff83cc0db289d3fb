package uapi

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/seed-86b749af/wireguard"
)

// TestWGCtrl checks that a Go program can configure this device through wgctrl, and reads back what it wrote.
func TestWGCtrl(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for sockets in /var/run/wireguard")
	}
	d := newDevice(t)
	name := uniqueName()
	l, err := Listen(name)
	if err != nil {
		t.Fatal(err)
	}
	serveAt(t, &Server{Device: d}, l)
	client, err := wgctrl.New()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	own, port, mark, interval := wireguard.NewPrivateKey(), freePort(t), 77, 25*time.Second
	psk := wgtypes.Key(wireguard.NewPresharedKey())
	a, b := wgtypes.Key(public(1)), wgtypes.Key(public(2))
	_, v4, _ := net.ParseCIDR("10.0.0.0/8")
	_, v6, _ := net.ParseCIDR("fd00::/64")
	configure := func(c wgtypes.Config) {
		t.Helper()
		if err := client.ConfigureDevice(name, c); err != nil {
			t.Fatal(err)
		}
	}
	intPort := int(port)
	key := wgtypes.Key(own)
	configure(wgtypes.Config{PrivateKey: &key, ListenPort: &intPort, FirewallMark: &mark, ReplacePeers: true, Peers: []wgtypes.PeerConfig{
		{PublicKey: a, PresharedKey: &psk, PersistentKeepaliveInterval: &interval, ReplaceAllowedIPs: true, AllowedIPs: []net.IPNet{*v4, *v6}},
		{PublicKey: b, Endpoint: &net.UDPAddr{IP: net.ParseIP("2001:db8::1"), Port: 5}},
	}})
	got, err := client.Device(name)
	if err != nil {
		t.Fatal(err)
	}
	if got.PrivateKey != key || got.PublicKey != wgtypes.Key(own.Public()) || got.ListenPort != intPort || got.FirewallMark != mark || len(got.Peers) != 2 {
		t.Fatalf("wgctrl reads the device as %+v, want the values that it configured", got)
	}
	p, q := got.Peers[0], got.Peers[1]
	if p.PublicKey != a || p.PresharedKey != psk || p.PersistentKeepaliveInterval != interval || len(p.AllowedIPs) != 2 ||
		p.AllowedIPs[0].String() != "10.0.0.0/8" || p.AllowedIPs[1].String() != "fd00::/64" || p.Endpoint != nil || p.ProtocolVersion != 1 {
		t.Errorf("wgctrl reads the first peer as %+v, want the values that it configured", p)
	}
	if q.PublicKey != b || q.Endpoint.String() != "[2001:db8::1]:5" || q.PresharedKey != (wgtypes.Key{}) || !q.LastHandshakeTime.IsZero() && q.LastHandshakeTime.Unix() != 0 {
		t.Errorf("wgctrl reads the second peer as %+v, want the values that it configured", q)
	}

	configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{
		{PublicKey: a, UpdateOnly: true, Endpoint: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 6}},
		{PublicKey: b, Remove: true},
		{PublicKey: wgtypes.Key(public(3)), UpdateOnly: true},
	}})
	s, ok := d.Peer(public(1))
	kept, _ := d.PresharedKey(wireguard.PublicKey(a))
	if !ok || s.Endpoint.Addr != netip.MustParseAddrPort("192.0.2.1:6") || kept != wireguard.PresharedKey(psk) || s.AllowedIPs != 2 || d.Status().Peers != 1 {
		t.Errorf("after the update, the device has %d peers, of which one is %+v; want 1 peer with the new endpoint and its other values kept", d.Status().Peers, s)
	}

	taken := int(newDevice(t).Status().ListenPort)
	if err := client.ConfigureDevice(name, wgtypes.Config{ListenPort: &taken}); err == nil || !strings.Contains(err.Error(), "errno=-") {
		t.Errorf("ConfigureDevice with a port in use: error %v, want one with errno=-", err)
	}
	if d.Status().ListenPort != port {
		t.Error("the refused change of port changed the device's port")
	}
	all, err := client.Devices()
	if err != nil || !slices.ContainsFunc(all, func(d *wgtypes.Device) bool { return d.Name == name }) {
		t.Errorf("Devices returned %v without %s, error %v", all, name, err)
	}
}
