package uapi

import (
	"os"

	"golang.org/x/sys/unix"
)

// An inotifier is a watcher that the kernel wakes.
type inotifier struct{ f *os.File }

// newWatcher watches the file at path. A removal, a move and a file in its place each change its count of links or its
// name. Where the system has no inotify instance left, it looks once a second.
func newWatcher(path string) watcher {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return newPoller()
	}
	f := os.NewFile(uintptr(fd), "inotify") // through the netpoller, since it does not block
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_ATTRIB|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF); err != nil {
		f.Close()
		return newPoller()
	}
	return inotifier{f}
}

func (i inotifier) wait() bool {
	var events [4096]byte // which they are does not matter
	_, err := i.f.Read(events[:])
	return err == nil
}

func (i inotifier) close() { i.f.Close() }
