//go:build !linux

package udp

import "errors"

// hasGroups is false because these systems do not promise that a flow stays on one of the sockets that share a port.
const hasGroups = false

func setReuse(uintptr, bool) (was bool, err error) { return false, errors.ErrUnsupported }

func setSpread(uintptr, family, int) error { return errors.ErrUnsupported }
