package udp

import "golang.org/x/sys/unix"

const (
	recvSource4   = unix.IP_PKTINFO
	recvTOS4      = unix.IP_RECVTOS
	sendTOS4Size  = 4
	recvTrainSize = -1 // Darwin does not receive trains

	pktinfoSource = 8 // offset in a received struct in_pktinfo of the address to answer from
)
