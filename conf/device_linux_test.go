package conf_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/transport/pipe"
	"github.com/seed-86b749af/wireguard/uapi"
)

// A device has a control socket to which the real wg connects.
type device struct {
	*testing.T
	*wireguard.Device
	iface string
}

var devices atomic.Int32

func newDevice(t *testing.T) *device {
	t.Helper()
	if _, err := exec.LookPath("wg"); err != nil {
		t.Skip("needs wg: install wireguard-tools")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, for a control socket at the path that wg uses")
	}
	d, err := wireguard.New(wireguard.Config{Tunnel: pipe.NewTunnel(0), Bind: pipe.NewNetwork(pipe.Config{}).NewEnd()})
	if err != nil {
		t.Fatal(err)
	}
	iface := fmt.Sprintf("c%s%d", strconv.FormatInt(int64(os.Getpid()), 36), devices.Add(1))
	l, err := uapi.Listen(iface)
	if err != nil {
		t.Fatal(err)
	}
	s := &uapi.Server{Device: d}
	served := make(chan error)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		<-served
		d.Close()
	})
	return &device{t, d, iface}
}

// wg runs the real wg with a file that contains the text.
func (d *device) wg(command, text string) {
	d.Helper()
	file := filepath.Join(d.TempDir(), "x.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		d.Fatal(err)
	}
	if out, err := exec.Command("wg", command, d.iface, file).CombinedOutput(); err != nil {
		d.Fatalf("wg %s: %v\n%s", command, err, out)
	}
}

// showconf returns the output of wg showconf, parsed.
func (d *device) showconf() *conf.File {
	d.Helper()
	out, err := exec.Command("wg", "showconf", d.iface).CombinedOutput()
	if err != nil {
		d.Fatalf("wg showconf: %v\n%s", err, out)
	}
	return parse(d.T, string(out))
}

func parse(t *testing.T, text string) *conf.File {
	t.Helper()
	f, err := conf.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// values returns the change that f makes to a device.
func values(t *testing.T, f *conf.File) wireguard.Change {
	t.Helper()
	c, err := f.Change()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const first = `[Interface]
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
ListenPort = 51820
FwMark = 0xca6c
[Peer]
PublicKey = TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=
AllowedIPs = 10.192.122.4/32, 192.168.0.0/16
Endpoint = [2607:5300:60:6b0::c05f:543]:2468
PersistentKeepalive = 25
[Peer]
PublicKey = gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=
[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
PresharedKey = FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=
AllowedIPs = 10.192.122.3/32, 10.192.124.0/24, fd00::/8
Endpoint = 192.95.5.67:1234
`

// TestSetconfAndShowconf checks that wg setconf accepts the output of Text, that Parse reads the same values from the output of
// wg showconf, and that the device then has the configuration that Config returns.
func TestSetconfAndShowconf(t *testing.T) {
	d := newDevice(t)
	f := parse(t, first)
	f.Peers[1].AllowedIPs = []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16")}
	text, err := f.Text()
	if err != nil {
		t.Fatal(err)
	}
	d.wg("setconf", string(text))
	if got, want := values(t, d.showconf()), values(t, f); !same(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	c, err := f.Config()
	if err != nil {
		t.Fatal(err)
	}
	if s := d.Status(); d.PrivateKey() != c.PrivateKey || s.ListenPort != c.ListenPort || s.FirewallMark != c.FirewallMark {
		t.Errorf("the device is %+v, want the configuration that Config returned", s)
	}
	for _, want := range c.Peers {
		got, ok := d.Peer(want.PublicKey)
		psk, _ := d.PresharedKey(want.PublicKey)
		if !ok || psk != want.PresharedKey || got.Endpoint != want.Endpoint || got.PersistentKeepalive != want.PersistentKeepalive ||
			got.AllowedIPs != len(want.AllowedIPs) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
}

// same reports whether two changes are equal if the order of peers and of prefixes does not count.
func same(a, b wireguard.Change) bool { return reflect.DeepEqual(byKey(a), byKey(b)) }

func byKey(c wireguard.Change) map[string]any {
	m := map[string]any{"key": *c.PrivateKey, "port": *c.ListenPort, "mark": *c.FirewallMark}
	for _, p := range c.Peers {
		prefixes := make(map[netip.Prefix]bool)
		for _, a := range p.AllowedIPs {
			prefixes[a] = true
		}
		m[p.PublicKey.String()] = []any{*p.PresharedKey, p.Endpoint, *p.PersistentKeepalive, prefixes}
	}
	return m
}

// TestChangeIsSyncconf checks that Change does to a device what wg syncconf does, and Addition what wg addconf does. (If a
// peer stays and the file has no preshared key or keepalive for it, wg syncconf 1.0.20210914 keeps the old ones; Change
// removes them.)
func TestChangeIsSyncconf(t *testing.T) {
	const second = `[Interface]
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
ListenPort = 51821
[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
PresharedKey = FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=
AllowedIPs = 10.192.122.3/32, 10.9.0.0/16
[Peer]
PublicKey = TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=
AllowedIPs = 192.168.0.0/16
Endpoint = 192.0.2.9:9
PersistentKeepalive = off
[Peer]
PublicKey = FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=
AllowedIPs = 10.44.0.0/16
`
	for _, c := range []struct {
		command string
		change  func(*conf.File) (wireguard.Change, error)
	}{{"syncconf", (*conf.File).Change}, {"addconf", (*conf.File).Addition}} {
		theirs, ours := newDevice(t), newDevice(t)
		for _, d := range []*device{theirs, ours} {
			d.wg("setconf", first)
		}
		theirs.wg(c.command, second)
		change, err := c.change(parse(t, second))
		if err == nil {
			err = ours.Configure(change)
		}
		if err != nil {
			t.Fatal(err)
		}
		got, want := values(t, ours.showconf()), values(t, theirs.showconf())
		if !same(got, want) {
			t.Errorf("%s: got\n%+v\nwant\n%+v", c.command, byKey(got), byKey(want))
		}
	}
}
