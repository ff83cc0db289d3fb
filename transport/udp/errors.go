package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"github.com/seed-86b749af/wireguard"
)

var (
	errClosed    = fmt.Errorf("udp: the socket is closed: %w", net.ErrClosed)
	errNoAddress = errors.New("udp: send: the endpoint has no address")
	errNoFamily  = [families]error{
		fmt.Errorf("udp: send: the socket does not have IPv4: %w", syscall.EAFNOSUPPORT),
		fmt.Errorf("udp: send: the socket does not have IPv6: %w", syscall.EAFNOSUPPORT),
	}
)

// A sendError says why a datagram was not sent. It is an integer, so that it needs no allocation, because a host without a
// route makes a sendError for each packet.
type sendError syscall.Errno

func (e sendError) Error() string {
	return "udp: send: " + syscall.Errno(e).Error() + e.advice()
}
func (e sendError) Unwrap() error { return syscall.Errno(e) }

func (e sendError) advice() string {
	switch syscall.Errno(e) {
	case syscall.EPERM:
		return " (a packet filter of this host refuses it)"
	case syscall.EMSGSIZE:
		return " (lower the tunnel's MTU)"
	}
	return ""
}

// A receiveError says why a socket cannot be read.
type receiveError syscall.Errno

func (e receiveError) Error() string { return "udp: receive: " + syscall.Errno(e).Error() }
func (e receiveError) Unwrap() error { return syscall.Errno(e) }

// errnoOf returns the system's error number that err wraps, or 0 if err wraps none or says that the socket was closed.
func errnoOf(err error) syscall.Errno {
	if err == nil || errors.Is(err, net.ErrClosed) {
		return 0
	}
	var errno syscall.Errno // not a named result, which would be allocated in every call; most calls return before this line
	errors.As(err, &errno)
	return errno
}

// closedOr returns errClosed if err says that the socket was closed, and otherwise err.
func closedOr(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return errClosed
	}
	return fmt.Errorf("udp: %w", err)
}

// explain wraps an error of Listen in one that says what the caller can do.
func (b *Bind) explain(err error, port uint16) error {
	switch {
	case errors.Is(err, errnoInUse) && port == 0:
		return fmt.Errorf("udp: no port is free in both IPv4 and IPv6: %w", err)
	case errors.Is(err, errnoInUse):
		return fmt.Errorf("udp: port %d is taken by another socket; close that socket, or listen on another port, or on 0 for any: %w", port, err)
	case errors.Is(err, errnoNotAvail) && b.Address.IsValid():
		return fmt.Errorf("udp: this host does not have the address %v to listen on: %w", b.Address, err)
	case errors.Is(err, syscall.EACCES) && port > 0 && port < 1024:
		return fmt.Errorf("udp: port %d is below 1024; run as root or with CAP_NET_BIND_SERVICE, or choose another port: %w", port, err)
	}
	return fmt.Errorf("udp: listen on port %d: %w", port, err)
}

func noInterface(name string, err error) error {
	var names []string
	if all, e := net.Interfaces(); e == nil {
		for _, i := range all {
			names = append(names, i.Name)
		}
	}
	return fmt.Errorf("udp: this host has no network interface %q to listen on, only %s: %w", name, strings.Join(names, ", "), err)
}

func markError(mark uint32, err error) error {
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("udp: mark %#x: run as root or with CAP_NET_ADMIN to set it: %w", mark, err)
	}
	return fmt.Errorf("udp: mark %#x: %w", mark, err)
}

// isMissing reports whether err says that the host does not have the IP family of the socket (IPv4 or IPv6).
func isMissing(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, errnoNoFamily) || errors.Is(err, errnoNotAvail)
}

// dropSource removes the source and the interface from e, the endpoint of a datagram that could not be sent because of errno, if
// these can be the reason. The system then chooses them. dropSource reports whether it has changed e, so that another attempt can
// succeed.
func dropSource(e *wireguard.Endpoint, errno syscall.Errno) bool {
	if !e.Source.IsValid() && e.Interface == 0 || !isSourceGone(errno) {
		return false
	}
	e.Source, e.Interface = netip.Addr{}, 0
	return true
}

// isSourceGone reports whether errno can mean that the host no longer has a datagram's source address, or no longer has the
// interface that the datagram was to be sent through.
func isSourceGone(errno syscall.Errno) bool {
	switch errno {
	case syscall.EINVAL, errnoNotAvail, syscall.ENETUNREACH, syscall.ENODEV:
		return true
	}
	return false
}
