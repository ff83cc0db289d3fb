//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	landlock "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// confineFolder is the name of an environment variable. If its value is a folder, this test binary confines itself to the
// folder, and prints what it still can do.
const confineFolder = "WGPROXY_TEST_CONFINE"

func init() {
	if folder := os.Getenv(confineFolder); folder != "" {
		runConfined(folder)
		os.Exit(0)
	}
}

func needLandlock(t *testing.T) {
	t.Helper()
	if version, err := landlock.LandlockGetABIVersion(); err != nil || version < 1 {
		t.Skip("this kernel has no Landlock")
	}
}

// runConfined is what the child process of TestConfine runs. It starts four threads, confines the process, and prints what each
// of the threads can still do.
func runConfined(folder string) {
	threads, confined, done := 4, make(chan bool), make(chan string)
	for range threads {
		ready := make(chan bool)
		go func() {
			runtime.LockOSThread()
			ready <- true
			<-confined
			done <- confinedTries(folder)
		}()
		<-ready
	}
	if readable, err := confine([]string{folder}); err != nil || !slices.Contains(readable, folder) {
		fmt.Println("confine:", readable, err)
	}
	close(confined)
	for range threads {
		fmt.Println(<-done)
	}
}

// confinedTries returns which operations succeed inside and outside a folder.
func confinedTries(folder string) string {
	var can []string
	try := func(what string, err error) {
		if err == nil {
			can = append(can, what)
		} else if !os.IsPermission(err) {
			can = append(can, fmt.Sprintf("%s (%v)", what, err))
		}
	}
	_, err := os.ReadFile(filepath.Join(folder, "inside"))
	try("read inside", err)
	_, err = os.ReadFile("/etc/hosts")
	try("read /etc/hosts", err)
	_, err = os.ReadFile(filepath.Join(filepath.Dir(folder), "outside"))
	try("read outside", err)
	_, err = os.ReadDir(folder)
	try("list", err)
	try("write", os.WriteFile(filepath.Join(folder, "inside"), nil, 0o600))
	try("create", os.WriteFile(filepath.Join(folder, "new"), nil, 0o600))
	try("remove", os.Remove(filepath.Join(folder, "inside")))
	try("run", exec.Command("/bin/true").Run())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		l.Close()
	}
	try("listen", err)
	return strings.Join(can, ", ")
}

// TestConfine checks that a process that has confined itself can read files in its folder and in those of resolvers, and can
// listen, and that it cannot open files elsewhere, list folders, change files or start programs, on any thread.
func TestConfine(t *testing.T) {
	needLandlock(t)
	outside := t.TempDir()
	folder := filepath.Join(outside, "folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(outside, "outside"), filepath.Join(folder, "inside")} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), confineFolder+"="+folder)
	out, err := c.CombinedOutput()
	if want := strings.Repeat("read inside, read /etc/hosts, listen\n", 4); err != nil || string(out) != want {
		t.Errorf("a confined process can\n%swant\n%s%v", out, want, err)
	}
}

// TestConfinedReload checks that wgproxy confines itself, and still resolves the name of an endpoint. A reload then reads a file
// that was replaced. A reload that needs a file in another folder fails and says why, unless -no-landlock is set.
func TestConfinedReload(t *testing.T) {
	needLandlock(t)
	o := newOffice(t)
	elsewhere := write(t, "elsewhere.conf", o.file(""))
	named := func(more string) string {
		return strings.Replace(o.file(more), "Endpoint = 127.0.0.1:", "Endpoint = localhost:", 1)
	}
	for _, flags := range [][]string{nil, {"-no-landlock"}} {
		r := &run{T: t, path: write(t, "office.conf", named(""))}
		process := exec.Command(os.Args[0], append([]string{r.path, "-socks", "127.0.0.1:0"}, flags...)...)
		process.Env, process.Stderr = append(os.Environ(), runMain+"=1"), r
		if err := process.Start(); err != nil {
			t.Fatal(err)
		}
		defer process.Process.Kill()
		r.waitFor("serving [Socks5]")
		reload := func(text, want string) {
			t.Helper()
			r.mu.Lock()
			r.out.Reset()
			r.mu.Unlock()
			if err := os.WriteFile(r.path+".new", []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(r.path+".new", r.path); err != nil {
				t.Fatal(err)
			}
			if err := process.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			r.waitFor(want)
		}
		reload(named("PersistentKeepalive = 25\n"), "reloaded "+r.path)
		want := "not reloaded: " + r.path + ": WGConfig: open " + elsewhere + ": permission denied; since its start, wgproxy may read only files in " + filepath.Dir(r.path)
		if flags != nil {
			want = "reloaded " + r.path
		}
		reload("WGConfig = "+elsewhere+"\n", want)
		if err := process.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := process.Wait(); err != nil {
			t.Errorf("wgproxy ended with %v and printed\n%s", err, r.said())
		}
	}
}

// TestFoldersOf checks that for a link, the folder of its target is included, and that a file in the root folder gives
// no right to other files there.
func TestFoldersOf(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	real := write(t, "real.conf", "")
	if err := os.Symlink(real, filepath.Join(dir, "link.conf")); err != nil {
		t.Fatal(err)
	}
	got := foldersOf([]string{filepath.Join(dir, "link.conf"), filepath.Join(dir, "missing"), "/root.conf"})
	if want := []string{dir, filepath.Dir(real), "/root.conf"}; !slices.Equal(got, want) {
		t.Errorf("foldersOf returns %q, want %q", got, want)
	}
}
