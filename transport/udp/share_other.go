//go:build !linux

package udp

import "errors"

// setShared fails because these systems do not document which of two sockets on one port receives a datagram.
func setShared(uintptr, bool) (was bool, err error) { return false, errors.ErrUnsupported }
