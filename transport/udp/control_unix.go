//go:build linux || darwin || freebsd || openbsd

package udp

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"github.com/seed-86b749af/wireguard"
	"golang.org/x/sys/unix"
)

// hasControl is true because these systems send and receive datagrams with control messages.
const hasControl = true

// msgTruncated is the flag that marks a received datagram that was longer than its buffer.
const msgTruncated = unix.MSG_TRUNC

func (b *controlBuffer) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(b)), controlSize)
}

// parseControl reads the control messages b. It skips unknown messages and stops at a damaged one.
func parseControl(b []byte) (c control) {
	for len(b) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			c.malformed = true
			return c
		}
		c.take(int(h.Level), int(h.Type), data)
		b = rest
	}
	return c
}

// take stores the data of one control message in c. It ignores unknown messages.
func (c *control) take(level, kind int, data []byte) {
	switch {
	case level == unix.IPPROTO_IP && kind == recvSource4:
		c.local, c.ifindex = source4(data)
	case level == unix.IPPROTO_IP && kind == recvTOS4 && len(data) >= 1:
		c.tos = data[0]
	case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		c.local = answerable(netip.AddrFrom16([16]byte(data)))
		c.ifindex = binary.NativeEndian.Uint32(data[16:])
	case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_TCLASS && len(data) >= 4:
		c.tos = uint8(binary.NativeEndian.Uint32(data))
	case level == unix.IPPROTO_UDP && kind == recvTrainSize && len(data) >= 4:
		c.size = int(int32(binary.NativeEndian.Uint32(data)))
	}
}

// putControl writes the control messages for the source and type of service of an outgoing train to the front of b, and returns
// their length. If e.Source is not an address of the family f, the system chooses the source.
func putControl(b []byte, f family, e *wireguard.Endpoint, tos uint8) int {
	n := 0
	if src := e.Source.Unmap(); f == ipv6 && (src.Is6() || e.Interface != 0) {
		data := putMessage(b, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		if src.Is6() {
			a := src.As16()
			copy(data, a[:])
		}
		binary.NativeEndian.PutUint32(data[16:], e.Interface)
		n += unix.CmsgSpace(unix.SizeofInet6Pktinfo)
	} else if f == ipv4 && (src.Is4() || e.Interface != 0) {
		n += putSource4(b, src, e.Interface)
	}
	if tos == 0 {
		return n // 0 is the default, which needs no message
	}
	if f == ipv6 {
		binary.NativeEndian.PutUint32(putMessage(b[n:], unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 4), uint32(tos))
		n += unix.CmsgSpace(4)
	} else if sendTOS4Size > 0 {
		data := putMessage(b[n:], unix.IPPROTO_IP, unix.IP_TOS, sendTOS4Size)
		if sendTOS4Size == 4 {
			binary.NativeEndian.PutUint32(data, uint32(tos))
		} else {
			data[0] = tos
		}
		n += unix.CmsgSpace(sendTOS4Size)
	}
	return n
}

// putMessage writes the header of one control message to b, which is aligned like a controlBuffer. It returns the part of b for
// the message's data, which it has filled with zeros.
func putMessage(b []byte, level, kind, size int) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = int32(level), int32(kind)
	h.SetLen(unix.CmsgLen(size))
	data := b[unix.CmsgLen(0):unix.CmsgLen(size)]
	clear(data)
	return data
}
