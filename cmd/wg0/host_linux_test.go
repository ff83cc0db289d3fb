package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard"
	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// binary is the path of the daemon. All tests share one build.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "wg0-test-*")
	if err != nil {
		return "", err
	}
	buildDir = dir
	path := filepath.Join(dir, "wg0")
	args := []string{"build", "-o", path, "."}
	if testkit.Race {
		args = slices.Insert(args, 1, "-race")
	}
	out, err := exec.Command("go", args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %v\n%s", err, out)
	}
	return path, os.Chmod(dir, 0o755) // so that a user other than root can run it
})

var buildDir string

func TestMain(m *testing.M) {
	races, err := os.MkdirTemp("", "wg0-races-*") // for the race reports of the daemons, if they are built with -race
	if err != nil {
		panic(err)
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0 log_path="+filepath.Join(races, "race"))
	code := m.Run()
	reports, _ := filepath.Glob(filepath.Join(races, "race.*"))
	for _, r := range reports {
		text, _ := os.ReadFile(r)
		fmt.Printf("a daemon has a data race:\n%s\n", text)
		code = 1
	}
	os.RemoveAll(races)
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	os.Exit(code)
}

func built(t *testing.T) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func needs(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if !has(c) {
			t.Skipf("needs %s: the command is not installed", c)
		}
	}
}

// A space is a network namespace with the commands that run in it. It is removed when the test ends.
type space struct {
	*testing.T
	name string
	env  []string // added to the test's environment
	dir  string   // the test's folder
}

var spaces atomic.Int32

// unique returns a name for an interface or a namespace that no other test and no other test run uses.
func unique(prefix string) string {
	return fmt.Sprintf("%s%s%d", prefix, strconv.FormatInt(int64(os.Getpid()), 36), spaces.Add(1))
}

func newSpace(t *testing.T) *space {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: this test makes network namespaces")
	}
	needs(t, "ip")
	s := &space{T: t, name: unique("wg0t"), dir: t.TempDir()}
	s.host("ip", "netns", "add", s.name)
	t.Cleanup(func() { s.host("ip", "netns", "delete", s.name) })
	s.must("ip", "link", "set", "lo", "up")
	return s
}

// host runs a command outside the namespace.
func (s *space) host(args ...string) {
	s.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		s.Fatalf("%q: %v\n%s", args, err, out)
	}
}

// command prepares a command that runs in the namespace.
func (s *space) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	s.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", s.name}, args...)...)
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Dir = s.dir
	cmd.WaitDelay = 10 * time.Second // a child process may keep stdout open
	return cmd
}

// run runs a command and returns what it prints and its exit status.
func (s *space) run(args ...string) (string, int) {
	s.Helper()
	out, err := s.command(args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.Fatalf("%q: %v\n%s", args, err, out)
	}
	if exit != nil {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

// must runs a command and fails the test if the command fails.
func (s *space) must(args ...string) string {
	s.Helper()
	out, code := s.run(args...)
	if code != 0 {
		s.Fatalf("%q: exit status %d\n%s", args, code, out)
	}
	return out
}

// write creates a file in the test's folder.
func (s *space) write(name, text string, mode fs.FileMode) string {
	s.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		s.Fatal(err)
	}
	return path
}

// fake adds a command to the path. The command writes its arguments and its input to the file that fake returns.
func (s *space) fake(command, script string) (log string) {
	s.Helper()
	bin := filepath.Join(s.dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		s.Fatal(err)
	}
	log = filepath.Join(s.dir, command+".log")
	text := fmt.Sprintf("#!/bin/sh\necho \"%s $*\" >> %s\n%s\n", command, log, script)
	if err := os.WriteFile(filepath.Join(bin, command), []byte(text), 0o755); err != nil {
		s.Fatal(err)
	}
	s.setPath(bin + ":" + os.Getenv("PATH"))
	return log
}

func (s *space) setPath(path string) { s.env = append(s.env, "PATH="+path) }

// onlyCommands sets a path that contains only these commands.
func (s *space) onlyCommands(commands ...string) {
	s.Helper()
	bin := filepath.Join(s.dir, "only")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		s.Fatal(err)
	}
	for _, c := range commands {
		path, err := exec.LookPath(c)
		if err != nil {
			s.Skipf("needs %s: the command is not installed", c)
		}
		if err := os.Symlink(path, filepath.Join(bin, c)); err != nil {
			s.Fatal(err)
		}
	}
	s.setPath(bin)
}

// exists reports whether an interface exists in the namespace.
func (s *space) exists(iface string) bool {
	_, code := s.run("ip", "link", "show", "dev", iface)
	return code == 0
}

// wantGone fails the test unless the interface, its socket and its daemon disappear.
func (s *space) wantGone(iface string) {
	s.Helper()
	testkit.Eventually(s.T, "the interface disappears", func() bool { return !s.exists(iface) })
	testkit.Eventually(s.T, "the control socket disappears", func() bool {
		_, err := os.Lstat(socketPath(iface))
		return errors.Is(err, fs.ErrNotExist)
	})
	testkit.Eventually(s.T, "the daemon ends", func() bool { return len(daemonsOf(iface)) == 0 })
}

// daemonsOf returns the processes of this test's binary that have the interface on their command line.
func daemonsOf(iface string) (pids []int) {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, err := os.ReadFile(p) // empty for a zombie
		if err == nil && bytes.HasPrefix(b, []byte(buildDir+"/")) && bytes.Contains(b, []byte(iface)) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// daemonOf waits until exactly one process of the interface runs, and returns this process.
func (s *space) daemonOf(iface string) *os.Process {
	s.Helper()
	var pids []int
	testkit.Eventually(s.T, "exactly one daemon of the interface runs", func() bool { pids = daemonsOf(iface); return len(pids) == 1 })
	p, err := os.FindProcess(pids[0])
	if err != nil {
		s.Fatal(err)
	}
	return p
}

// endAfter kills the interface's remaining daemons after the test.
func (s *space) endAfter(iface string) {
	s.Cleanup(func() {
		for _, pid := range daemonsOf(iface) {
			syscall.Kill(pid, syscall.SIGTERM)
		}
		for end := time.Now().Add(5 * time.Second); len(daemonsOf(iface)) > 0 && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		for _, pid := range daemonsOf(iface) {
			s.Errorf("the daemon %d does not end", pid)
			syscall.Kill(pid, syscall.SIGKILL)
			os.Remove(socketPath(iface))
		}
	})
}

// A front is a daemon in the foreground.
type front struct {
	*exec.Cmd
	log  *lockedBuffer
	exit chan error
}

// front starts a daemon in the foreground.
func (s *space) front(args ...string) *front {
	s.Helper()
	f := &front{Cmd: s.command(args...), log: new(lockedBuffer), exit: make(chan error, 1)}
	f.Stdout, f.Stderr = f.log, f.log
	if err := f.Start(); err != nil {
		s.Fatal(err)
	}
	go func() { f.exit <- f.Wait() }()
	s.Cleanup(func() { f.Process.Signal(syscall.SIGTERM) })
	return f
}

// wantExit waits until the daemon exits and compares its exit status.
func (f *front) wantExit(t *testing.T, code int) {
	t.Helper()
	select {
	case <-f.exit:
		if got := f.ProcessState.ExitCode(); got != code {
			t.Errorf("the daemon exited with status %d, want %d\n%s", got, code, f.log)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the daemon does not end\n%s", f.log)
	}
}

// wantLog waits until the log contains words.
func (f *front) wantLog(t *testing.T, words string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(f.log.String(), words); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the log does not say %q:\n%s", words, f.log)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var _ io.Writer = (*lockedBuffer)(nil)

// link joins two namespaces with a veth pair, with addresses of the networks 198.18.0.0/24 and fd18::/64.
func link(a, b *space) {
	a.Helper()
	x, y := unique("v"), unique("v")
	a.host("ip", "link", "add", x, "netns", a.name, "type", "veth", "peer", "name", y, "netns", b.name)
	for i, s := range []struct {
		*space
		iface string
	}{{a, x}, {b, y}} {
		s.must("ip", "address", "add", fmt.Sprintf("198.18.0.%d/24", i+1), "dev", s.iface)
		s.must("ip", "address", "add", fmt.Sprintf("fd18::%d/64", i+1), "dev", s.iface, "nodad")
		s.must("ip", "link", "set", s.iface, "up")
	}
}

// newKeys returns a private key and its public key as text.
func newKeys() (private, public string) {
	k := wireguard.NewPrivateKey()
	return k.Text(), k.Public().String()
}
