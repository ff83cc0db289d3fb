//go:build linux

package netns

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/seed-86b749af/wireguard"
)

// fill replaces the configuration of the interface by the interface's own key and port and the given peers.
func (w *wg) fill(peers string) {
	w.t.Helper()
	w.feed(fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = %d\n%s", w.key.Text(), w.port, peers), "wg setconf %s /dev/stdin", w.name)
}

// sortedFields returns the words of a text in sorted order. Commas separate words too.
func sortedFields(s string) []string {
	return slices.Sorted(strings.FieldsSeq(strings.ReplaceAll(s, ",", " ")))
}

// TestManyAllowedIPs gives a peer 65,280 prefixes, half of them IPv4 and half IPv6. "wg show" must list all of them.
func TestManyAllowedIPs(t *testing.T) {
	t.Parallel()
	w := newWG(newHost(t), innerA)
	var config strings.Builder
	key := wireguard.NewPrivateKey().Public()
	fmt.Fprintf(&config, "[Peer]\nPublicKey = %v\n", key)
	want := []string{key.String()}
	for i := range 255 * 128 {
		v4, v6 := fmt.Sprintf("%d.%d.0.0/16", 1+i/128, i%128), fmt.Sprintf("%x:%x::/32", 0x2000+i/128, 1+i%128)
		fmt.Fprintf(&config, "AllowedIPs = %s, %s\n", v4, v6)
		want = append(want, v4, v6)
	}
	w.fill(config.String())
	slices.Sort(want)
	for range 2 { // in the second round, the configuration is the output of "wg showconf"
		if got := sortedFields(w.run("wg show %s allowed-ips", w.name)); !slices.Equal(got, want) {
			t.Fatalf("%d words in wg show allowed-ips, want the key and its %d prefixes", len(got), len(want)-1)
		}
		w.feed(w.run("wg showconf %s", w.name), "wg setconf %s /dev/stdin", w.name)
	}
}

// TestManyPeers sets four thousand peers with two prefixes each and reads them back with wg(8). It copies them to another daemon,
// and there reduces them to a few.
func TestManyPeers(t *testing.T) {
	t.Parallel()
	const n = 4000
	w, v := newWG(newHost(t), innerA), newWG(newHost(t), innerB)
	var config []string
	for i := range n {
		config = append(config, fmt.Sprintf(
			"[Peer]\nPublicKey = %v\nAllowedIPs = 10.%d.%d.0/24, fd00:%x::/32\nEndpoint = 192.0.2.%d:%d\nPersistentKeepalive = %d\n",
			wireguard.PublicKey(wireguard.NewPresharedKey()), 1+i/256, i%256, 1+i, 1+i%250, 1+i, 60000-i))
	}
	w.fill(strings.Join(config, ""))
	dump := strings.Split(strings.TrimSpace(w.run("wg show %s dump", w.name)), "\n")
	if len(dump) != 1+n {
		t.Fatalf("wg show dump has %d lines, want one for the interface and %d for peers", len(dump), n)
	}
	conf := w.run("wg showconf %s", w.name)
	v.feed(conf, "wg setconf %s /dev/stdin", v.name)
	if got := v.run("wg showconf %s", v.name); !slices.Equal(sortedFields(got), sortedFields(conf)) {
		t.Errorf("wg showconf of the second daemon differs from that of the first, which it was given")
	}
	v.feed("[Interface]\nPrivateKey = "+v.key.Text()+"\n"+strings.Join(config[:3], ""), "wg syncconf %s /dev/stdin", v.name)
	if got := strings.Count(v.run("wg show %s peers", v.name), "\n"); got != 3 {
		t.Errorf("%d peers after wg syncconf with 3, want 3", got)
	}
	v.feed(strings.Join(config[10:15], ""), "wg addconf %s /dev/stdin", v.name)
	if got := strings.Count(v.run("wg show %s peers", v.name), "\n"); got != 8 {
		t.Errorf("%d peers after wg addconf with 5 more, want 8", got)
	}
}

// TestWrongSettings checks that wg(8) fails for a missing interface and for an invalid key, and that the existing interface still
// works.
func TestWrongSettings(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.a.fails("there is no such interface", "wg show doesnotexist")
	p.a.fails("nonsense is not a key", "wg set %s peer nonsense", p.a.name)
	p.meet(outerB4)
	p.a.ping(innerB4, 1)
}

// TestPortTaken checks that the daemon refuses a port that is in use, and that it keeps its old port open.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	notKernelLike(t, "it closes its old port before it opens the new one")
	p := newPair(t)
	w := newWGAt(p.a.host, defaultPort+1, "10.1.0.1/24")
	w.fails("the port is taken", "wg set %s listen-port %d", w.name, defaultPort)
	if got := strings.TrimSpace(w.run("wg show %s listen-port", w.name)); got != fmt.Sprint(w.port) || !w.bound(w.port) {
		t.Errorf("the interface listens on %s after the attempt, want %d as before", got, w.port)
	}
	p.meet(outerB4)
	p.a.ping(innerB4, 1)
}
