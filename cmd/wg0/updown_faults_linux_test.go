package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

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
		{"the port", "ListenPort = 4242", "wg0: listen on port 4242: udp: port 4242 is taken by another socket; close that socket, or listen on another port, or on 0 for any: " +
			"listen udp4 0.0.0.0:4242: bind: address already in use\n", false},
		{"an address", "Address = 10.9.0.1/24, ::1/128", "wg0: ip -6 address add ::1/128 dev " + o.iface + ": ", false},
		{"an address twice", "Address = 10.9.0.1/24\nAddress = 10.9.0.1/24", ":5: Address: line 4 has 10.9.0.1 already; remove one of the two\n", false},
		{"DNS", "Address = 10.9.0.1/24\nDNS = 10.9.0.2", "wg0: cannot set DNS: this host has neither resolvconf nor resolvectl; install", false},
		{"a table", "Table = nosuchtable", "; set Table to a number, or to a name that ip route knows (rt_tables)\n", false},
		{"PostUp", "Address = 10.9.0.1/24, fd09::1/64\nPostUp = echo so far; exit 4", `wg0: the hook "echo so far; exit 4" failed: exit status 4`, true},
	} {
		file := o.file(c.more + "\nPostDown = echo x >> " + marks)
		os.Remove(marks)
		out, code := s.run(built(t), "up", file)
		if code != 1 || !strings.Contains(out, c.want) || strings.Contains(out, o.private) {
			t.Errorf("%s: exit status %d, want 1 and the error of the table, without a key:\n%s", c.name, code, out)
		}
		if _, err := os.Stat(marks); (err == nil) != c.postDown {
			t.Errorf("%s: PostDown must run only if another hook has started; its file: %v", c.name, err)
		}
		o.wantClean()
	}
	// In a namespace without routes, the resolver is unreachable.
	alone := newSpace(t)
	alone.env = []string{"WG_ENDPOINT_RESOLUTION_RETRIES=1"}
	text, _ := os.ReadFile(o.file("Address = 10.9.0.1/24"))
	file := alone.write(o.iface+".conf", strings.Replace(string(text), "198.51.100.1:", "vpn.example.com:", 1), 0o600)
	out, code := alone.run(built(t), "up", file)
	want := "wg0: " + file + ":9: Endpoint: resolve vpn.example.com: "
	if code != 1 || strings.Count(out, want) != 1 || strings.Count(out, "trying again in 1.0 seconds") != 1 || !strings.Contains(out, "check the resolver") {
		t.Errorf("without a resolver: exit status %d, want 1 and one error after one retry:\n%s", code, out)
	}
	alone.wantGone(o.iface)
	// If the user interrupts wg0 up, wg0 undoes the steps that it has done.
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
			"wg0: " + bad + `:4: MTU: "10": want bytes from 68 to 65535; 1420 is usual, and IPv6 needs at least 1280`,
			"wg0: " + bad + `:7: Endpoint: "x": the port is missing; want host:port, such as 192.0.2.1:51820`,
			"wg0: " + bad + ":8: PublicKey: want 32 bytes in base64: 44 characters that end in =, as wg genkey prints them",
		}},
		{"an unknown key", []string{"up", unknown}, nil, 1, []string{
			"wg0: " + unknown + ":3: PublicKey: this peer has no key; give the key that wg pubkey prints at the other end",
			"wg0: " + unknown + ":2: PrivatKey: not a key of [Interface]; write PrivateKey if that is meant",
		}},
		{"down of what is not up", []string{"down", good}, nil, 1, []string{"wg0: good is not up: no daemon answers at /var/run/wireguard/good.sock"}},
		{"down of nothing", []string{"down", dir + "/none.conf"}, nil, 1, []string{"wg0: " + dir + "/none.conf does not exist; give the file that brought up none, or the interface's name"}},
	} {
		cmd := exec.Command(path, c.args...)
		cmd.Env = append(os.Environ(), c.env...)
		out, err := cmd.CombinedOutput()
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if err == nil || cmd.ProcessState.ExitCode() != c.code || c.want != nil && !slices.Equal(lines, c.want) {
			t.Errorf("%s: exit status %d, want the status and the lines of the table:\n%s", c.name, cmd.ProcessState.ExitCode(), out)
		}
		if strings.Contains(string(out), private[1:20]) || c.code == 2 && !strings.Contains(string(out), "usage: ") {
			t.Errorf("%s: the output contains a key, or lacks the usage:\n%s", c.name, out)
		}
	}
	for _, arg := range []string{"--help", "-h", "--version"} {
		if out, err := exec.Command(path, arg).Output(); err != nil || len(out) == 0 {
			t.Errorf("wg0 %s prints %s, %v, want a text and no error", arg, out, err)
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
			t.Errorf("wg0 %s: exit status %d, want 1 and the error of the table, without a key and without running the hook:\n%s", c.args, cmd.ProcessState.ExitCode(), out)
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
			t.Errorf("without /dev/net/tun: exit status %d, want 1 and one line that names modprobe tun:\n%s", code, out)
		}
	}
}
