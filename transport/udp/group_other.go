//go:build !linux

package udp

import "errors"

// hasGroups is false because the documents of these systems do not promise that a flow stays on one of several sockets.
const hasGroups = false

func setReuse(uintptr, bool) (was bool, err error) { return false, errors.ErrUnsupported }

func setSpread(uintptr, family, int) error { return errors.ErrUnsupported }
