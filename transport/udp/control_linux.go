package udp

import "golang.org/x/sys/unix"

const (
	recvSource4   = unix.IP_PKTINFO
	recvTOS4      = unix.IP_TOS
	sendTOS4Size  = 4
	recvTrainSize = unix.UDP_GRO

	pktinfoSource = 4 // offset in a received struct in_pktinfo of the address to answer from
)
