//go:build linux && !android

package tun

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An inherited descriptor refers to the same open file as a descriptor of the program that passed it. That program can make the
// file blocking at any time, for example with os.File.Fd. If a raw system call then waited, the Go scheduler would not know,
// and the next garbage collection would wait for that call. So the functions below make ordinary system calls, and ask the
// kernel not to wait even if the file is blocking.

// readShared does the same as read, for an inherited descriptor.
func readShared(fd uintptr, b []byte) (int, syscall.Errno) {
	iov := [1]unix.Iovec{{Base: unsafe.SliceData(b)}}
	iov[0].SetLen(len(b))
	return vector(fd, iov[:], unix.SYS_PREADV2, unix.SYS_READV, unix.POLLIN)
}

// writevShared does the same as writev, for an inherited descriptor.
func writevShared(fd uintptr, iovs []unix.Iovec) (int, syscall.Errno) {
	return vector(fd, iovs, unix.SYS_PWRITEV2, unix.SYS_WRITEV, unix.POLLOUT)
}

// vector makes the system call whose number is in the parameter call, at the current position of the file and with RWF_NOWAIT,
// which forbids waiting. Linux before 6.4 does not support this flag for a TUN. Without that support, vector polls the file for the
// event in the parameter ready. It returns EAGAIN if there is no such event, and otherwise makes the system call in the parameter
// older. If another program reads or writes the file after the poll, this call waits until the file is ready again.
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
