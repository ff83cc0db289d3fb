package udp

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	recvSource4   = unix.IP_PKTINFO
	recvTOS4      = unix.IP_RECVTOS
	sendTOS4Size  = 4
	recvTrainSize = -1 // trains are not received
)

// source4 reads a struct in_pktinfo: the interface, nothing, the address in the header.
func source4(data []byte) (netip.Addr, uint32) {
	if len(data) < unix.SizeofInet4Pktinfo {
		return netip.Addr{}, 0
	}
	return answerable(netip.AddrFrom4([4]byte(data[8:]))), binary.NativeEndian.Uint32(data)
}

// putSource4 writes one, with the address, which may be invalid, in its second field, and an interface that may be 0. It
// returns the length.
func putSource4(b []byte, src netip.Addr, ifindex uint32) int {
	data := putMessage(b, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
	binary.NativeEndian.PutUint32(data, ifindex)
	if src.Is4() {
		a := src.As4()
		copy(data[4:], a[:])
	}
	return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
}
