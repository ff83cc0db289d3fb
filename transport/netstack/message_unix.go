//go:build linux || darwin || freebsd || openbsd

package netstack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// These flags of recvmsg(2) say that the datagram or the control messages did not fit.
const (
	flagTruncated        = unix.MSG_TRUNC
	flagControlTruncated = unix.MSG_CTRUNC
)

// put writes m as control messages to oob, as far as they fit. It returns their length, and whether all fit.
func (m *received) put(oob []byte) (n int, all bool) {
	w := controlWriter{free: oob}
	if m.to.Is4() {
		m.put4(&w)
	} else if m.to.Is6() {
		if b := w.message(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo); b != nil {
			a := m.to.As16()
			copy(b, a[:]) // the interface that follows stays 0, because the system does not have the Net's interface
		}
		w.number(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 4, m.tos)
		w.number(unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, 4, m.ttl)
	}
	return len(oob) - len(w.free), !w.full
}

// A controlWriter appends control messages to a buffer.
type controlWriter struct {
	free []byte
	full bool // a message did not fit
}

// message appends a message and returns the zeroed memory for its data, or nil if the message does not fit.
func (w *controlWriter) message(level, kind, size int) []byte {
	space := unix.CmsgSpace(size)
	if w.full = w.full || len(w.free) < space; w.full {
		return nil
	}
	b := w.free[:space]
	w.free = w.free[space:]
	clear(b)
	var h unix.Cmsghdr // oob need not be aligned like one
	h.Level, h.Type = int32(level), int32(kind)
	h.SetLen(unix.CmsgLen(size))
	copy(b, (*[unix.SizeofCmsghdr]byte)(unsafe.Pointer(&h))[:])
	return b[unix.CmsgLen(0):unix.CmsgLen(size)]
}

// number appends a message whose data is v, as a number of size bytes.
func (w *controlWriter) number(level, kind, size int, v uint8) {
	switch b := w.message(level, kind, size); len(b) {
	case 1:
		b[0] = v
	case 4:
		binary.NativeEndian.PutUint32(b, uint32(v))
	}
}

// parse reads the control messages of a call of WriteMsgUDP.
func (m *message) parse(oob []byte) error {
	for len(oob) > 0 {
		if len(oob) < unix.SizeofCmsghdr {
			return refused("sendmsg", syscall.EINVAL, "the control messages end within one")
		}
		var h unix.Cmsghdr // oob need not be aligned like one
		copy((*[unix.SizeofCmsghdr]byte)(unsafe.Pointer(&h))[:], oob)
		if uint64(h.Len) < uint64(unix.CmsgLen(0)) || uint64(h.Len) > uint64(len(oob)) {
			return refused("sendmsg", syscall.EINVAL, fmt.Sprintf("a control message of %d bytes in a buffer with %d", h.Len, len(oob)))
		}
		if err := m.take(int(h.Level), int(h.Type), oob[unix.CmsgLen(0):h.Len]); err != nil {
			return err
		}
		oob = oob[min(unix.CmsgSpace(int(h.Len)-unix.CmsgLen(0)), len(oob)):]
	}
	return nil
}

// take reads the data of one control message.
func (m *message) take(level, kind int, data []byte) error {
	known, valid := true, true
	switch {
	case level == unix.IPPROTO_IP && kind == sendSource4:
		if valid = len(data) >= sendSource4Offset+4; valid {
			m.from = netip.AddrFrom4([4]byte(data[sendSource4Offset:]))
		}
	case level == unix.IPPROTO_IP && kind == unix.IP_TOS, level == unix.IPPROTO_IPV6 && kind == unix.IPV6_TCLASS:
		m.tos, valid = byteOf(data)
	case level == unix.IPPROTO_IP && kind == unix.IP_TTL, level == unix.IPPROTO_IPV6 && kind == unix.IPV6_HOPLIMIT:
		m.ttl, valid = byteOf(data)
	case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_PKTINFO:
		if valid = len(data) >= unix.SizeofInet6Pktinfo; valid {
			m.from = netip.AddrFrom16([16]byte(data)).Unmap()
		}
	case level == unix.IPPROTO_UDP && kind == sendSegment:
		if valid = len(data) >= 2 && binary.NativeEndian.Uint16(data) > 0; valid {
			m.segment = int(binary.NativeEndian.Uint16(data))
		}
	default:
		known = false
	}
	switch {
	case !known:
		return refused("sendmsg", syscall.EINVAL, fmt.Sprintf("a Net does not know the control message of level %d and type %d", level, kind))
	case !valid:
		return refused("sendmsg", syscall.EINVAL, fmt.Sprintf("the control message of level %d and type %d does not hold a valid value: %x", level, kind, data))
	}
	return nil
}

// byteOf reads a number of one or four bytes. The number must be from -1 to 255, where -1 means the default.
func byteOf(data []byte) (v int, ok bool) {
	switch len(data) {
	case 1:
		return int(data[0]), true
	case 4:
		v = int(int32(binary.NativeEndian.Uint32(data)))
		return v, -1 <= v && v <= 255
	}
	return 0, false
}
