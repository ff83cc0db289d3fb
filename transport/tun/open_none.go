//go:build android || (!linux && !darwin && !freebsd && !openbsd && !windows)

package tun

import (
	"fmt"
	"runtime"

	"github.com/seed-86b749af/wireguard"
)

// A system has no interface.
type system struct{}

func (d *Device) open(*Config) error {
	return fmt.Errorf("tun: there are no TUN interfaces on %s yet; use transport/netstack, or transport/wgo with a tun.Device of your own", runtime.GOOS)
}

func (d *Device) sources() []wireguard.PacketSource { return nil }
func (d *Device) write([][]byte) (int, error)       { return 0, errClosed }
func (d *Device) close() error                      { return nil }
