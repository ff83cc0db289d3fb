package uapi

import (
	"os"

	"golang.org/x/sys/unix"
)

// An inotifier is a watcher that the kernel wakes.
type inotifier struct{ f *os.File }

// newWatcher watches the file at path. Removing, moving or replacing the file changes its count of links or its name.
// If the system has no inotify instance left, the watcher looks once per second.
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
