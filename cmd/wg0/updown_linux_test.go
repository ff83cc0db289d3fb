package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// Two hosts. Only the default route leads to the gateway's outer address, so the laptop's datagrams need their mark when the
// default route leads into the tunnel.
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

// file writes the laptop's file, with the lines more added to [Interface].
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
			s.Errorf("rules are left:\n%s", out)
		}
		if out, _ := s.run("ip", family, "route", "show", "table", "51820"); strings.TrimSpace(out) != "" && !strings.Contains(out, "does not exist") {
			s.Errorf("routes are left:\n%s", out)
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

// TestQuickAndOwn checks that the real wg-quick with this daemon and the daemon's own up and down configure the host identically
// from a file, and that the tunnel then carries all traffic.
func TestQuickAndOwn(t *testing.T) {
	for _, tool := range []string{"wg-quick", "wg0"} {
		t.Run(tool, func(t *testing.T) {
			if _, err := os.Stat("/sys/module/wireguard"); err == nil && tool == "wg-quick" {
				t.Skip("wg-quick uses the kernel's module where it is loaded")
			}
			o := newOffice(t)
			s := o.laptop
			resolvconf := s.fake("resolvconf", "case $1 in -a) cat >> "+s.dir+"/resolvconf.log;; esac")
			program := built(t)
			if tool == "wg-quick" {
				program = s.quick(t)
				s.env = append(s.env, "WG_QUICK_USERSPACE_IMPLEMENTATION="+built(t))
			}
			hooks := filepath.Join(s.dir, "hooks")
			file := o.file("Address = 10.9.0.1/24\nAddress = fd09::1/64\nDNS = 10.9.0.2, corp.example\nMTU = 1380\n" +
				"PreUp = echo pre %i; echo preup >> " + hooks + "\nPostUp = ping -n -c 1 -W 10 10.9.0.2 && echo postup %i >> " + hooks +
				"\nPreDown = echo predown >> " + hooks + "\nPostDown = echo postdown >> " + hooks)
			s.must(program, "up", file)
			o.ping("10.9.0.2", "fd09::2", "203.0.113.5", "2001:db8:5::1")

			out := s.must("ip", "address", "show", "dev", o.iface)
			for _, want := range []string{"mtu 1380", "inet 10.9.0.1/24", "inet6 fd09::1/64"} {
				if !strings.Contains(out, want) {
					t.Errorf("no %s:\n%s", want, out)
				}
			}
			for family, want := range map[string]string{"-4": "10.11.0.0/16", "-6": "fd09::/64"} {
				if out := s.must("ip", family, "rule", "show"); !strings.Contains(out, "not from all fwmark 0xca6c lookup 51820") ||
					strings.Count(out, "from all lookup main suppress_prefixlength 0") != 1 {
					t.Errorf("rules:\n%s", out)
				}
				if out := s.must("ip", family, "route", "show", "dev", o.iface); !strings.Contains(out, want) || strings.Contains(out, "10.9.0.128/25") {
					t.Errorf("routes:\n%s", out)
				}
				if out := s.must("ip", family, "route", "show", "table", "51820"); !strings.HasPrefix(out, "default dev "+o.iface) {
					t.Errorf("table 51820:\n%s", out)
				}
			}
			if out := s.must("wg", "show", o.iface, "fwmark"); out != "0xca6c\n" {
				t.Errorf("fwmark %s", out)
			}
			if has("nft") {
				out := s.must("nft", "list", "ruleset")
				for _, want := range []string{`iifname != "` + o.iface + `" ip daddr 10.9.0.1 fib saddr type != local drop`, "ip6 daddr fd09::1", "mark 0x0000ca6c ct mark set"} {
					if !strings.Contains(out, want) {
						t.Errorf("the filter has no %s:\n%s", want, out)
					}
				}
			}
			s.must(program, "down", file)
			o.wantClean()
			o.laptop.must("ping", "-n", "-c", "1", "-W", "10", "203.0.113.5") // works without the tunnel again
			if b, _ := os.ReadFile(hooks); string(b) != "preup\npostup "+o.iface+"\npredown\npostdown\n" {
				t.Errorf("hooks: %q", b)
			}
			want := fmt.Sprintf("resolvconf -a %s -m 0 -x\nnameserver 10.9.0.2\nsearch corp.example\nresolvconf -d %[1]s -f\n", o.iface)
			if b, _ := os.ReadFile(resolvconf); !strings.HasPrefix(string(b), want) {
				t.Errorf("resolvconf was told %q", b)
			}
		})
	}
}

// TestQuickPort checks that wg-quick removes the interface again when its port is in use. wg-quick configures an interface before
// it brings it up.
func TestQuickPort(t *testing.T) {
	if _, err := os.Stat("/sys/module/wireguard"); err == nil {
		t.Skip("wg-quick uses the kernel's module where it is loaded")
	}
	o := newOffice(t)
	s := o.laptop
	s.inside(func() error {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: 4242})
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	})
	quick := s.quick(t)
	s.env = append(s.env, "WG_QUICK_USERSPACE_IMPLEMENTATION="+built(t))
	if out, code := s.run(quick, "up", o.file("ListenPort = 4242")); code == 0 || !strings.Contains(out, "Address already in use") {
		t.Errorf("exit status %d\n%s", code, out)
	}
	o.wantClean()
}

// TestDownOfOthers checks that wg0 down takes down an interface that wg-quick brought up, and the reverse.
func TestDownOfOthers(t *testing.T) {
	if _, err := os.Stat("/sys/module/wireguard"); err == nil {
		t.Skip("wg-quick uses the kernel's module where it is loaded")
	}
	o := newOffice(t)
	s := o.laptop
	quick := s.quick(t)
	s.env = append(s.env, "WG_QUICK_USERSPACE_IMPLEMENTATION="+built(t))
	file := o.file("Address = 10.9.0.1/24")
	for _, c := range [][2]string{{quick, built(t)}, {built(t), quick}} {
		s.must(c[0], "up", file)
		o.ping("10.9.0.2")
		s.must(c[1], "down", file)
		o.wantClean()
	}
}

// TestResolvectl checks that wg0 uses resolvectl on a host without resolvconf.
func TestResolvectl(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	s.onlyCommands("ip", "sh", "nft")
	bin := filepath.Join(s.dir, "only")
	log := s.fake("resolvectl", "")
	s.setPath(filepath.Join(s.dir, "bin") + ":" + bin)
	if err := os.Symlink("/bin/sh", filepath.Join(s.dir, "bin", "sh")); err != nil {
		t.Fatal(err)
	}
	file := o.file("Address = 10.9.0.1/24\nDNS = 10.9.0.2, fd09::2, corp.example")
	s.must(built(t), "up", file)
	s.must(built(t), "down", file)
	o.wantClean()
	want := fmt.Sprintf("resolvectl dns %s 10.9.0.2 fd09::2\nresolvectl domain %[1]s ~. corp.example\nresolvectl revert %[1]s\n", o.iface)
	if b, _ := os.ReadFile(log); !strings.HasPrefix(string(b), want) {
		t.Errorf("resolvectl was told %q", b)
	}
}

// TestIptables checks that wg0 makes the filter with iptables on a host without nft.
func TestIptables(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	s.onlyCommands("ip", "sh", "ping", "iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore", "wg")
	file := o.file("Address = 10.9.0.1/24, fd09::1/64")
	s.must(built(t), "up", file)
	o.ping("10.9.0.2", "203.0.113.5", "2001:db8:5::1")
	for _, command := range []string{"iptables-save", "ip6tables-save"} {
		if out := s.must(command); strings.Count(out, "wg-quick(8) rule for "+o.iface) < 3 {
			t.Errorf("%s:\n%s", command, out)
		}
	}
	s.must(built(t), "down", file)
	for _, command := range []string{"iptables-save", "ip6tables-save"} {
		if out := s.must(command); strings.Contains(out, "wg-quick") {
			t.Errorf("%s:\n%s", command, out)
		}
	}
	o.wantClean()
}

// TestWithoutFilter checks that a host that has only ip gets a tunnel and a warning about the missing commands.
func TestWithoutFilter(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	s.must("sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
	s.onlyCommands("ip", "ping")
	file := o.file("Address = 10.9.0.1/24")
	if out := s.must(built(t), "up", file); !strings.Contains(out, "wg0: neither nft nor iptables-restore is installed") {
		t.Errorf("said\n%s", out)
	}
	o.ping("10.9.0.2", "203.0.113.5")
	s.must(built(t), "down", file)
	o.wantClean()
}

// TestMTUAndTables checks that wg0 derives a missing MTU from the path to the endpoint, and that it adds routes to the table that
// Table names, or adds none.
func TestMTUAndTables(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	s.must("ip", "route", "add", "198.51.100.1", "via", "198.18.0.2", "mtu", "1400")
	for table, want := range map[string]string{"777": "default dev", "off": ""} {
		file := o.file("Address = 10.9.0.1/24\nTable = " + table)
		s.must(built(t), "up", file)
		if out := s.must("ip", "link", "show", "dev", o.iface); !strings.Contains(out, "mtu 1320") {
			t.Errorf("MTU: %s", out)
		}
		out, _ := s.run("ip", "route", "show", "table", "777")
		if !strings.HasPrefix(out, want) || want == "" && strings.Contains(out, o.iface) {
			t.Errorf("Table = %s: %s", table, out)
		}
		if out := s.must("ip", "rule", "show"); strings.Contains(out, "fwmark") {
			t.Errorf("Table = %s: rules\n%s", table, out)
		}
		s.must(built(t), "down", file)
		o.wantClean()
	}
}

// TestTwoDefaults checks that a second interface uses another table, and that the rule that both need stays until both are down.
func TestTwoDefaults(t *testing.T) {
	s := newSpace(t)
	needs(t, "wg")
	var files []string
	for i := range 2 {
		private, _ := newKeys()
		_, public := newKeys()
		iface := unique("w")
		s.endAfter(iface)
		files = append(files, s.write(iface+".conf", fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = 10.%d.0.1/24\n[Peer]\nPublicKey = %s\nAllowedIPs = 0.0.0.0/0\n",
			private, i+1, public), 0o600))
		s.must(built(t), "up", files[i])
	}
	wantRules := func(marks ...string) {
		t.Helper()
		out := s.must("ip", "rule", "show")
		if strings.Count(out, "fwmark") != len(marks) || strings.Count(out, "suppress_prefixlength 0") != 1 {
			t.Errorf("rules:\n%s", out)
		}
		for _, m := range marks {
			if !strings.Contains(out, "fwmark "+m+" ") {
				t.Errorf("no rule for %s:\n%s", m, out)
			}
		}
	}
	wantRules("0xca6c", "0xca6d")
	s.must(built(t), "down", files[0])
	wantRules("0xca6d")
	s.must(built(t), "down", files[1])
	s.wantNoPolicy()
}

// TestUpAfterKill kills a daemon, which leaves rules, a filter and a socket. It checks that the next daemon starts despite them and
// removes them when it stops.
func TestUpAfterKill(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	file := o.file("Address = 10.9.0.1/24")
	s.must(built(t), "up", file)
	s.daemonOf(o.iface).Kill()
	testkit.Eventually(t, "the interface goes", func() bool { return !s.exists(o.iface) })
	s.must(built(t), "up", file)
	o.ping("10.9.0.2", "203.0.113.5")
	s.must(built(t), "down", file)
	o.wantClean()
}

// TestService checks that in the foreground SIGHUP applies the changed file to a running tunnel and keeps its session, and that
// SIGTERM does what wg0 down does.
func TestService(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	hooks := filepath.Join(s.dir, "hooks")
	const address = "Address = 10.9.0.1/24\n"
	more := address + "PreDown = ip link show dev %i && echo predown >> " + hooks + "\nPostDown = ip link show dev %i || echo postdown >> " + hooks
	file := o.file(more)
	f := s.front(built(t), "up", "-f", file)
	f.wantLog(t, "msg=ready")
	o.ping("10.9.0.2")
	handshake := s.must("wg", "show", o.iface, "latest-handshakes")

	_, public := newKeys()
	text, _ := os.ReadFile(file)
	s.write(filepath.Base(file), string(text)+"[Peer]\nPublicKey = "+public+"\nAllowedIPs = 10.77.0.0/16\n", 0o600)
	f.Process.Signal(syscall.SIGHUP)
	f.wantLog(t, "msg=reloaded")
	if out := s.must("wg", "show", o.iface, "peers"); !strings.Contains(out, public) {
		t.Errorf("peers:\n%s", out)
	}
	if out := s.must("ip", "route", "show", "dev", o.iface); !strings.Contains(out, "10.77.0.0/16") {
		t.Errorf("routes:\n%s", out)
	}
	if out := s.must("wg", "show", o.iface, "latest-handshakes"); !strings.Contains(out, strings.TrimSpace(handshake)) {
		t.Errorf("the session did not stay: %s, was %s", out, handshake)
	}
	o.ping("10.9.0.2", "203.0.113.5")

	s.write(filepath.Base(file), "[Interface]\nPrivateKey = nonsense\n", 0o600)
	f.Process.Signal(syscall.SIGHUP)
	f.wantLog(t, "the configuration was not reloaded")
	o.ping("10.9.0.2")

	f.Process.Signal(syscall.SIGTERM)
	f.wantExit(t, 0)
	o.wantClean()
	if b, _ := os.ReadFile(hooks); string(b) != "predown\npostdown\n" {
		t.Errorf("hooks: %q\n%s", b, f.log)
	}
}

// TestReloadWithoutRoutes checks the log of a reload that has changed the device but cannot add a route.
func TestReloadWithoutRoutes(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	f := s.front(built(t), "up", "-f", o.file("Address = 10.9.0.1/24"))
	f.wantLog(t, "msg=ready")
	o.file("Address = 10.9.0.1/24\nListenPort = 7777\nTable = nosuchtable")
	f.Process.Signal(syscall.SIGHUP)
	f.wantLog(t, `msg="the configuration was reloaded, but some of its routes are missing" err="ip `)
	if out := s.must("wg", "show", o.iface, "listen-port"); out != "7777\n" || strings.Contains(f.log.String(), "the old one stays in use") {
		t.Errorf("port %s\n%s", out, f.log)
	}
	f.Process.Signal(syscall.SIGTERM)
	f.wantExit(t, 0)
	o.wantClean()
}

// TestEndWhileReloading checks that a reload that is adding rules when the daemon stops leaves no rules.
func TestEndWhileReloading(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	ip, _ := exec.LookPath("ip")
	begun := filepath.Join(s.dir, "begun")
	s.fake("ip", "case \"$*\" in *'rule add not'*) touch "+begun+"; sleep 1;; esac\nexec "+ip+" \"$@\"")
	file := o.file("Address = 10.9.0.1/24")
	text, _ := os.ReadFile(file)
	s.write(filepath.Base(file), strings.Replace(string(text), "0.0.0.0/0, ::/0, ", "", 1), 0o600)
	f := s.front(built(t), "up", "-f", file)
	f.wantLog(t, "msg=ready")
	s.write(filepath.Base(file), string(text), 0o600)
	f.Process.Signal(syscall.SIGHUP)
	testkit.Eventually(t, "the reload adds a rule", func() bool { _, err := os.Stat(begun); return err == nil })
	if err := os.Remove(socketPath(o.iface)); err != nil {
		t.Fatal(err)
	}
	f.wantExit(t, 0)
	s.must("sleep", "1.2") // longer than adding the rule takes
	o.wantClean()
}

// TestHookEnvironment checks that a hook does not see the variables that are only for the daemon, such as the service manager's
// socket.
func TestHookEnvironment(t *testing.T) {
	s := newSpace(t)
	private, _ := newKeys()
	iface := unique("w")
	s.endAfter(iface)
	s.env = append(s.env, "NOTIFY_SOCKET="+filepath.Join(s.dir, "notify"), "WG_PROCESS_FOREGROUND=1", "OF_THE_USER=1")
	env := filepath.Join(s.dir, "env")
	f := s.front(built(t), "up", s.write(iface+".conf", "[Interface]\nPrivateKey = "+private+"\nPostUp = env > "+env+"\n", 0o600))
	f.wantLog(t, "msg=ready")
	b, _ := os.ReadFile(env)
	for _, own := range []string{"NOTIFY_SOCKET=", "WG_PROCESS_FOREGROUND="} {
		if strings.Contains(string(b), own) || !strings.Contains(string(b), "OF_THE_USER=1") {
			t.Errorf("the hook's environment, %s:\n%s", own, b)
		}
	}
	s.daemonOf(iface).Signal(syscall.SIGTERM)
	f.wantExit(t, 0)
}

// TestDeletedFromOutside checks that the daemon removes rules and filter when another program deletes the interface.
func TestDeletedFromOutside(t *testing.T) {
	o := newOffice(t)
	o.laptop.must(built(t), "up", o.file("Address = 10.9.0.1/24"))
	o.laptop.must("ip", "link", "delete", o.iface)
	o.wantClean()
}

// TestSaveConfig checks that wg0 down and SIGTERM write the interface's state to the file and keep comments and names.
func TestSaveConfig(t *testing.T) {
	for _, how := range []string{"down", "SIGTERM"} {
		o := newOffice(t)
		s := o.laptop
		file := o.file("Address = 10.9.0.1/24 # home\nSaveConfig = true")
		s.must(built(t), "up", file)
		_, public := newKeys()
		s.must("ip", "address", "add", "10.10.0.1/32", "dev", o.iface)
		s.must("wg", "set", o.iface, "listen-port", "7777", "peer", public, "allowed-ips", "10.5.0.0/16", "endpoint", "[2001:db8::7]:7", "persistent-keepalive", "21",
			"peer", o.gatewayPublic, "allowed-ips", "10.9.0.0/24,0.0.0.0/0")
		if how == "down" {
			s.must(built(t), "down", file)
		} else {
			s.daemonOf(o.iface).Signal(syscall.SIGTERM)
		}
		o.wantClean()
		want := fmt.Sprintf(`
[Interface] # the laptop
PrivateKey = %s
Address = 10.9.0.1/24, 10.10.0.1/32 # home
SaveConfig = true
ListenPort = 7777
[Peer]
# the gateway
PublicKey = %s
AllowedIPs = 0.0.0.0/0, 10.9.0.0/24
Endpoint = 198.51.100.1:51820

[Peer]
PublicKey = %s
AllowedIPs = 10.5.0.0/16
Endpoint = [2001:db8::7]:7
PersistentKeepalive = 21
`, o.private, o.gatewayPublic, public)
		b, _ := os.ReadFile(file)
		if string(b) != want {
			t.Errorf("%s: saved as\n%s\nwant\n%s", how, b, want)
		}
		if info, err := os.Stat(file); err != nil || info.Mode() != fs.FileMode(0o600) {
			t.Errorf("%s: %v, %v", how, info.Mode(), err)
		}
	}
}

// TestRollback makes each step of wg0 up fail. It checks that wg0 prints one clear sentence, exits with 1 and leaves nothing.
func TestRollback(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	s.env = append(s.env, "WG_ENDPOINT_RESOLUTION_RETRIES=0")
	s.onlyCommands("ip", "sh", "nft", "wg", "ping", "cat", "sleep")
	marks := filepath.Join(s.dir, "postdown")
	s.inside(func() error {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: 4242})
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	})
	for _, c := range []struct {
		name, more, want string
		postDown         bool // whether hooks have started, so that PostDown must run
	}{
		{"PreUp", "PreUp = true\nPreUp = exit 3", `wg0: the hook "exit 3" failed: exit status 3`, true},
		{"the port", "ListenPort = 4242", "wg0: listen on port 4242: udp: port 4242 is taken by another socket; stop that, or listen on another port, or on 0 for any: " +
			"listen udp4 0.0.0.0:4242: bind: address already in use\n", false},
		{"an address", "Address = 10.9.0.1/24, ::1/128", "wg0: ip -6 address add ::1/128 dev " + o.iface + ": ", false},
		{"an address twice", "Address = 10.9.0.1/24\nAddress = 10.9.0.1/24", ":5: Address: line 4 has 10.9.0.1 already; take one of the two out\n", false},
		{"DNS", "Address = 10.9.0.1/24\nDNS = 10.9.0.2", "wg0: cannot set DNS: this host has neither resolvconf nor resolvectl; install", false},
		{"a table", "Table = nosuchtable", "; set Table to a number, or to a name that ip route knows (rt_tables)\n", false},
		{"PostUp", "Address = 10.9.0.1/24, fd09::1/64\nPostUp = echo so far; exit 4", `wg0: the hook "echo so far; exit 4" failed: exit status 4`, true},
	} {
		file := o.file(c.more + "\nPostDown = echo x >> " + marks)
		os.Remove(marks)
		out, code := s.run(built(t), "up", file)
		if code != 1 || !strings.Contains(out, c.want) || strings.Contains(out, o.private) {
			t.Errorf("%s: exit status %d\n%s", c.name, code, out)
		}
		if _, err := os.Stat(marks); (err == nil) != c.postDown {
			t.Errorf("%s: PostDown: %v", c.name, err)
		}
		o.wantClean()
	}
	// The resolver is unreachable: this host has no route to it.
	alone := newSpace(t)
	alone.env = []string{"WG_ENDPOINT_RESOLUTION_RETRIES=1"}
	text, _ := os.ReadFile(o.file("Address = 10.9.0.1/24"))
	file := alone.write(o.iface+".conf", strings.Replace(string(text), "198.51.100.1:", "vpn.example.com:", 1), 0o600)
	out, code := alone.run(built(t), "up", file)
	want := "wg0: " + file + ":9: Endpoint: resolve vpn.example.com: "
	if code != 1 || strings.Count(out, want) != 1 || strings.Count(out, "trying again in 1.0 seconds") != 1 || !strings.Contains(out, "look at the resolver") {
		t.Errorf("no resolver: exit status %d\n%s", code, out)
	}
	alone.wantGone(o.iface)
	// If the user interrupts wg0 up, it undoes its steps.
	file = o.file("Address = 10.9.0.1/24\nPostUp = sleep 60; true")
	f := s.front(built(t), "up", file)
	f.wantLog(t, "[#] sleep 60; true")
	f.Process.Signal(syscall.SIGINT)
	f.wantExit(t, 1)
	f.wantLog(t, "wg0: stopped by a signal")
	o.wantClean()
	// Without a fault, the interface comes up.
	file = o.file("Address = 10.9.0.1/24")
	s.must(built(t), "up", file)
	s.must(built(t), "down", file)
	o.wantClean()
}

// TestFaults checks that each mistake of a new user prints one clear sentence without a key, and exits with an error status.
func TestFaults(t *testing.T) {
	path := built(t)
	dir := t.TempDir()
	private, public := newKeys()
	good := filepath.Join(dir, "good.conf")
	bad := filepath.Join(dir, "bad.conf")
	iface := unique("w")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(good, "[Interface]\nPrivateKey = "+private+"\n")
	write(bad, "[Interface]\nPrivateKey = "+private[1:]+"\nPrivatKey = "+private+"\nMTU = 10\n"+private+"\n[Peer]\nEndpoint = x\nPublicKey = "+public[:40]+"\n")
	unknown := filepath.Join(dir, "unknown.conf")
	write(unknown, "[Interface]\nPrivatKey = "+private+"\n[Peer]\nAllowedIPs = 10.0.0.0/8\n")
	for _, c := range []struct {
		name string
		args []string
		env  []string
		code int
		want []string // one string per line
	}{
		{"nothing", nil, nil, 2, nil},
		{"too much", []string{"a", "b"}, nil, 2, nil},
		{"an offload", []string{iface}, []string{"WG0_OFFLOAD=off"}, 1, []string{`wg0: WG0_OFFLOAD is "off": want 0 or 1`}},
		{"no queue", []string{"up", good}, []string{"WG0_QUEUES=0"}, 1, []string{`wg0: WG0_QUEUES is "0": want a number from 1 to 256`}},
		{"many queues", []string{iface}, []string{"WG0_QUEUES=257"}, 1, []string{`wg0: WG0_QUEUES is "257": want a number from 1 to 256`}},
		{"queues in words", []string{iface}, []string{"WG0_QUEUES=two"}, 1, []string{`wg0: WG0_QUEUES is "two": want a number from 1 to 256`}},
		{"no descriptor", []string{iface}, []string{"WG_TUN_FD=x"}, 1, []string{`wg0: WG_TUN_FD is "x": want the number of an open descriptor`}},
		{"a closed descriptor", []string{"-f", iface}, []string{"WG_UAPI_FD=77"}, 1, []string{"wg0: WG_UAPI_FD: descriptor 77 is not open; pass it to wg0 from the program that starts wg0"}},
		{"a long name", []string{"-f", "a-name-of-16-chr"}, nil, 1, []string{`wg0: "a-name-of-16-chr" is not an interface name: want 1 to 15 letters and digits, as in wg0`}},
		{"a path", []string{"-f", "a/b"}, nil, 1, []string{`wg0: "a/b" is a file, not an interface; to bring up its interface, run: wg0 up a/b`}},
		{"a file without up", []string{iface + ".conf"}, nil, 1, []string{`wg0: "` + iface + `.conf" is a file, not an interface; to bring up its interface, run: wg0 up ` + iface + ".conf"}},
		{"no name", []string{"-f", "a b"}, nil, 1, []string{`wg0: "a b" is not an interface name: want only letters, digits and _=+.- as in wg0`}},
		{"no file", []string{"up", dir + "/none.conf"}, nil, 1, []string{"wg0: " + dir + "/none.conf does not exist; write it as described in wg-quick(8)"}},
		{"no file of an interface", []string{"up", iface}, nil, 1, []string{"wg0: /etc/wireguard/" + iface + ".conf does not exist; write it as described in wg-quick(8)"}},
		{"no interface's file", []string{"up", dir}, nil, 1, []string{`wg0: "` + dir + `" does not name an interface: want a name of 1 to 15 letters and digits, or a file named after it, as in wg0.conf`}},
		{"a bad file", []string{"up", bad}, nil, 1, []string{
			"wg0: " + bad + ":2: PrivateKey: want 32 bytes in base64: 44 characters that end in =, as wg genkey prints them",
			"wg0: " + bad + `:4: MTU: "10": want bytes from 68 to 65535; 1420 is usual, and 1280 the least for IPv6`,
			"wg0: " + bad + `:7: Endpoint: "x": the port is missing; want host:port, as 192.0.2.1:51820`,
			"wg0: " + bad + ":8: PublicKey: want 32 bytes in base64: 44 characters that end in =, as wg genkey prints them",
		}},
		{"an unknown key", []string{"up", unknown}, nil, 1, []string{
			"wg0: " + unknown + ":3: PublicKey: this peer has none; every [Peer] needs the key that wg pubkey prints at the other end",
			"wg0: " + unknown + ":2: PrivatKey: not a key of [Interface]; PrivateKey is meant?",
		}},
		{"down of what is not up", []string{"down", good}, nil, 1, []string{"wg0: good is not up: no daemon answers at /var/run/wireguard/good.sock"}},
		{"down of nothing", []string{"down", dir + "/none.conf"}, nil, 1, []string{"wg0: " + dir + "/none.conf does not exist; give the file that brought up none, or the interface's name"}},
	} {
		cmd := exec.Command(path, c.args...)
		cmd.Env = append(os.Environ(), c.env...)
		out, err := cmd.CombinedOutput()
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if err == nil || cmd.ProcessState.ExitCode() != c.code || c.want != nil && !slices.Equal(lines, c.want) {
			t.Errorf("%s: exit status %d\n%s", c.name, cmd.ProcessState.ExitCode(), out)
		}
		if strings.Contains(string(out), private[1:20]) || c.code == 2 && !strings.Contains(string(out), "usage: ") {
			t.Errorf("%s: it said\n%s", c.name, out)
		}
	}
	for _, arg := range []string{"--help", "-h", "--version"} {
		if out, err := exec.Command(path, arg).Output(); err != nil || len(out) == 0 {
			t.Errorf("%s: %s, %v", arg, out, err)
		}
	}
}

// TestNoPermission checks the errors for a user who is not root, in the foreground and in the background.
func TestNoPermission(t *testing.T) {
	path := built(t)
	private, _ := newKeys()
	iface := unique("w")
	file := filepath.Join(buildDir, iface+".conf") // all users may read the file and its folder
	if err := os.WriteFile(file, []byte("[Interface]\nPrivateKey = "+private+"\nPreUp = echo never\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(buildDir, iface+"d") // has the mode of /etc/wireguard
	hidden, unreadable := filepath.Join(closed, iface+".conf"), filepath.Join(buildDir, iface+"x.conf")
	err := os.Mkdir(closed, 0o700)
	for _, f := range []string{hidden, unreadable} {
		err = errors.Join(err, os.WriteFile(f, []byte("[Interface]\n"), 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 { // make this user's own files unreadable to it
		os.Chmod(closed, 0)
		os.Chmod(unreadable, 0)
		t.Cleanup(func() { os.Chmod(closed, 0o700) })
	}
	for _, c := range []struct{ args, want string }{
		{"up " + hidden, "wg0: this user may not read " + hidden + "; run wg0 as root\n"},
		{"down " + hidden, "wg0: this user may not read " + hidden + "; run wg0 as root\n"},
		{"up " + unreadable, "wg0: this user may not read " + unreadable + "; run wg0 as root\n"},
		{"down " + unreadable, "wg0: this user may not read " + unreadable + "; run wg0 as root\n"},
		// Depending on the mode of the device file, opening it fails or the kernel refuses.
		{"-f " + iface, "run as root"},
		{iface, "run as root"},
		{"up " + file, "wg0: making an interface needs the capability CAP_NET_ADMIN; run wg0 as root"},
	} {
		cmd := exec.Command(path, strings.Fields(c.args)...)
		cmd.Dir = "/"
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), c.want) || strings.Contains(string(out), "never") || strings.Contains(string(out), private) {
			t.Errorf("%s: exit status %d\n%s", c.args, cmd.ProcessState.ExitCode(), out)
		}
	}
}

// TestNoTUN checks the error on a system without /dev/net/tun.
func TestNoTUN(t *testing.T) {
	s := newSpace(t)
	needs(t, "unshare", "mount")
	iface := unique("w")
	for _, front := range []string{"-f", ""} {
		out, code := s.run("unshare", "-m", "sh", "-c", "mount -t tmpfs none /dev/net && exec "+built(t)+" "+front+" "+iface)
		if code != 1 || !strings.Contains(out, "load the module (modprobe tun)") || strings.Count(out, "\n") != 1 {
			t.Errorf("exit status %d\n%s", code, out)
		}
	}
}

// TestSecondSignal checks that a second signal ends the daemon while a hook hangs.
func TestSecondSignal(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	f := s.front(built(t), "up", "-f", o.file("Address = 10.9.0.1/24\nPreDown = echo stuck $$.; exec sleep 77"))
	f.wantLog(t, "msg=ready")
	f.Process.Signal(syscall.SIGTERM)
	f.wantLog(t, "\nstuck ")
	var pid int
	testkit.Eventually(t, "the hook tells its number", func() bool {
		_, after, _ := strings.Cut(f.log.String(), "\nstuck ")
		_, err := fmt.Sscanf(after, "%d.", &pid)
		return err == nil
	})
	defer syscall.Kill(pid, syscall.SIGKILL)
	f.Process.Signal(syscall.SIGTERM)
	testkit.Eventually(t, "the daemon ends", func() bool { return len(daemonsOf(o.iface)) == 0 })
	os.Remove(socketPath(o.iface))
}

// TestMovedInterface moves an interface into an empty namespace. It checks that the tunnel still works through the daemon's sockets
// in the first namespace, and that the daemon stops when the interface is deleted there.
func TestMovedInterface(t *testing.T) {
	o := newOffice(t)
	s, cell := o.laptop, newSpace(t)
	f := s.front(built(t), "-f", o.iface)
	f.wantLog(t, "msg=ready")
	s.must("wg", "set", o.iface, "private-key", s.write("key", o.private, 0o600), "peer", o.gatewayPublic, "endpoint", "198.51.100.1:51820",
		"allowed-ips", "0.0.0.0/0")
	s.must("ip", "link", "set", o.iface, "netns", cell.name)
	cell.must("ip", "address", "add", "10.9.0.1/24", "dev", o.iface)
	cell.must("ip", "link", "set", o.iface, "up")
	cell.must("ip", "route", "add", "default", "dev", o.iface)
	cell.must("ping", "-n", "-c", "1", "-W", "10", "10.9.0.2")
	cell.must("ping", "-n", "-c", "1", "-W", "10", "203.0.113.5")
	if out := s.must("wg", "show", o.iface, "latest-handshakes"); strings.HasSuffix(out, "\t0\n") {
		t.Errorf("no handshake: %s", out)
	}
	cell.must("ip", "link", "delete", o.iface)
	f.wantExit(t, 0)
	o.wantClean()
}
