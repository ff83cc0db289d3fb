//go:build android || (!linux && !darwin && !freebsd && !openbsd && !windows)

package tun

import (
	"fmt"
	"runtime"

	"github.com/seed-86b749af/wireguard"
)

// A system has no interface.
type system struct{}

func (d *Interface) open(*Config) error {
	return fmt.Errorf("tun: there are no TUN interfaces on %s yet; use transport/netstack, or transport/wgo with a tun.Device of your own", runtime.GOOS)
}

func (d *Interface) sources() []wireguard.PacketSource { return nil }
func (d *Interface) write([][]byte) (int, error)       { return 0, errClosed }
func (d *Interface) close() error                      { return nil }
