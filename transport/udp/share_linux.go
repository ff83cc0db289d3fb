package udp

import "golang.org/x/sys/unix"

// setShared sets whether the socket shares its port with sockets that have this set too, and returns what was set before.
// Of several sockets that fit a datagram equally well, Linux chooses the one that was bound last.
//
// SO_REUSEPORT would not do here: Linux spreads the datagrams over the sockets that have it.
func setShared(fd uintptr, on bool) (was bool, err error) {
	return setFlag(fd, unix.SO_REUSEADDR, on)
}
