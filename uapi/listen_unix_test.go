//go:build unix

package uapi

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// inDirectory makes Listen put control sockets into a directory of the test, and returns that directory.
func inDirectory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "uapi") // a short path, because the length of a socket's path is limited
	if err != nil {
		t.Fatal(err)
	}
	was := socketDirectory
	socketDirectory = filepath.Join(dir, "wireguard")
	t.Cleanup(func() {
		socketDirectory = was
		os.RemoveAll(dir)
	})
	return socketDirectory
}

func listen(t *testing.T, name string) net.Listener {
	t.Helper()
	l, err := Listen(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestListen checks that only the owner may open the socket, whatever the umask is, that nothing else is left in the
// directory, and that Close removes the socket.
func TestListen(t *testing.T) {
	dir := inDirectory(t)
	defer syscall.Umask(syscall.Umask(0))
	l := listen(t, "wg0")
	path := filepath.Join(dir, "wg0.sock")
	if l.Addr().String() != path {
		t.Errorf("the address is %v, want %s", l.Addr(), path)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, want a socket with 0600 (%v)", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("the directory has %v, want the socket alone", entries)
	}
	done := make(chan net.Conn)
	go func() {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Error(err)
		}
		done <- c
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	(<-done).Close()
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there after Close: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
}

// TestListenStale checks that Listen replaces a socket whose process died. Listen fails, and leaves the file as it is, if a
// process answers on the socket or if the file is not a socket. Listen also refuses an invalid name.
func TestListenStale(t *testing.T) {
	dir := inDirectory(t)
	path := filepath.Join(dir, "wg0.sock")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l := listen(t, "wg0")
	if _, err := Listen("wg0"); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "stop it") {
		t.Errorf("a second Listen: %v, want one that wraps EADDRINUSE and says what to do", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the live socket is gone: %v", err)
	}
	c.Close()
	l.Close()

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("wg0"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Listen where a file is: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("the file is gone")
	}
	for _, name := range []string{"", ".", "..", "a/b", "../wg0", "a\x00", strings.Repeat("x", 65)} {
		if l, err := Listen(name); err == nil {
			l.Close()
			t.Errorf("the name %q is accepted", name)
		}
	}
}

// TestListenDirectory checks that Listen refuses a directory where other users can write. Such a user could replace our socket,
// and would then receive the private key.
func TestListenDirectory(t *testing.T) {
	dir := inDirectory(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o775); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("wg0"); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a directory that a group can write to: %v", err)
	}
	if os.Geteuid() == 0 {
		os.Chmod(dir, 0o755)
		os.Chown(dir, 12345, 12345)
		if _, err := Listen("wg0"); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("another user's directory: %v", err)
		}
	}
}

// TestRemoved checks that Serve returns an error when the socket's file is removed or replaced. The error says so, and Serve does
// not remove the file that has replaced the socket's file.
func TestRemoved(t *testing.T) {
	for _, polled := range []bool{false, true} {
		for how, remove := range map[string]func(path string) error{
			"removed": os.Remove,
			"moved":   func(path string) error { return os.Rename(path, path+".old") },
			"replaced": func(path string) error {
				if err := os.WriteFile(path+".new", nil, 0o600); err != nil {
					return err
				}
				return os.Rename(path+".new", path)
			},
			"its directory removed": func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
		} {
			t.Run(how, func(t *testing.T) {
				dir := inDirectory(t)
				l := listen(t, "wg0").(*listener)
				if polled {
					l = poll(t, l)
				}
				s := &Server{Device: newDown(t)}
				done := make(chan error, 1)
				go func() { done <- s.Serve(l) }()
				c, err := net.Dial("unix", l.path)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				testkit.Eventually(t, "the connection is served", func() bool { return s.idleSince(time.Time{}) == 1 })
				if err := remove(l.path); err != nil {
					t.Fatal(err)
				}
				if err := testkit.Next(t, done, "Serve ends"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "was removed") {
					t.Errorf("Serve returned %v", err)
				}
				s.Close()
				if _, err := os.Lstat(filepath.Join(dir, "wg0.sock")); how == "replaced" && err != nil {
					t.Errorf("the successor's file is gone: %v", err)
				}
			})
		}
	}
}

// poll gives l the watcher of systems whose kernel does not report removals, and returns l.
func poll(t *testing.T, l *listener) *listener {
	t.Helper()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unix, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	p := &listener{UnixListener: unix.(*net.UnixListener), path: l.path, file: l.file, watched: make(chan struct{}),
		watcher: &poller{time.Millisecond, make(chan struct{})}}
	go p.watch()
	t.Cleanup(func() { p.Close() })
	return p
}

// TestListenFile checks that an inherited socket works like one that Listen made, and that Close removes it. ListenFile
// refuses a socket to which other users may connect, a file that is not a Unix socket, and a socket of another interface.
func TestListenFile(t *testing.T) {
	dir := inDirectory(t)
	first := listen(t, "wg0")
	f, err := first.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := filepath.Join(dir, "wg0.sock")

	os.Chmod(path, 0o660)
	if _, err := ListenFile("wg0", f); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "0600") {
		t.Errorf("a socket of the group's: %v", err)
	}
	os.Chmod(path, 0o600)
	if _, err := ListenFile("wg1", f); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a socket of another interface: %v", err)
	}
	if _, err := ListenFile("../wg0", f); err == nil {
		t.Error("a name with a slash is accepted")
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := ListenFile("wg0", null); err == nil {
		t.Error("/dev/null is accepted")
	}
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tcpFile, err := tcp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcpFile.Close()
	if _, err := ListenFile("wg0", tcpFile); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a TCP socket: %v", err)
	}

	l, err := ListenFile("wg0", f)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Device: newDown(t)}
	serveAt(t, s, l)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("get=1\n\n")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 64)
	if n, err := c.Read(answer); string(answer[:n]) != "errno=0\n\n" {
		t.Errorf("the answer is %q, %v", answer[:n], err)
	}
	s.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there after Close: %v", err)
	}
}
