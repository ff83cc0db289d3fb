//go:build darwin || freebsd || openbsd

package tun

import (
	"os"

	"golang.zx2c4.com/wireguard/tun"
)

// inherited opens a descriptor, which it takes over.
func inherited(f *os.File, mtu int) (tun.Device, error) { return tun.CreateTUNFromFile(f, mtu) }
