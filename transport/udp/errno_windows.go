package udp

import "golang.org/x/sys/windows"

// These are the numbers that Winsock returns. On Windows, the constants of package syscall with these names have numbers that
// Go invented.
const (
	errnoInUse    = windows.WSAEADDRINUSE
	errnoNotAvail = windows.WSAEADDRNOTAVAIL
	errnoNoFamily = windows.WSAEAFNOSUPPORT
)
