//go:build linux || darwin

package udp

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// source4 reads a struct in_pktinfo. It has three fields: the index of the interface, the local address to answer from, and the
// destination address in the IP header. On Darwin the second field is empty, and the third one is read instead.
func source4(data []byte) (netip.Addr, uint32) {
	if len(data) < unix.SizeofInet4Pktinfo {
		return netip.Addr{}, 0
	}
	return answerable(netip.AddrFrom4([4]byte(data[pktinfoSource:]))), binary.NativeEndian.Uint32(data)
}

// putSource4 writes a struct in_pktinfo and returns its length. If src is invalid or ifindex is 0, the system chooses the source
// or the interface. The third field of the struct stays 0, because it has a meaning only for received datagrams.
func putSource4(b []byte, src netip.Addr, ifindex uint32) int {
	data := putMessage(b, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
	binary.NativeEndian.PutUint32(data, ifindex)
	if src.Is4() {
		a := src.As4()
		copy(data[4:], a[:])
	}
	return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
}
