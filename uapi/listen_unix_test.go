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
		t.Errorf("the file has the mode %v, want a socket with 0600 (error %v)", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("the directory contains %v, want only the socket", entries)
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
		t.Errorf("the socket's file still exists after Close: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: error %v, want net.ErrClosed", err)
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
		t.Errorf("second Listen: error %v, want one that wraps EADDRINUSE and says what to do", err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("cannot connect to the first socket after the second Listen: %v", err)
	}
	c.Close()
	l.Close()

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("wg0"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Listen on the path of a regular file: error %v, want fs.ErrExist", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("Listen changed or removed the regular file")
	}
	for _, name := range []string{"", ".", "..", "a/b", "../wg0", "a\x00", strings.Repeat("x", 65)} {
		if l, err := Listen(name); err == nil {
			l.Close()
			t.Errorf("Listen accepted the name %q", name)
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
		t.Errorf("Listen in a directory that a group can write to: error %v, want fs.ErrPermission and the directory's name", err)
	}
	if os.Geteuid() == 0 {
		os.Chmod(dir, 0o755)
		os.Chown(dir, 12345, 12345)
		if _, err := Listen("wg0"); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("Listen in another user's directory: error %v, want fs.ErrPermission", err)
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
				if err := testkit.Next(t, done, "Serve returns"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "was removed") {
					t.Errorf("Serve returned %v, want an error that says that the socket was removed", err)
				}
				s.Close()
				if _, err := os.Lstat(filepath.Join(dir, "wg0.sock")); how == "replaced" && err != nil {
					t.Errorf("Serve removed the file that replaced the socket's file: %v", err)
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
		t.Errorf("ListenFile with a socket that a group may use: error %v, want fs.ErrPermission and the mode 0600", err)
	}
	os.Chmod(path, 0o600)
	if _, err := ListenFile("wg1", f); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ListenFile with a socket of another interface: error %v, want fs.ErrNotExist", err)
	}
	if _, err := ListenFile("../wg0", f); err == nil {
		t.Error("ListenFile accepted a name with a slash")
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := ListenFile("wg0", null); err == nil {
		t.Error("ListenFile accepted /dev/null")
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
		t.Errorf("ListenFile with a TCP socket: error %v, want one that contains the path", err)
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
		t.Errorf("the answer is %q, error %v; want errno=0", answer[:n], err)
	}
	s.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket's file still exists after Close: %v", err)
	}
}
