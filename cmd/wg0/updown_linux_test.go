package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-86b749af/wireguard/conf"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

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
					t.Errorf("the interface lacks %s:\n%s", want, out)
				}
			}
			for family, want := range map[string]string{"-4": "10.11.0.0/16", "-6": "fd09::/64"} {
				if out := s.must("ip", family, "rule", "show"); !strings.Contains(out, "not from all fwmark 0xca6c lookup 51820") ||
					strings.Count(out, "from all lookup main suppress_prefixlength 0") != 1 {
					t.Errorf("the policy rules must include that for the mark, and exactly one for the table main:\n%s", out)
				}
				if out := s.must("ip", family, "route", "show", "dev", o.iface); !strings.Contains(out, want) || strings.Contains(out, "10.9.0.128/25") {
					t.Errorf("the interface lacks a route, or has one that another route contains:\n%s", out)
				}
				if out := s.must("ip", family, "route", "show", "table", "51820"); !strings.HasPrefix(out, "default dev "+o.iface) {
					t.Errorf("table 51820 does not begin with a default route into the interface:\n%s", out)
				}
			}
			if out := s.must("wg", "show", o.iface, "fwmark"); out != "0xca6c\n" {
				t.Errorf("the firewall mark is %s, want 0xca6c", out)
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
				t.Errorf("the hooks wrote %q, want one line per hook, in order", b)
			}
			want := fmt.Sprintf("resolvconf -a %s -m 0 -x\nnameserver 10.9.0.2\nsearch corp.example\nresolvconf -d %[1]s -f\n", o.iface)
			if b, _ := os.ReadFile(resolvconf); !strings.HasPrefix(string(b), want) {
				t.Errorf("resolvconf got %q, want the DNS servers first and then their removal", b)
			}
		})
	}
}

// TestQuickPort checks that wg-quick removes the interface again when the interface's port is in use. wg-quick sets the port
// before it brings the interface up.
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
		t.Errorf("wg-quick with a port in use: exit status %d, want a failure with Address already in use:\n%s", code, out)
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
		t.Errorf("resolvectl got %q, want the DNS servers, the domains and then revert", b)
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
			t.Errorf("%s lists fewer than 3 rules of wg0:\n%s", command, out)
		}
	}
	s.must(built(t), "down", file)
	for _, command := range []string{"iptables-save", "ip6tables-save"} {
		if out := s.must(command); strings.Contains(out, "wg-quick") {
			t.Errorf("%s still lists rules of wg0 after wg0 down:\n%s", command, out)
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
		t.Errorf("wg0 up does not warn that nft and iptables-restore are missing:\n%s", out)
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
			t.Errorf("the interface does not have MTU 1320: %s", out)
		}
		out, _ := s.run("ip", "route", "show", "table", "777")
		if !strings.HasPrefix(out, want) || want == "" && strings.Contains(out, o.iface) {
			t.Errorf("Table = %s: table 777 has the wrong routes: %s", table, out)
		}
		if out := s.must("ip", "rule", "show"); strings.Contains(out, "fwmark") {
			t.Errorf("Table = %s: wg0 up added policy rules, want none:\n%s", table, out)
		}
		s.must(built(t), "down", file)
		o.wantClean()
	}
}

// TestTwoDefaults checks that a second interface with a default route uses another table, and that the rule that both interfaces
// need stays until both are down.
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
			t.Errorf("there must be one rule per mark, and one for the table main:\n%s", out)
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
	testkit.Eventually(t, "the interface disappears", func() bool { return !s.exists(o.iface) })
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
		t.Errorf("the reload did not add the new peer:\n%s", out)
	}
	if out := s.must("ip", "route", "show", "dev", o.iface); !strings.Contains(out, "10.77.0.0/16") {
		t.Errorf("the reload did not add the route of the new peer:\n%s", out)
	}
	if out := s.must("wg", "show", o.iface, "latest-handshakes"); !strings.Contains(out, strings.TrimSpace(handshake)) {
		t.Errorf("the reload ended the session: the latest handshake is now %s, and was %s", out, handshake)
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
		t.Errorf("the hooks wrote %q, want predown and postdown; the log is\n%s", b, f.log)
	}
}

// TestReloadWithoutRoutes checks the log of a reload that has changed the device but cannot add a route.
func TestReloadWithoutRoutes(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	ip, _ := exec.LookPath("ip")
	s.fake("ip", "case \"$*\" in *'route add 10.77.'*) exit 1;; esac\nexec "+ip+" \"$@\"")
	file := o.file("Address = 10.9.0.1/24")
	f := s.front(built(t), "up", "-f", file)
	f.wantLog(t, "msg=ready")
	text, _ := os.ReadFile(o.file("Address = 10.9.0.1/24\nListenPort = 7777"))
	s.write(filepath.Base(file), strings.Replace(string(text), "AllowedIPs = ", "AllowedIPs = 10.77.0.0/16, ", 1), 0o600)
	f.Process.Signal(syscall.SIGHUP)
	f.wantLog(t, `msg="the configuration was reloaded, but some of its routes are missing" err="ip `)
	if out := s.must("wg", "show", o.iface, "listen-port"); out != "7777\n" || strings.Contains(f.log.String(), "the old one stays in use") {
		t.Errorf("after the reload, the port is %s, want 7777, and no word of an old configuration that stays in use in the log:\n%s", out, f.log)
	}
	f.Process.Signal(syscall.SIGTERM)
	f.wantExit(t, 0)
	o.wantClean()
}

// TestReloadKeepsWhatUpSet checks that a reload leaves the firewall mark, the DNS settings and the hooks as they are, as its log says,
// and that the end of the daemon then undoes what its start has done.
func TestReloadKeepsWhatUpSet(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	called, hooked := filepath.Join(s.dir, "resolvconf"), filepath.Join(s.dir, "hooked")
	s.fake("resolvconf", "echo $1 >> "+called)
	file := o.file("Address = 10.9.0.1/24\nDNS = 10.9.0.2\nPostDown = echo old >> " + hooked)
	f := s.front(built(t), "up", "-f", file)
	f.wantLog(t, "msg=ready")
	mark := s.must("wg", "show", o.iface, "fwmark")
	for _, fwmark := range []string{"0x55", "0x66"} {
		o.file("Address = 10.9.0.1/24\nPostDown = echo new >> " + hooked + "\nFwMark = " + fwmark)
		f.Process.Signal(syscall.SIGHUP)
		f.wantLog(t, "leave FwMark as it is until the tunnel is opened anew")
		f.wantLog(t, "msg=reloaded")
		if now := s.must("wg", "show", o.iface, "fwmark"); now != mark {
			t.Errorf("after a reload with FwMark = %s the mark is %s, want %s, which the rules have", fwmark, now, mark)
		}
	}
	o.ping("10.9.0.2", "203.0.113.5")
	f.Process.Signal(syscall.SIGTERM)
	f.wantExit(t, 0)
	o.wantClean()
	if b, _ := os.ReadFile(called); string(b) != "-a\n-d\n" {
		t.Errorf("resolvconf was called with %q, want -a and then -d", b)
	}
	if b, _ := os.ReadFile(hooked); string(b) != "old\n" {
		t.Errorf("the hooks wrote %q, want old, the PostDown of the start", b)
	}
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
			t.Errorf("the hook's environment has %s, or lacks OF_THE_USER=1:\n%s", own, b)
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

// TestSaveConfig checks that wg0 down and SIGTERM write the interface's state to the file and keep the comments and the host
// names of endpoints.
func TestSaveConfig(t *testing.T) {
	for _, how := range []string{"down", "SIGTERM"} {
		o := newOffice(t)
		s := o.laptop
		file := o.file("Address = 10.9.0.1/24 # home\nSaveConfig = true")
		target := filepath.Join(s.dir, "shared", "the-laptop")
		if err := errors.Join(os.Mkdir(filepath.Dir(target), 0o755), os.Rename(file, target), os.Symlink("shared/the-laptop", file)); err != nil {
			t.Fatal(err)
		}
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
		if to, err := os.Readlink(file); err != nil || to != "shared/the-laptop" {
			t.Errorf("%s: the link to the file is now %q, %v", how, to, err)
		}
		b, _ := os.ReadFile(target)
		if string(b) != want {
			t.Errorf("%s: saved as\n%s\nwant\n%s", how, b, want)
		}
		if info, err := os.Stat(file); err != nil || info.Mode() != fs.FileMode(0o600) {
			t.Errorf("%s: the saved file has mode %v, %v, want 0600", how, info.Mode(), err)
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
	testkit.Eventually(t, "the hook prints its process ID", func() bool {
		_, after, _ := strings.Cut(f.log.String(), "\nstuck ")
		_, err := fmt.Sscanf(after, "%d.", &pid)
		return err == nil
	})
	defer syscall.Kill(pid, syscall.SIGKILL)
	f.Process.Signal(syscall.SIGTERM)
	testkit.Eventually(t, "the daemon ends", func() bool { return len(daemonsOf(o.iface)) == 0 })
	os.Remove(socketPath(o.iface))
}

// TestMovedInterface moves an interface into an empty namespace. It checks that the tunnel still works through the daemon's
// sockets in the first namespace, and that the daemon stops when the interface is deleted in its new namespace.
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
		t.Errorf("the moved interface has made no handshake: %s", out)
	}
	cell.must("ip", "link", "delete", o.iface)
	f.wantExit(t, 0)
	o.wantClean()
}

// TestMergeEndpoints checks that merge, which SaveConfig uses, keeps all Endpoint lines of a peer that has several.
func TestMergeEndpoints(t *testing.T) {
	const text = "[Interface]\n[Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nEndpoint = 192.0.2.1:1\nEndpoint = 192.0.2.2:2\n"
	f, err := conf.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	now, err := conf.Parse([]byte(strings.Replace(text, "Endpoint = 192.0.2.1:1\n", "", 1)))
	if err != nil {
		t.Fatal(err)
	}
	merge(f, now)
	if saved, err := f.Text(); err != nil || string(saved) != text {
		t.Errorf("merge changed the file to\n%s%v, want\n%s", saved, err, text)
	}
}
