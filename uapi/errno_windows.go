package uapi

import (
	"syscall"

	"golang.org/x/sys/windows"
)

// These are Linux's error numbers. wg.exe expects them, although Windows has other numbers.
const (
	errnoIO           = 5
	errnoTooBig       = 7
	errnoNoDevice     = 19
	errnoInvalid      = 22
	errnoProtocol     = 71
	errnoUnsupported  = 95
	errnoAddressInUse = 98
	errnoAccess       = 13
)

func errnoOfSystem(n syscall.Errno) int {
	switch n {
	case windows.WSAEADDRINUSE:
		return errnoAddressInUse
	case windows.WSAEACCES, windows.ERROR_ACCESS_DENIED:
		return errnoAccess
	case windows.WSAEINVAL:
		return errnoInvalid
	case windows.WSAEOPNOTSUPP:
		return errnoUnsupported
	}
	return errnoIO
}
