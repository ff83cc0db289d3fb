package udp

import "golang.org/x/sys/unix"

const (
	recvTOS4     = unix.IP_RECVTOS
	sendTOS4Size = 1

	markOption = unix.SO_USER_COOKIE
)
