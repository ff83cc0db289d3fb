//go:build linux && !android

package tun

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// A virtio has the fields of the kernel's struct virtio_net_hdr. In the byte order of the machine, this struct precedes each
// packet:
//
//	0        1         2            4          6             8              10
//	| flags  | GSO     | length of  | payload  | where the    | where in it  |
//	|        | type    | headers    | a segment| sum begins   | the sum is   |
type virtio struct {
	flags, gso                   uint8
	headers, size, start, offset uint16
}

const (
	virtioSize = 10

	needsSum = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM

	gsoNone, gsoTCP4, gsoTCP6 = unix.VIRTIO_NET_HDR_GSO_NONE, unix.VIRTIO_NET_HDR_GSO_TCPV4, unix.VIRTIO_NET_HDR_GSO_TCPV6
	gsoUDP, gsoECN            = unix.VIRTIO_NET_HDR_GSO_UDP_L4, unix.VIRTIO_NET_HDR_GSO_ECN
)

func getVirtio(b []byte) virtio {
	return virtio{
		flags: b[0], gso: b[1],
		headers: binary.NativeEndian.Uint16(b[2:]), size: binary.NativeEndian.Uint16(b[4:]),
		start: binary.NativeEndian.Uint16(b[6:]), offset: binary.NativeEndian.Uint16(b[8:]),
	}
}

func (v virtio) put(b []byte) {
	b[0], b[1] = v.flags, v.gso
	binary.NativeEndian.PutUint16(b[2:], v.headers)
	binary.NativeEndian.PutUint16(b[4:], v.size)
	binary.NativeEndian.PutUint16(b[6:], v.start)
	binary.NativeEndian.PutUint16(b[8:], v.offset)
}
