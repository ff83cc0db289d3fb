//go:build !windows

package udp

import "syscall"

const (
	errnoInUse    = syscall.EADDRINUSE
	errnoNotAvail = syscall.EADDRNOTAVAIL
	errnoNoFamily = syscall.EPROTONOSUPPORT
)
