//go:build !unix && !windows

package uapi

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// Listen fails: the system has no control sockets. The error wraps errors.ErrUnsupported. Server.Serve accepts any other
// listener.
func Listen(name string) (net.Listener, error) {
	return nil, fmt.Errorf("uapi: a control socket for %s: %w", name, errors.ErrUnsupported)
}

// ListenFile fails as Listen does.
func ListenFile(name string, f *os.File) (net.Listener, error) { return Listen(name) }
