//go:build darwin || freebsd || openbsd

package tun

import (
	"os"

	"golang.zx2c4.com/wireguard/tun"
)

// inherited opens a descriptor and takes it over.
func inherited(f *os.File, mtu int) (tun.Device, error) { return tun.CreateTUNFromFile(f, mtu) }
