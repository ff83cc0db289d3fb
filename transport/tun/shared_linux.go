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

// vector reads or writes at the current position of the file. The parameter call is the number of the system call to use, which
// supports RWF_NOWAIT, a flag that forbids waiting. Linux before 6.4 does not support this flag for a TUN. There, vector first
// polls the file for the event in the parameter ready, and returns EAGAIN if that event has not occurred. Otherwise it uses the
// system call whose number is the parameter older. If another program reads or writes the file between the poll and this call,
// the call waits until the file is ready again.
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
