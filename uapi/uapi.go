// Package uapi serves wg(8)'s cross-platform control protocol, so that wg itself and programs that use wgctrl configure a
// [wireguard.Device] as they configure the kernel's interfaces.
//
//	l, err := uapi.Listen("wg0") // /var/run/wireguard/wg0.sock, or the named pipe of Windows
//	...
//	s := &uapi.Server{Device: device}
//	err = s.Serve(l)             // until s.Close, or until somebody removes the socket
//
// A request takes this path:
//
//	Listen ─▶ Server.Serve ─▶ one goroutine per connection ─┬▶ set=1: set.go, the lines into one wireguard.Change ─▶ Device.Configure
//	                                                        └▶ get=1: get.go, Device.Status and Device.Peers into lines
//
// A request is carried out as a whole or not at all. A wrong line, a port that is taken, or a connection that ends in the
// middle leaves everything as it was. The connection of a refused request stays usable. An error gives the number of the line
// and says what is wanted there. It never repeats a value, which may be a key.
//
// The protocol is described at https://www.wireguard.com/xplatform/. Where that text leaves room, this package does what
// wireguard-go does, with these exceptions:
//
//   - An error undoes the whole request.
//   - Server does not carry out a request without its closing empty line.
//   - Server answers an unknown operation before it closes the connection.
//   - Endpoints that cannot be reached (port 0, a group, the unspecified address) are refused, and so are IPv4 prefixes that
//     are written as mapped IPv6 ones.
package uapi

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
)

// An Error says why a request was refused. It is a value that nobody changes.
type Error struct {
	// Errno is the number that the answer carries, as a positive number. It is the system's own, and Linux's on Windows.
	Errno int
	Err   error // what went wrong
}

// Error returns one line, which holds no value of the request.
func (e *Error) Error() string { return fmt.Sprintf("uapi: errno %d: %v", e.Errno, e.Err) }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// errnoOf returns the number for an error of Device.Configure. hasPort says that the request names a port. An error of the
// Bind without a number then means that the port is in use.
func errnoOf(err error, hasPort bool) int {
	var number syscall.Errno
	switch {
	case errors.Is(err, net.ErrClosed):
		return errnoNoDevice
	case errors.As(err, &number):
		return errnoOfSystem(number)
	case errors.Is(err, errors.ErrUnsupported):
		return errnoUnsupported
	case hasPort:
		return errnoAddressInUse
	}
	return errnoInvalid
}

// checkName refuses a name that no interface can have.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 64 || strings.ContainsAny(name, "/\\\x00") {
		return fmt.Errorf("uapi: the interface name %q is not valid; want 1 to 64 bytes without / and \\: %w", name, syscall.EINVAL)
	}
	return nil
}
