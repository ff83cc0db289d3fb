//go:build freebsd || openbsd

package netstack

import "golang.org/x/sys/unix"

const (
	sendSource4       = unix.IP_RECVDSTADDR // which is IP_SENDSRCADDR too
	sendSource4Offset = 0
	sendSegment       = -1 // these systems have no UDP_SEGMENT
)

// put4 writes m, which is about an IPv4 datagram.
func (m *received) put4(w *controlWriter) {
	a := m.to.As4()
	copy(w.message(unix.IPPROTO_IP, unix.IP_RECVDSTADDR, len(a)), a[:])
	m.putTOS4(w)
	w.number(unix.IPPROTO_IP, unix.IP_RECVTTL, 1, m.ttl)
}
