//go:build freebsd || openbsd

package udp

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	recvSource4   = unix.IP_RECVDSTADDR
	recvTrainSize = -1 // these systems do not receive trains
)

// source4 reads a struct in_addr, which holds the address that the datagram was sent to.
func source4(data []byte) (netip.Addr, uint32) {
	if len(data) < 4 {
		return netip.Addr{}, 0
	}
	return answerable(netip.AddrFrom4([4]byte(data))), 0
}

// putSource4 writes a struct in_addr if src is an IPv4 address, and returns its length. These systems have no message that sets
// the interface.
func putSource4(b []byte, src netip.Addr, _ uint32) int {
	if !src.Is4() {
		return 0
	}
	a := src.As4()
	copy(putMessage(b, unix.IPPROTO_IP, unix.IP_SENDSRCADDR, len(a)), a[:])
	return unix.CmsgSpace(len(a))
}
