package netstack

import "golang.org/x/sys/unix"

// putTOS4 writes the type of service of m.
func (m *received) putTOS4(w *controlWriter) { w.number(unix.IPPROTO_IP, unix.IP_RECVTOS, 1, m.tos) }
