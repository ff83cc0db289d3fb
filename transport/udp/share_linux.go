package udp

import "golang.org/x/sys/unix"

// setShared sets whether the port of a socket may have another socket that has this set too, and returns what was set
// before. Linux puts a socket that is bound in front of those bound before, and gives a datagram to the first of several
// that fit equally well.
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
