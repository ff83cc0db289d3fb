//go:build !windows

package uapi

import "syscall"

// These are the system's numbers, which wg(8) on the same system reads.
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
