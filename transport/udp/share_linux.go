package udp

import "golang.org/x/sys/unix"

// setShared sets whether the socket shares its port with sockets that have this set too, and returns what was set before.
// Of several sockets that fit a datagram equally well, Linux chooses the one that was bound last.
//
// SO_REUSEPORT would not do: Linux spreads the datagrams over the sockets that have it.
func setShared(fd uintptr, on bool) (was bool, err error) {
	before, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR)
	if err != nil {
		return false, err
	}
	value := 0
	if on {
		value = 1
	}
	return before != 0, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, value)
}
