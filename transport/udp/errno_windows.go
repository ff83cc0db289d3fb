package udp

import "golang.org/x/sys/windows"

// These are Winsock's numbers. Go invented the numbers that package syscall has under the same names on Windows.
const (
	errnoInUse    = windows.WSAEADDRINUSE
	errnoNotAvail = windows.WSAEADDRNOTAVAIL
	errnoNoFamily = windows.WSAEAFNOSUPPORT
)
