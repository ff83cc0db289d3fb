//go:build !windows

package uapi

import "syscall"

// These are the error numbers of this operating system, because wg(8) on the same system reads the answer.
const (
	errnoIO           = int(syscall.EIO)
	errnoTooBig       = int(syscall.E2BIG)
	errnoNoDevice     = int(syscall.ENODEV)
	errnoInvalid      = int(syscall.EINVAL)
	errnoProtocol     = int(syscall.EPROTO)
	errnoAddressInUse = int(syscall.EADDRINUSE)
	errnoUnsupported  = int(syscall.EOPNOTSUPP)
)

func errnoOfSystem(n syscall.Errno) int { return int(n) }
