//go:build !linux && !darwin && !freebsd && !openbsd && !windows

package udp

import (
	"errors"
	"fmt"
)

// configure has no options to set.
func (c *conn) configure(_ uintptr, b *Bind) error {
	if b.Interface != "" {
		return fmt.Errorf("this system cannot bind a socket to an interface; set Bind.Address instead: %w", errors.ErrUnsupported)
	}
	return nil
}

func setMark(_ uintptr, mark uint32) error {
	if mark == 0 {
		return nil
	}
	return errors.ErrUnsupported
}
