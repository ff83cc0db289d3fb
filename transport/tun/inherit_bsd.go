//go:build darwin || freebsd || openbsd

package tun

import (
	"os"

	"golang.zx2c4.com/wireguard/tun"
)

// inherited opens the interface of the descriptor f. The tun.Device then owns f.
func inherited(f *os.File, mtu int) (tun.Device, error) { return tun.CreateTUNFromFile(f, mtu) }
