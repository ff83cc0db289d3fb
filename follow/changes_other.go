//go:build !darwin && !dragonfly && !freebsd && !linux && !netbsd && !openbsd && !windows

package follow

import "errors"

func openNetwork(tunnel string) (watch, error) { return nil, errors.ErrUnsupported }

func openSleep() (watch, error) { return nil, errors.ErrUnsupported }
