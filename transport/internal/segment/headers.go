// Package segment is segmentation offload in software: it cuts one large TCP or UDP packet into segments as a network
// card does, and joins segments that follow each other to one packet as a kernel's GRO does. It holds what the
// transports that do so have in common: offsets, sums, the rules. Where the bytes come from and go to is theirs.
package segment

import "encoding/binary"

// Offsets of fields, from the start of their header.
const (
	IP4Length, IP4ID, IP4Fragment, IP4TTL, IP4Protocol, IP4Checksum, IP4Addresses = 2, 4, 6, 8, 9, 10, 12
	IP6Length, IP6Next, IP6HopLimit, IP6Addresses                                 = 4, 6, 7, 8

	TCPSeq, TCPAck, TCPOffset, TCPFlags, TCPWindow, TCPChecksum, TCPUrgent = 4, 8, 12, 13, 14, 16, 18

	UDPLength, UDPChecksum = 4, 6
)

// Lengths of headers, in bytes: without options, and of the longest IP and TCP header together.
const (
	IP4Header, IP6Header, TCPHeader, UDPHeader = 20, 40, 20, 8

	MaxHeaders = 60 + 60
)

// Protocol numbers, and flags of TCP.
const (
	TCP, UDP = 6, 17

	FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80
)

// TCPHeaders finds where the IP header ends and where the TCP header behind it. ok is false unless b holds both whole,
// with nothing between them.
func TCPHeaders(b []byte) (l3, l4 int, ok bool) {
	if len(b) < IP4Header {
		return 0, 0, false
	}
	var proto uint8
	switch b[0] >> 4 {
	case 4:
		l3, proto = int(b[0]&15)*4, b[IP4Protocol]
	case 6:
		l3, proto = IP6Header, b[IP6Next]
	}
	if l3 < IP4Header || proto != TCP {
		return 0, 0, false
	}
	l4, ok = TCPEnd(b, l3)
	return l3, l4, ok
}

// TCPEnd finds where the TCP header ends that begins at l3. ok is false unless b holds it whole.
func TCPEnd(b []byte, l3 int) (l4 int, ok bool) {
	if len(b) < l3+TCPHeader {
		return 0, false
	}
	l4 = l3 + int(b[l3+TCPOffset]>>4)*4
	return l4, l4 >= l3+TCPHeader && l4 <= len(b)
}

// PseudoSum is the sum of the pseudo-header for the transport header behind ip, but for the length.
func PseudoSum(ip []byte) uint16 {
	if ip[0]>>4 == 4 {
		return Sum(ip[IP4Addresses:IP4Addresses+8], uint16(ip[IP4Protocol]))
	}
	return Sum(ip[IP6Addresses:IP6Addresses+32], uint16(ip[IP6Next]))
}

// setLength writes the length of a packet of n bytes into its IP header.
func setLength(ip []byte, n int) {
	if ip[0]>>4 == 4 {
		binary.BigEndian.PutUint16(ip[IP4Length:], uint16(n))
	} else {
		binary.BigEndian.PutUint16(ip[IP6Length:], uint16(n-IP6Header))
	}
}
