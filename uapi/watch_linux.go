package uapi

import (
	"os"

	"golang.org/x/sys/unix"
)

// An inotifier is a watcher that uses inotify.
type inotifier struct{ f *os.File }

// newWatcher returns a watcher of the file at path. The watcher waits for changes of the file's link count or name, because each
// removal, move or replacement changes one of the two. If the system has no inotify instance left, newWatcher returns a poller.
func newWatcher(path string) watcher {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return newPoller()
	}
	f := os.NewFile(uintptr(fd), "inotify") // the descriptor is non-blocking, so it uses the netpoller
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_ATTRIB|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF); err != nil {
		f.Close()
		return newPoller()
	}
	return inotifier{f}
}

func (i inotifier) wait() bool {
	var events [4096]byte // their content does not matter
	_, err := i.f.Read(events[:])
	return err == nil
}

func (i inotifier) close() { i.f.Close() }
