package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// An office has two hosts. Only the default route leads to the gateway's outer address, so the laptop's datagrams need their
// mark when the default route leads into the tunnel.
//
//	laptop 198.18.0.1 ── veth ── 198.18.0.2 gateway, 198.51.100.1 (outer), 203.0.113.5 and 2001:db8:5::1 (the world)
//	       10.9.0.1, fd09::1 ══ tunnel ══ 10.9.0.2, fd09::2
type office struct {
	laptop, gateway                *space
	iface, gatewayIface            string
	private, public, gatewayPublic string
	gatewayPrivate                 string
}

func newOffice(t *testing.T) *office {
	needs(t, "wg", "ping")
	o := &office{laptop: newSpace(t), gateway: newSpace(t), iface: unique("w"), gatewayIface: unique("w")}
	o.private, o.public = newKeys()
	o.gatewayPrivate, o.gatewayPublic = newKeys()
	link(o.laptop, o.gateway)
	for _, a := range []string{"198.51.100.1/32", "203.0.113.5/32", "2001:db8:5::1/128"} {
		o.gateway.must("ip", "address", "add", a, "dev", "lo")
	}
	o.laptop.must("ip", "route", "add", "default", "via", "198.18.0.2")
	o.laptop.must("ip", "-6", "route", "add", "default", "via", "fd18::2")
	o.laptop.must("sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done")
	o.laptop.endAfter(o.iface)
	o.gateway.endAfter(o.gatewayIface)
	o.gateway.must(built(t), "up", o.gateway.write(o.gatewayIface+".conf", fmt.Sprintf(`
[Interface]
PrivateKey = %s
Address = 10.9.0.2/24, fd09::2/64
ListenPort = 51820
[Peer]
PublicKey = %s
AllowedIPs = 10.9.0.1/32, fd09::1/128
`, o.gatewayPrivate, o.public), 0o600))
	return o
}

// file writes the laptop's file. more has further lines for its [Interface].
func (o *office) file(more string) string {
	return o.laptop.write(o.iface+".conf", fmt.Sprintf(`
[Interface] # the laptop
PrivateKey = %s
%s
[Peer]
# the gateway
PublicKey = %s
AllowedIPs = 0.0.0.0/0, ::/0, 10.11.0.0/16, 10.9.0.128/25
Endpoint = 198.51.100.1:51820
`, o.private, more, o.gatewayPublic), 0o600)
}

func (o *office) ping(to ...string) {
	o.laptop.Helper()
	for _, a := range to {
		o.laptop.must("ping", "-n", "-c", "1", "-W", "10", a)
	}
}

// wantClean fails the test if anything of the laptop's tunnel is left.
func (o *office) wantClean() {
	s := o.laptop
	s.Helper()
	s.wantGone(o.iface)
	s.wantNoPolicy()
}

// wantNoPolicy fails the test if a rule, a filter, or a route other than the system's is left.
func (s *space) wantNoPolicy() {
	s.Helper()
	for _, family := range []string{"-4", "-6"} {
		if out := s.must("ip", family, "rule", "show"); strings.Contains(out, "fwmark") || strings.Contains(out, "suppress") {
			s.Errorf("policy rules are left:\n%s", out)
		}
		if out, _ := s.run("ip", family, "route", "show", "table", "51820"); strings.TrimSpace(out) != "" && !strings.Contains(out, "does not exist") {
			s.Errorf("routes in table 51820 are left:\n%s", out)
		}
	}
	if out, _ := s.run("nft", "list", "tables"); strings.Contains(out, "wg-quick") {
		s.Errorf("a filter is left:\n%s", out)
	}
}

// quick returns a copy of wg-quick that looks for its commands in the test's folder first.
func (s *space) quick(t *testing.T) string {
	needs(t, "wg-quick", "bash", "nft")
	path, _ := exec.LookPath("wg-quick")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	return s.write("bin/wg-quick", string(text), 0o755)
}
