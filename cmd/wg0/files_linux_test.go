package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestIPv6Off checks that wg0 up warns and goes on with IPv4 if IPv6 is off, and that wg0 up still fails with a file that has
// only IPv6 addresses.
func TestIPv6Off(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	s.must("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
	file := o.file("Address = 10.9.0.1/24, fd09::1/64")
	if out := s.must(built(t), "up", file); strings.Count(out, "wg0: warning: IPv6 is off on this host, so "+o.iface+" gets no IPv6") != 1 {
		t.Errorf("wg0 up does not warn exactly once that IPv6 is off:\n%s", out)
	}
	o.ping("10.9.0.2", "203.0.113.5")
	s.must(built(t), "down", file)
	o.wantClean()
	out, code := s.run(built(t), "up", o.file("Address = fd09::1/64"))
	if code != 1 || !strings.Contains(out, "wg0: ip -6 address add fd09::1/64") {
		t.Errorf("with only IPv6 addresses, wg0 up exits with status %d, want 1 and the command that failed:\n%s", code, out)
	}
	o.wantClean()
}

// TestWritableHooks checks that wg0 refuses hooks of a file that every user can change, names the chmod that fixes it, and runs
// none of them. Without hooks wg0 accepts the file.
func TestWritableHooks(t *testing.T) {
	o := newOffice(t)
	s := o.laptop
	mark := filepath.Join(s.dir, "ran")
	for _, c := range []struct {
		more string
		open func(file string) string // makes something writable and returns its name
		want bool                     // whether wg0 refuses
	}{
		{"PostUp = touch " + mark, func(file string) string { os.Chmod(file, 0o666); return file }, true},
		{"PreDown = touch " + mark, func(file string) string { os.Chmod(s.dir, 0o777); return s.dir }, true},
		{"PostUp =", func(file string) string { os.Chmod(file, 0o666); return file }, false},
	} {
		file := o.file("Address = 10.9.0.1/24\n" + c.more)
		name := c.open(file)
		out, code := s.run(built(t), "up", file)
		if refused := code == 1 && strings.Contains(out, "; run: chmod o-w "+name+"\n"); refused != c.want {
			t.Errorf("file with %s, while all users can write %s: exit status %d, want a refusal only if the file has hooks:\n%s", c.more, name, code, out)
		}
		if code == 0 {
			s.must(built(t), "down", file)
		}
		os.Chmod(s.dir, 0o755)
		os.Remove(file)
		o.wantClean()
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("wg0 ran a hook of a file that it must refuse")
	}
}
