//go:build !linux

package udp

import "errors"

// hasGroups is false: these systems do not promise that, of several sockets on one port, a flow stays on one.
const hasGroups = false

func setReuse(uintptr, bool) (was bool, err error) { return false, errors.ErrUnsupported }

func setSpread(uintptr, family, int) error { return errors.ErrUnsupported }
