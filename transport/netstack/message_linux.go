package netstack

import "golang.org/x/sys/unix"

const (
	sendSource4       = unix.IP_PKTINFO
	sendSource4Offset = 4 // offset of the source in a struct in_pktinfo, after the interface
	sendSegment       = unix.UDP_SEGMENT
)

// put4 writes the control messages of m, which describes an IPv4 datagram.
func (m *received) put4(w *controlWriter) {
	if b := w.message(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo); b != nil {
		a := m.to.As4()
		copy(b[4:], a[:]) // the local address from which to answer
		copy(b[8:], a[:]) // the destination in the IP header
	}
	w.number(unix.IPPROTO_IP, unix.IP_TOS, 1, m.tos)
	w.number(unix.IPPROTO_IP, unix.IP_TTL, 4, m.ttl)
}
