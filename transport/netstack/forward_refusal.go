package netstack

import (
	"errors"
	"runtime"
	"syscall"

	"github.com/seed-86b749af/wireguard/internal/packet"
)

// A Refusal says how [Flow.Refuse] refuses a flow.
type Refusal uint8

const (
	// PortUnreachable means that nothing listens on the port. A TCP connection gets a reset, and a UDP flow an ICMP error. A
	// ping gets HostUnreachable instead.
	PortUnreachable Refusal = iota
	// HostUnreachable is the ICMP error for a host that does not answer.
	HostUnreachable
	// NetUnreachable is the ICMP error for a network without a route.
	NetUnreachable
	// Prohibited is the ICMP error for a destination that a policy forbids.
	Prohibited
)

// RefusalOf returns the Refusal that fits err, the error of a dial to the flow's destination.
func RefusalOf(err error) Refusal {
	var timeout interface{ Timeout() bool }
	switch {
	case isErrno(err, syscall.ECONNREFUSED, 10061), isErrno(err, syscall.ECONNRESET, 10054):
		return PortUnreachable
	case isErrno(err, syscall.ENETUNREACH, 10051), isErrno(err, syscall.EADDRNOTAVAIL, 10049), isErrno(err, syscall.EAFNOSUPPORT, 10047):
		return NetUnreachable
	case isErrno(err, syscall.EHOSTUNREACH, 10065), errors.As(err, &timeout) && timeout.Timeout():
		return HostUnreachable
	case isErrno(err, syscall.EACCES, 10013), isErrno(err, syscall.EPERM, 10013):
		return Prohibited
	}
	return HostUnreachable
}

// isErrno reports whether err is the error number e. On Windows, err may also be winsock, which is the same error in Windows
// Sockets.
func isErrno(err error, e syscall.Errno, winsock uintptr) bool {
	return errors.Is(err, e) || runtime.GOOS == "windows" && errors.Is(err, syscall.Errno(winsock))
}

// icmp returns the kind of ICMP error with which r refuses a flow of the protocol proto.
func (r Refusal) icmp(proto uint8) packet.ICMPError {
	switch r {
	case NetUnreachable:
		return packet.NetUnreachable
	case Prohibited:
		return packet.Prohibited
	case PortUnreachable:
		if proto == protoTCP || proto == protoUDP {
			return packet.PortUnreachable
		}
	}
	return packet.HostUnreachable
}
