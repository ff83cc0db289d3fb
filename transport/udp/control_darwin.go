package udp

import "golang.org/x/sys/unix"

const (
	recvSource4   = unix.IP_PKTINFO
	recvTOS4      = unix.IP_RECVTOS
	sendTOS4Size  = 4
	recvTrainSize = -1 // trains are not received

	pktinfoSource = 8 // of the address to answer from in a struct in_pktinfo that was received
)
