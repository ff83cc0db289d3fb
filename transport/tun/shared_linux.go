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
	iov := [1]unix.Iovec{{Base: unsafe.SliceData(b)}}
	iov[0].SetLen(len(b))
	return vector(fd, iov[:], unix.SYS_PREADV2, unix.SYS_READV, unix.POLLIN)
}

// writevShared is writev for an inherited descriptor.
func writevShared(fd uintptr, iovs []unix.Iovec) (int, syscall.Errno) {
	return vector(fd, iovs, unix.SYS_PWRITEV2, unix.SYS_WRITEV, unix.POLLOUT)
}

// vector makes the system call named call, at the file's own position and without waiting. If the kernel cannot do that with
// the file, as Linux before 6.4 with a TUN, it makes the system call older instead, once poll reports ready. If another
// holder of the file reads or writes in between, older waits until the file is ready again.
func vector(fd uintptr, iovs []unix.Iovec, call, older uintptr, ready int16) (int, syscall.Errno) {
	const position = ^uintptr(0)
	first, many := unsafe.SliceData(iovs), uintptr(len(iovs))
	for {
		n, _, errno := unix.Syscall6(call, fd, uintptr(unsafe.Pointer(first)), many, position, position, unix.RWF_NOWAIT)
		if errno == unix.EOPNOTSUPP {
			p := [1]unix.PollFd{{Fd: int32(fd), Events: ready}}
			if n, err := unix.Poll(p[:], 0); err == nil && n == 0 {
				return 0, unix.EAGAIN
			}
			n, _, errno = unix.Syscall(older, fd, uintptr(unsafe.Pointer(first)), many)
		}
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
