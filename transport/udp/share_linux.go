package udp

import "golang.org/x/sys/unix"

// setShared sets whether the socket can have the same port as other sockets for which this is set. It returns the previous
// setting. If several such sockets fit a datagram equally well, Linux delivers the datagram to the one that was bound last.
//
// SO_REUSEPORT cannot be used here, because Linux spreads the datagrams over the sockets that have it.
func setShared(fd uintptr, on bool) (was bool, err error) {
	return setFlag(fd, unix.SO_REUSEADDR, on)
}
