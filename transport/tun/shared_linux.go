//go:build linux && !android

package tun

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An inherited descriptor shares its open file with whoever passed it, who can make it blocking at any time: os.File.Fd
// does. A raw call that then waits would keep its processor, and the first garbage collection would never end. So these
// calls yield to the scheduler, and ask the kernel not to wait whatever the mode of the file is.

// readShared is read for an inherited descriptor.
func readShared(fd uintptr, b []byte) (int, syscall.Errno) {
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	for {
		n, errno := vector(unix.SYS_PREADV2, fd, &iov, 1)
		if errno == unix.EOPNOTSUPP { // Linux before 6.4
			if !isReady(fd, unix.POLLIN) {
				return 0, unix.EAGAIN
			}
			// It waits only if another holder reads the packet in between, and then until the next one.
			var r uintptr
			r, _, errno = unix.Syscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(iov.Base)), uintptr(len(b)))
			n = int(r)
		}
		if errno != unix.EINTR {
			return n, errno
		}
	}
}

// writevShared is writev for an inherited descriptor.
func writevShared(fd uintptr, iovs []unix.Iovec) (int, syscall.Errno) {
	for {
		n, errno := vector(unix.SYS_PWRITEV2, fd, unsafe.SliceData(iovs), len(iovs))
		if errno == unix.EOPNOTSUPP { // Linux before 6.4
			if !isReady(fd, unix.POLLOUT) {
				return 0, unix.EAGAIN
			}
			var r uintptr
			r, _, errno = unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(iovs))), uintptr(len(iovs)))
			n = int(r)
		}
		if errno != unix.EINTR {
			return n, errno
		}
	}
}

// vector is preadv2 or pwritev2, at the file's own position and without waiting.
func vector(call, fd uintptr, iovs *unix.Iovec, n int) (int, syscall.Errno) {
	const position = ^uintptr(0)
	r, _, errno := unix.Syscall6(call, fd, uintptr(unsafe.Pointer(iovs)), uintptr(n), position, position, unix.RWF_NOWAIT)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// isReady reports whether a call on the descriptor finds one of the events.
func isReady(fd uintptr, events int16) bool {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	n, err := unix.Poll(p[:], 0)
	return err == nil && n > 0
}
