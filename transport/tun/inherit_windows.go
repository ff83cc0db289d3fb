package tun

import (
	"errors"
	"fmt"
	"os"

	"golang.zx2c4.com/wireguard/tun"
)

func inherited(*os.File, int) (tun.Device, error) {
	return nil, fmt.Errorf("Windows has no descriptors of interfaces; leave File nil and set Name: %w", errors.ErrUnsupported)
}
