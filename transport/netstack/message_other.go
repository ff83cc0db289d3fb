//go:build !linux && !darwin && !freebsd && !openbsd

package netstack

import "syscall"

// The flags of recvmsg(2), which this system does not have.
const (
	flagTruncated        = 0
	flagControlTruncated = 0
)

// put writes nothing, because this system has no control messages.
func (m *received) put([]byte) (n int, all bool) { return 0, true }

// parse refuses control messages.
func (m *message) parse(oob []byte) error {
	if len(oob) == 0 {
		return nil
	}
	return refused("sendmsg", syscall.EINVAL, "a Net has no control messages on this system")
}
