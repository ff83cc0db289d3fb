//go:build !linux && !darwin && !freebsd && !openbsd

package udp

import "github.com/seed-86b749af/wireguard"

// hasControl is false because these systems send and receive datagrams without control messages.
const hasControl = false

const msgTruncated = 0

func (b *controlBuffer) bytes() []byte { return nil }

func parseControl([]byte) (c control) { return c }

func putControl([]byte, family, *wireguard.Endpoint, uint8) int { return 0 }
