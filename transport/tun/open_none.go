//go:build android || (!linux && !darwin && !freebsd && !openbsd && !windows)

package tun

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/seed-86b749af/wireguard"
)

// A system is empty, because this package has no TUN interfaces on these systems.
type system struct{}

func (d *Interface) open(*Config) error {
	return fmt.Errorf("tun: this package has no TUN interfaces on %s; use transport/netstack, or transport/wgo with your own tun.Device: %w", runtime.GOOS, errors.ErrUnsupported)
}

func (d *Interface) sources() []wireguard.PacketSource { return nil }
func (d *Interface) write([][]byte) (int, error)       { return 0, errClosed }
func (d *Interface) close() error                      { return nil }
