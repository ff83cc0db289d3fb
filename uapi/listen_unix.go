//go:build unix

package uapi

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// socketDirectory is the directory in which wg(8) looks for the control sockets of userspace interfaces. Tests change it.
var socketDirectory = "/var/run/wireguard"

func socketPath(name string) string { return filepath.Join(socketDirectory, name+".sock") }

// Listen makes the control socket of an interface at the path where wg(8) looks for it: /var/run/wireguard/NAME.sock. Only the
// owner of the socket can open it. Listen replaces an old socket on which no process listens. If another process listens on the
// old socket, the error wraps syscall.EADDRINUSE. On Windows, Listen makes the named pipe for wg.exe instead. Closing the
// listener removes the file.
//
// The listener has the method File of net.UnixListener, so that a child process can take over the socket with ListenFile. After
// the file was removed or replaced, Accept fails with an error that wraps os.ErrNotExist.
//
// On Windows, Listen calls package golang.zx2c4.com/wireguard/ipc. On other systems it does not, because there that package has
// three faults. It changes the umask of the whole process while it makes the socket. It leaks a goroutine if its listener is closed
// while no goroutine calls Accept. And on Close it removes the socket's file even if another process has replaced it.
func Listen(name string) (net.Listener, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := makeDirectory(); err != nil {
		return nil, err
	}
	path := socketPath(name)
	if err := checkFree(path, name); err != nil {
		return nil, err
	}
	l, err := listenAt(path)
	if err != nil {
		return nil, fmt.Errorf("uapi: make the control socket %s: %w", path, err)
	}
	return watched(l, path)
}

// ListenFile does what Listen does, but uses a socket that another process made and that this process inherited, such as the
// socket that WG_UAPI_FD names. The socket must be bound to the path that Listen would use, and only its owner may have access to
// it. The caller keeps f and may close it. On Windows the error wraps errors.ErrUnsupported.
func ListenFile(name string, f *os.File) (net.Listener, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	fl, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("uapi: the inherited descriptor is not a listening socket: %w", err)
	}
	l, ok := fl.(*net.UnixListener)
	if !ok {
		fl.Close()
		return nil, fmt.Errorf("uapi: the inherited socket is one of %v: want a Unix socket at %s", fl.Addr().Network(), socketPath(name))
	}
	return watched(l, socketPath(name))
}

// makeDirectory makes socketDirectory, and checks that no other user can replace a socket in it.
func makeDirectory() error {
	if err := os.MkdirAll(socketDirectory, 0o755); err != nil {
		return fmt.Errorf("uapi: the directory of control sockets (needs root): %w", err)
	}
	info, err := os.Stat(socketDirectory)
	if err != nil {
		return fmt.Errorf("uapi: the directory of control sockets: %w", err)
	}
	if !info.IsDir() || info.Mode().Perm()&0o022 != 0 || !isOurs(info) {
		return fmt.Errorf("uapi: %s (%v) must be a directory that its owner, root or this user, alone can write to: %w",
			socketDirectory, info.Mode(), fs.ErrPermission)
	}
	return nil
}

func isOurs(info fs.FileInfo) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && (s.Uid == 0 || int(s.Uid) == os.Geteuid())
}

// checkFree returns an error if a file exists at path, unless it is a socket on which no process listens.
func checkFree(path, name string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("uapi: the control socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("uapi: %s is not a socket; remove it: %w", path, fs.ErrExist)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("uapi: another process serves %s already at %s; stop it, or choose another name: %w",
		name, path, syscall.EADDRINUSE)
}

// listenAt makes the socket in a separate directory, which no other user can enter. It sets the socket's mode to 0600, and only
// then moves the socket to path.
func listenAt(path string) (*net.UnixListener, error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".new-*") // mode 0700
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	made := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(made, 0o600); err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// A listener is a control socket whose file is watched.
type listener struct {
	*net.UnixListener
	path    string
	file    fs.FileInfo // identifies our file, in case another process replaces it
	removed atomic.Bool
	watcher watcher
	watched chan struct{} // closed when watch has ended
	once    sync.Once
}

// A watcher waits for changes that may affect a file.
type watcher interface {
	wait() bool // returns false once the watcher is closed
	close()
}

// watched returns a listener for the socket unix, which must be bound to path. If watched fails, it closes unix.
func watched(unix *net.UnixListener, path string) (net.Listener, error) {
	unix.SetUnlinkOnClose(false)
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		err = fmt.Errorf("uapi: the control socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		err = fmt.Errorf("uapi: %s is not a socket: %w", path, fs.ErrExist)
	case info.Mode().Perm()&0o077 != 0 || !isOurs(info):
		err = fmt.Errorf("uapi: %s (%v) would give the private key away: its owner must be root or this user, and its mode 0600: %w",
			path, info.Mode(), fs.ErrPermission)
	}
	if err != nil {
		unix.Close()
		return nil, err
	}
	l := &listener{UnixListener: unix, path: path, file: info, watched: make(chan struct{})}
	l.watcher = newWatcher(path)
	go l.watch()
	return l, nil
}

// watch closes the listener when its file has been removed or replaced.
func (l *listener) watch() {
	defer close(l.watched)
	for l.inPlace() {
		if !l.watcher.wait() {
			return
		}
	}
	l.removed.Store(true)
	l.UnixListener.Close()
}

// inPlace reports whether the file at the listener's path exists and is ours.
func (l *listener) inPlace() bool {
	info, err := os.Lstat(l.path)
	return err == nil && os.SameFile(info, l.file)
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.UnixListener.Accept()
	if err != nil && l.removed.Load() {
		return nil, fmt.Errorf("uapi: the control socket %s was removed: %w", l.path, os.ErrNotExist)
	}
	return c, err
}

// Addr returns the path of the socket.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close closes the listener and removes its file, unless another process has replaced the file.
func (l *listener) Close() (err error) {
	l.once.Do(func() {
		l.watcher.close()
		<-l.watched
		if l.inPlace() {
			err = os.Remove(l.path)
		}
		if e := l.UnixListener.Close(); e != nil && !errors.Is(e, net.ErrClosed) {
			err = e
		}
	})
	return err
}

// A poller is a watcher whose wait returns at fixed intervals.
type poller struct {
	interval time.Duration
	done     chan struct{} // closed by close
}

func newPoller() *poller { return &poller{time.Second, make(chan struct{})} }

func (p *poller) wait() bool {
	t := time.NewTimer(p.interval)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-p.done:
		return false
	}
}

func (p *poller) close() { close(p.done) }
