package uapi

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.zx2c4.com/wireguard/ipc"
)

// Listen makes the named pipe at which wg.exe finds an interface. Only the system and its administrators can open it.
func Listen(name string) (net.Listener, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	l, err := ipc.UAPIListen(name)
	if err != nil {
		return nil, fmt.Errorf("uapi: make the control pipe of %s: %w", name, err)
	}
	return l, nil
}

// ListenFile fails, because it is for systems whose processes inherit sockets. The error wraps errors.ErrUnsupported.
func ListenFile(name string, f *os.File) (net.Listener, error) {
	return nil, fmt.Errorf("uapi: an inherited control socket: %w", errors.ErrUnsupported)
}
