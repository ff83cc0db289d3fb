//go:build freebsd || openbsd

package netstack

import "golang.org/x/sys/unix"

const (
	sendSource4       = unix.IP_RECVDSTADDR // IP_SENDSRCADDR has the same value
	sendSource4Offset = 0
	sendSegment       = -1 // these systems have no UDP_SEGMENT
)

// put4 writes the control messages of m, which describes an IPv4 datagram.
func (m *received) put4(w *controlWriter) {
	a := m.to.As4()
	copy(w.message(unix.IPPROTO_IP, unix.IP_RECVDSTADDR, len(a)), a[:])
	m.putTOS4(w)
	w.number(unix.IPPROTO_IP, unix.IP_RECVTTL, 1, m.ttl)
}
