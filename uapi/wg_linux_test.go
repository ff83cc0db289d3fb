package uapi

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard"
)

// A wgTest is a device that the real wg(8) configures:
//
//	wg ─── /var/run/wireguard/NAME.sock ─── Server ─── Device
type wgTest struct {
	*testing.T
	d    *wireguard.Device
	name string
}

func newWG(t *testing.T) *wgTest {
	t.Helper()
	return newWGOf(t, newDevice(t))
}

func newWGOf(t *testing.T, d *wireguard.Device) *wgTest {
	t.Helper()
	if _, err := exec.LookPath("wg"); err != nil {
		t.Skip("needs wg: apt-get install wireguard-tools")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, for sockets in /var/run/wireguard")
	}
	w := &wgTest{t, d, uniqueName()}
	l, err := Listen(w.name)
	if err != nil {
		t.Fatal(err)
	}
	serveAt(t, &Server{Device: w.d}, l)
	return w
}

// try runs wg and returns its output.
func (w *wgTest) try(args ...string) (string, error) {
	cmd := exec.CommandContext(w.Context(), "wg", args...)
	cmd.Env = append(os.Environ(), "WG_COLOR_MODE=never", "WG_HIDE_KEYS=never")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("wg %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

func (w *wgTest) wg(args ...string) string {
	w.Helper()
	out, err := w.try(args...)
	if err != nil {
		w.Fatal(err)
	}
	return out
}

// file makes a file for wg to read.
func (w *wgTest) file(text string) string {
	w.Helper()
	path := filepath.Join(w.TempDir(), "f")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.Fatal(err)
	}
	return path
}

// want runs wg and fails the test unless it prints exactly want.
func (w *wgTest) want(want string, args ...string) {
	w.Helper()
	if got := w.wg(args...); got != want {
		w.Errorf("wg %s prints\n%s\nwant\n%s", strings.Join(args, " "), got, want)
	}
}

// TestWGShow checks that wg show prints the configured values: for a peer with all settings, for a peer with an IPv6 endpoint and
// for a peer without settings. (Another implementation once stopped at the first peer with an IPv6 endpoint.)
func TestWGShow(t *testing.T) {
	w := newWG(t)
	own, psk, port := wireguard.NewPrivateKey(), wireguard.NewPresharedKey(), freePort(w)
	keys := sortedKeys(3)
	w.wg("set", w.name, "listen-port", fmt.Sprint(port), "private-key", w.file(own.Text()+"\n"),
		"peer", keys[0], "endpoint", "[2001:db8::1]:1001", "allowed-ips", "2001:db8:1::/48,fd00::1/128",
		"peer", keys[1], "endpoint", "192.0.2.1:1002", "preshared-key", w.file(psk.Text()), "persistent-keepalive", "25", "allowed-ips", "10.0.0.0/8,10.1.0.0/16",
		"peer", keys[2])

	each := func(a, b, c string) string {
		return fmt.Sprintf("%s\t%s\n%s\t%s\n%s\t%s\n", keys[0], a, keys[1], b, keys[2], c)
	}
	w.want(own.Public().String()+"\n", "show", w.name, "public-key")
	w.want(own.Text()+"\n", "show", w.name, "private-key")
	w.want(fmt.Sprintln(port), "show", w.name, "listen-port")
	w.want("off\n", "show", w.name, "fwmark")
	w.want(strings.Join(keys, "\n")+"\n", "show", w.name, "peers")
	w.want(each("(none)", psk.Text(), "(none)"), "show", w.name, "preshared-keys")
	w.want(each("[2001:db8::1]:1001", "192.0.2.1:1002", "(none)"), "show", w.name, "endpoints")
	w.want(each("2001:db8:1::/48 fd00::1/128", "10.0.0.0/8 10.1.0.0/16", "(none)"), "show", w.name, "allowed-ips")
	w.want(each("0", "0", "0"), "show", w.name, "latest-handshakes")
	w.want(each("off", "25", "off"), "show", w.name, "persistent-keepalive")
	if s, _ := w.d.Peer(mustKey(t, keys[1])); s.Received.Bytes != 0 {
		t.Errorf("the peer has sent nothing, but %d bytes count as received", s.Received.Bytes)
	}
	if got := w.wg("show", w.name, "transfer"); strings.Count(got, "\n") != 3 {
		t.Errorf("wg show transfer does not print three lines:\n%s", got)
	}
	if got := strings.Fields(w.wg("show", "interfaces")); !slices.Contains(got, w.name) {
		t.Errorf("wg show interfaces lists %v without %s", got, w.name)
	}

	dump := w.wg("show", "all", "dump")
	for _, line := range []string{
		strings.Join([]string{w.name, own.Text(), own.Public().String(), fmt.Sprint(port), "off"}, "\t"),
		strings.Join([]string{w.name, keys[0], "(none)", "[2001:db8::1]:1001", "2001:db8:1::/48,fd00::1/128", "0"}, "\t"),
		strings.Join([]string{w.name, keys[1], psk.Text(), "192.0.2.1:1002", "10.0.0.0/8,10.1.0.0/16", "0"}, "\t"),
		strings.Join([]string{w.name, keys[2], "(none)", "(none)", "(none)", "0", "0", "0", "off"}, "\t"),
	} {
		if !strings.Contains(dump, line) {
			t.Errorf("wg show all dump has no line %q:\n%s", line, dump)
		}
	}
	for _, part := range []string{"interface: " + w.name, "public key: " + own.Public().String(), "endpoint: [2001:db8::1]:1001", "persistent keepalive: every 25 seconds"} {
		if got := w.wg("show"); !strings.Contains(got, part) {
			t.Errorf("wg show does not print %q:\n%s", part, got)
		}
	}
}

// TestWGSet checks that an update of an existing peer changes only the values that it names, and that a prefix belongs to the
// last peer that gets it.
func TestWGSet(t *testing.T) {
	w := newWG(t)
	keys := sortedKeys(2)
	w.wg("set", w.name, "private-key", w.file(wireguard.NewPrivateKey().Text()),
		"peer", keys[0], "endpoint", "192.0.2.1:1", "allowed-ips", "10.0.0.0/24,10.0.1.0/24", "persistent-keepalive", "7",
		"peer", keys[1], "allowed-ips", "fd00::/64")
	w.wg("set", w.name, "peer", keys[0], "endpoint", "[2001:db8::7]:2")
	w.want(keys[0]+"\t[2001:db8::7]:2\n"+keys[1]+"\t(none)\n", "show", w.name, "endpoints")
	w.want(keys[0]+"\t10.0.0.0/24 10.0.1.0/24\n"+keys[1]+"\tfd00::/64\n", "show", w.name, "allowed-ips")
	w.want(keys[0]+"\t7\n"+keys[1]+"\toff\n", "show", w.name, "persistent-keepalive")

	w.wg("set", w.name, "peer", keys[1], "allowed-ips", "10.0.1.9/24")
	w.want(keys[0]+"\t10.0.0.0/24\n"+keys[1]+"\t10.0.1.0/24\n", "show", w.name, "allowed-ips")
	w.wg("set", w.name, "peer", keys[0], "persistent-keepalive", "off", "allowed-ips", "")
	w.want(keys[0]+"\t(none)\n"+keys[1]+"\t10.0.1.0/24\n", "show", w.name, "allowed-ips")
	w.want(keys[0]+"\toff\n"+keys[1]+"\toff\n", "show", w.name, "persistent-keepalive")
	w.wg("set", w.name, "peer", keys[0], "remove")
	w.want(keys[1]+"\n", "show", w.name, "peers")

	w.wg("set", w.name, "fwmark", "0x2a")
	w.want("0x2a\n", "show", w.name, "fwmark")
	w.wg("set", w.name, "fwmark", "off")
	w.want("off\n", "show", w.name, "fwmark")

	// The device's own key as a peer is ignored, and so is an update of a peer that does not exist.
	w.wg("set", w.name, "peer", w.d.Status().PublicKey.String(), "allowed-ips", "10.9.0.0/16")
	w.want(keys[1]+"\n", "show", w.name, "peers")
}

// TestWGConf checks that setconf replaces the configuration, that addconf adds to it, that syncconf applies its file and
// removes only the peers that the file does not have, and that showconf prints a file that setconf accepts.
func TestWGConf(t *testing.T) {
	w := newWG(t)
	own, psk, port, keys := wireguard.NewPrivateKey(), wireguard.NewPresharedKey(), freePort(w), sortedKeys(3)
	head := fmt.Sprintf("[Interface]\nListenPort = %d\nFwMark = 0x1c\nPrivateKey = %s\n", port, own.Text())
	a := fmt.Sprintf("\n[Peer]\nPublicKey = %s\nPresharedKey = %s\nAllowedIPs = 10.0.0.0/8, fd00::/64\nEndpoint = 192.0.2.1:1\nPersistentKeepalive = 9\n", keys[0], psk.Text())
	b := fmt.Sprintf("\n[Peer]\nPublicKey = %s\nAllowedIPs = 10.1.0.0/16\nEndpoint = [2001:db8::1]:2\n", keys[1])
	c := fmt.Sprintf("\n[Peer]\nPublicKey = %s\n", keys[2])

	w.wg("setconf", w.name, w.file(head+a+c))
	w.want(head+a+c, "showconf", w.name)
	w.wg("addconf", w.name, w.file(b))
	w.want(head+a+b+c, "showconf", w.name)
	w.wg("syncconf", w.name, w.file(head+b+c))
	w.want(head+b+c, "showconf", w.name)

	shown := w.wg("showconf", w.name)
	w.wg("setconf", w.name, w.file("[Interface]\n"))
	if s := w.d.Status(); s.Peers != 0 || !w.d.PrivateKey().IsZero() || s.FirewallMark != 0 {
		t.Errorf("after setconf with an empty file: %d peers, private key: %v, mark %d; want 0, false and 0", s.Peers, !w.d.PrivateKey().IsZero(), s.FirewallMark)
	}
	w.wg("setconf", w.name, w.file(shown))
	w.want(shown, "showconf", w.name)
}

// TestWGRefused checks that wg reports that a port is in use, and that no part of the request is carried out.
func TestWGRefused(t *testing.T) {
	w := newWG(t)
	before := get(t, w.d)
	_, err := w.try("set", w.name, "listen-port", fmt.Sprint(newDevice(t).Status().ListenPort), "peer", sortedKeys(1)[0])
	if err == nil || !strings.Contains(err.Error(), "Address already in use") {
		t.Errorf("wg set with a port in use: error %v, want Address already in use", err)
	}
	if after := get(t, w.d); after != before {
		t.Errorf("the refused request changed the device from\n%s\nto\n%s", before, after)
	}
}

// TestWGSession checks that wg shows the last handshake and the transfer of a session, that wg syncconf keeps the
// session, and that wg setconf ends it.
func TestWGSession(t *testing.T) {
	d, peer := newSession(t)
	w := newWGOf(t, d)
	s, _ := d.Peer(peer)
	w.want(fmt.Sprintf("%v\t%d\n", peer, s.LastHandshake.Unix()), "show", w.name, "latest-handshakes")
	w.want(fmt.Sprintf("%v\t%d\t%d\n", peer, s.Received.Bytes, s.Sent.Bytes), "show", w.name, "transfer")
	conf := w.file(w.wg("showconf", w.name))
	w.wg("syncconf", w.name, conf)
	if after, _ := d.Peer(peer); !after.Session || !after.LastHandshake.Equal(s.LastHandshake) {
		t.Errorf("after syncconf the peer is %+v, want its session kept", after)
	}
	w.wg("setconf", w.name, conf)
	if after, ok := d.Peer(peer); !ok || after.Session || !after.LastHandshake.IsZero() {
		t.Errorf("after setconf the peer is %+v, want it without a session", after)
	}
}

// TestWGLarge checks that wg writes and reads 5,000 peers with 65,000 allowed IPs.
func TestWGLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("with the race detector, this test takes up to 20 s, so it does not run with -short")
	}
	w := newWG(t)
	source := newDown(t)
	set(t, source, largeRequest())
	var conf strings.Builder
	for p := range source.Peers() {
		fmt.Fprintf(&conf, "[Peer]\nPublicKey = %v\nEndpoint = %v\nAllowedIPs = %s\n",
			p.PublicKey, p.Endpoint, strings.ReplaceAll(strings.Trim(fmt.Sprint(slices.Collect(source.AllowedIPs(p.PublicKey))), "[]"), " ", ","))
	}
	w.wg("setconf", w.name, w.file(conf.String()))
	if n := len(strings.Fields(w.wg("show", w.name, "allowed-ips"))) - 5000; n != 65000 { // each line begins with a key
		t.Errorf("wg show prints %d allowed IPs, want 65000", n)
	}
	if n := strings.Count(w.wg("show", w.name, "dump"), "\n"); n != 5001 {
		t.Errorf("wg show dump prints %d lines, want 5001", n)
	}
	w.wg("syncconf", w.name, w.file("[Interface]\n"))
	if n := w.d.Status().Peers; n != 0 {
		t.Errorf("the device has %d peers after syncconf with an empty file, want 0", n)
	}
}

// sortedKeys returns n public keys in the order in which Get prints them: sorted by their bytes.
func sortedKeys(n int) (text []string) {
	keys := make([]wireguard.PublicKey, n)
	for i := range keys {
		keys[i] = wireguard.NewPrivateKey().Public()
	}
	slices.SortFunc(keys, func(a, b wireguard.PublicKey) int { return bytes.Compare(a[:], b[:]) })
	for _, k := range keys {
		text = append(text, k.String())
	}
	return text
}

func mustKey(t *testing.T, text string) wireguard.PublicKey {
	t.Helper()
	k, err := wireguard.ParsePublicKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
