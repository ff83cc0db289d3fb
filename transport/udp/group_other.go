//go:build !linux

package udp

import "errors"

// hasGroups is false because these systems do not guarantee that all datagrams of a flow arrive at the same socket, if several
// sockets have one port.
const hasGroups = false

func setReuse(uintptr, bool) (was bool, err error) { return false, errors.ErrUnsupported }

func setSpread(uintptr, family, int) error { return errors.ErrUnsupported }
