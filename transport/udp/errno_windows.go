package udp

import "golang.org/x/sys/windows"

// Winsock's own numbers: those of package syscall with the same names are inventions of Go on Windows.
const (
	errnoInUse    = windows.WSAEADDRINUSE
	errnoNotAvail = windows.WSAEADDRNOTAVAIL
	errnoNoFamily = windows.WSAEAFNOSUPPORT
)
