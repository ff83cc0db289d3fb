package udp

import "golang.org/x/sys/unix"

// OpenBSD neither reports nor accepts the type of service of a single IPv4 datagram.
const (
	recvTOS4     = -1
	sendTOS4Size = 0
)

const markOption = unix.SO_RTABLE
