package proxy

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"slices"
	"syscall"
)

// A failure is the reason why a dial failed, as far as the error codes of SOCKS5, HTTP and TLS distinguish reasons.
type failure uint8

const (
	failedOther     failure = iota
	forbidden               // the dialer refuses the target
	netUnreachable          // no route
	hostUnreachable         // the host does not answer, or its name has no address
	refused                 // the host refuses the connection
	timedOut
)

// Sockets of Windows return these numbers instead of those in package syscall. Other systems do not use them.
const wsaNetUnreachable, wsaRefused, wsaHostUnreachable syscall.Errno = 10051, 10061, 10065

// failureOf returns the kind of failure that the error of a dial means.
func failureOf(err error) failure {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.Is(err, fs.ErrPermission):
		return forbidden
	case errors.As(err, &dns) && !dns.IsTimeout:
		return hostUnreachable
	case isAny(err, syscall.ECONNREFUSED, wsaRefused):
		return refused
	case isAny(err, syscall.ENETUNREACH, wsaNetUnreachable, syscall.EAFNOSUPPORT):
		return netUnreachable
	case isAny(err, syscall.EHOSTUNREACH, wsaHostUnreachable):
		return hostUnreachable
	case isAny(err, context.DeadlineExceeded, os.ErrDeadlineExceeded, syscall.ETIMEDOUT), errors.As(err, &timeout) && timeout.Timeout():
		return timedOut
	}
	return failedOther
}

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
}
