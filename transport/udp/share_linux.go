package udp

import "golang.org/x/sys/unix"

// setShared sets or clears SO_REUSEADDR, which permits several sockets with this option to be bound to one port. It returns the
// previous setting. If several such sockets fit a datagram equally well, Linux delivers the datagram to the one that was bound
// last.
//
// SO_REUSEPORT cannot be used here, because Linux spreads the datagrams for a port over all its sockets with SO_REUSEPORT.
func setShared(fd uintptr, on bool) (was bool, err error) {
	return setFlag(fd, unix.SO_REUSEADDR, on)
}
