// Package uapi serves wg(8)'s cross-platform control protocol, so that wg itself and programs that use wgctrl can configure a
// [wireguard.Device] as they configure the kernel's interfaces.
//
//	l, err := uapi.Listen("wg0") // /var/run/wireguard/wg0.sock, or the named pipe of Windows
//	...
//	s := &uapi.Server{Device: device}
//	err = s.Serve(l)             // until s.Close, or until the socket is removed
//
// A request takes this path:
//
//	Listen ─▶ Server.Serve ─▶ one goroutine per connection ─┬▶ set=1: set.go, lines into one wireguard.Change ─▶ Device.Configure
//	                                                        └▶ get=1: get.go, Device.Status and Device.Peers into lines
//
// A request is carried out as a whole or not at all. If a line is invalid, a port is in use, or the connection ends in the middle
// of a request, the device does not change. The connection of a refused request stays usable. An error gives the number of the
// line and says what the line should contain. An error never repeats a value, because the value may be a key.
//
// The protocol is described at https://www.wireguard.com/xplatform/. Where that text is ambiguous, this package does what
// wireguard-go does, with these exceptions:
//
//   - An error undoes the whole request.
//   - Server does not carry out a request without its closing empty line.
//   - Server answers an unknown operation before it closes the connection.
//   - This package refuses endpoints that cannot be reached: port 0, a multicast address or the unspecified address. It also
//     refuses IPv4-mapped IPv6 prefixes.
package uapi

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
)

// An Error says why a request was refused. It is not changed after it is made.
type Error struct {
	// Errno is the error number in the answer, without the minus sign. It is the number that the operating system uses; on
	// Windows it is the number that Linux uses.
	Errno int
	Err   error // what went wrong
}

// Error returns one line, which contains no value of the request.
func (e *Error) Error() string { return fmt.Sprintf("uapi: errno %d: %v", e.Errno, e.Err) }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// errnoOf returns the error number for an error of Device.Configure or of the Bind. If the request sets a port (hasPort is
// true), any error that is not of a known kind is taken to mean that the port is in use.
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
