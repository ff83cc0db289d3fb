// Package uapi is wg(8)'s cross-platform control protocol: with it the real wg and programs of wgctrl configure a
// wireguard.Device as they configure the kernel's interfaces.
//
//	l, err := uapi.Listen("wg0") // /var/run/wireguard/wg0.sock, or the named pipe of Windows
//	...
//	s := &uapi.Server{Device: device}
//	err = s.Serve(l)             // until s.Close, or until somebody removes the socket
//
// A request goes this way:
//
//	Listen ─▶ Server.Serve ─▶ a goroutine a connection ─┬▶ set=1: set.go, the lines into one wireguard.Change ─▶ Device.Configure
//	                                                    └▶ get=1: get.go, Device.Status and Device.Peers into lines
//
// A request is carried out as a whole or not at all: one wrong line, a port that is taken or a connection that ends in
// the middle leave everything as it was. A refused request leaves its connection usable. An error names the line and
// what is wanted there; it never repeats a value, which may be a key.
//
// The protocol is that of https://www.wireguard.com/xplatform/. Where its text leaves room, this package does what
// wireguard-go does, but for the following: errors undo the whole request; a request without its closing empty line is
// not carried out by the Server; an unknown operation is answered before the connection is closed; endpoints that cannot
// be reached (port 0, a group, the unspecified address) and IPv4 prefixes written as mapped IPv6 ones are refused.
package uapi

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
)

// An Error is why a request was refused. It wraps what went wrong.
type Error struct {
	// Errno is the number that the answer carries, but positive: on Windows that of Linux, elsewhere the system's own.
	Errno int
	Err   error // what went wrong
}

// Error is one line, without any value of the request.
func (e *Error) Error() string { return fmt.Sprintf("uapi: errno %d: %v", e.Errno, e.Err) }

// Unwrap is what went wrong.
func (e *Error) Unwrap() error { return e.Err }

// errnoOf is the number for what Device.Configure returned. taken says that a port was asked for: a Bind whose error
// carries no number is then taken to mean that the port is in use.
func errnoOf(err error, taken bool) int {
	var number syscall.Errno
	switch {
	case errors.Is(err, net.ErrClosed):
		return errnoNoDevice
	case errors.As(err, &number):
		return errnoOfSystem(number)
	case errors.Is(err, errors.ErrUnsupported):
		return errnoUnsupported
	case taken:
		return errnoAddressInUse
	}
	return errnoInvalid
}

// checkName reports a name that is no interface's.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 64 || strings.ContainsAny(name, "/\\\x00") {
		return fmt.Errorf("uapi: %q is no name of an interface: %w", name, syscall.EINVAL)
	}
	return nil
}
