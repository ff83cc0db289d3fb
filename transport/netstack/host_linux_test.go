package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hostFiles has sets of files for /etc. The system's resolver follows such files, and a Net must ignore them. The set "hostile"
// contradicts everything that the Net must do.
var hostFiles = map[string]map[string]string{
	"hostile": {
		"hosts": "10.66.66.66 four.test both.test nowhere.test six.test\n10.8.0.2 evil.test\n",
		"resolv.conf": "nameserver 10.66.0.1\nnameserver 10.66.0.2\nnameserver 10.66.0.3\nsearch corp.test evil.test\n" +
			"options ndots:15 attempts:1 timeout:1 use-vc single-request trust-ad edns0\n",
		"nsswitch.conf": "hosts: files\nservices: files\n",
		"services":      "http 6666/tcp\nhttps 6666/tcp\ndomain 6666/udp\n",
		"gai.conf":      "precedence ::/0 1\n",
		"host.conf":     "multi on\n",
	},
	"nothing": {},
	"broken": {
		"hosts":         strings.Repeat("\x00\xff four.test ", 10_000),
		"resolv.conf":   "nameserver\nnameserver x\noptions ndots:x timeout:-1 attempts:0\nsearch " + strings.Repeat("a.", 1000) + "\n",
		"nsswitch.conf": "hosts: [NOTFOUND=return] nonsense [!SUCCESS=return]\n",
		"services":      "\x00",
	},
}

const hostCase = "NETSTACK_TEST_HOST"

// TestHost runs itself again in mount and network namespaces where /etc contains only one set of hostFiles, and looks up names
// there.
func TestHost(t *testing.T) {
	if name, child := os.LookupEnv(hostCase); child {
		makeEtc(t, hostFiles[name])
		if name == "hostile" {
			obeysHost(t)
		}
		ignoresHost(t)
		return
	}
	if testing.Short() {
		t.Skip("this test starts processes in namespaces, so it does not run with -short")
	}
	for name := range hostFiles {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestHost$", "-test.v")
			cmd.Env = append(os.Environ(), hostCase+"="+name, "LOCALDOMAIN=evil.test", "RES_OPTIONS=ndots:15", "GODEBUG=netdns=cgo")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
			if os.Geteuid() != 0 {
				cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
				cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
			}
			out, err := cmd.CombinedOutput()
			switch {
			case errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL):
				t.Skip("needs permission to make namespaces: ", err)
			case err != nil || !strings.Contains(string(out), "--- PASS: TestHost"):
				t.Errorf("the test failed in the namespaces: %v\n%s", err, out)
			}
		})
	}
}

// makeEtc gives this process an /etc that contains only the given files.
func makeEtc(t *testing.T, files map[string]string) {
	t.Helper()
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal("make the mounts private: ", err)
	}
	if err := syscall.Mount("etc", "/etc", "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal("mount an empty /etc: ", err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join("/etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// obeysHost checks that package net follows the files of the host. Otherwise, ignoresHost would prove nothing. obeysHost also
// checks what the comment of Net.Resolver says about these files.
func obeysHost(t *testing.T) {
	n, s := namesNet(t, Config{}, honest)
	for what, r := range map[string]*net.Resolver{"package net": {PreferGo: true}, "Net.Resolver": n.Resolver()} {
		if got, err := r.LookupHost(t.Context(), "four.test"); err != nil || !slices.Equal(got, []string{"10.66.66.66"}) {
			t.Errorf("%s does not read the hosts file: %v, %v", what, got, err)
		}
		if got, err := r.LookupPort(t.Context(), "tcp", "http"); err != nil || got != 6666 {
			t.Errorf("%s does not read the file services: %d, %v", what, got, err)
		}
		if got, err := r.LookupHost(t.Context(), "two.test"); err == nil {
			t.Errorf("%s does not read nsswitch.conf: %v", what, got)
		}
	}
	_, err := n.Resolver().LookupTXT(t.Context(), "nowhere") // package net does not look for TXT records in the hosts file
	var dns *net.DNSError
	if !errors.As(err, &dns) || dns.Server != "10.66.0.1:53" {
		t.Errorf("the error is %v, want one that names the host's server", err)
	}
	var asked []string
	for _, q := range s[0].questions() {
		asked = append(asked, q.name)
	}
	if got := strings.Join(asked, " "); got != "nowhere.corp.test. nowhere.evil.test. nowhere." {
		t.Errorf("Net.Resolver asked for %q, want the host's search list", got)
	}
}

// ignoresHost checks that the Net's own methods do not depend on any file of the host.
func ignoresHost(t *testing.T) {
	n, s := namesNet(t, Config{Addresses: []netip.Addr{a4, a6}}, honest)
	ctx := t.Context()
	for host, want := range map[string]string{
		"four.test": "10.8.0.2", "both.test": "10.8.0.2 fd08::2", "two.test": "10.8.0.2 10.8.0.9", "six.test": "fd08::2",
		"localhost": "127.0.0.1 ::1", "host.corp.test": "10.8.0.7",
	} {
		got, err := n.LookupHost(ctx, host)
		if slices.Sort(got); err != nil || strings.Join(got, " ") != want {
			t.Errorf("lookup of %s: %v, %v; want %s", host, got, err, want)
		}
	}
	if got, err := n.LookupAddr(ctx, "10.8.0.2"); err != nil || !slices.Equal(got, []string{"four.test.", "both.test."}) {
		t.Errorf("LookupAddr returned %v, %v; want four.test. and both.test.", got, err)
	}
	if got, err := n.LookupPort(ctx, "tcp", "http"); err != nil || got != 80 {
		t.Errorf("LookupPort returned %d, %v; want 80", got, err)
	}
	s[0].questions()
	for _, host := range []string{"nowhere.test", "host", "evil.test"} {
		_, err := n.LookupNetIP(ctx, "ip4", host)
		var dns *net.DNSError
		if !errors.As(err, &dns) || !dns.IsNotFound || dns.Server != "10.8.0.2:53" || dns.Name != host {
			t.Errorf("lookup of %s: the error is %#v, want \"not found\" from the tunnel's server", host, err)
		}
		if asked := s[0].questions(); len(asked) != 1 || asked[0].name != host+"." {
			t.Errorf("lookup of %s: the server was asked for %v, want only that name", host, asked)
		}
	}
	s[0].become(silent)
	brief, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	_, err := n.LookupHost(brief, "other.test")
	var dns *net.DNSError
	if !errors.As(err, &dns) || !dns.IsTimeout || dns.Server != "10.8.0.2:53" {
		t.Errorf("lookup of other.test: the error is %#v, want a timeout of the tunnel's server", err)
	}
	if got := s[0].tcp.Load(); got != 0 {
		t.Errorf("the Net asked %d questions over TCP, want 0: it must ignore the options of resolv.conf", got)
	}

	dialed, b := pair(t)
	serveDNS(t, b)
	echo(t, b, ":80")
	c, err := dialed.Dial("tcp", "four.test:http")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.RemoteAddr().String(); got != "10.8.0.2:80" {
		t.Errorf("dialed %s, want 10.8.0.2:80", got)
	}
	roundTrip(t, c)
}
