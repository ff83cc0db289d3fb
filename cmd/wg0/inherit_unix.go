//go:build unix

package main

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/seed-86b749af/wireguard/internal/systemd"
)

const (
	envTUN        = "WG_TUN_FD"
	envUAPI       = "WG_UAPI_FD"
	envForeground = "WG_PROCESS_FOREGROUND"
	envReady      = "WG0_READY_FD" // passed from the parent to the process in the background
)

// inherited holds files that another process opened for this one. A nil file means that this process must open its own.
type inherited struct {
	tun, uapi *os.File
}

// inherit takes over the descriptors that the environment names. It removes the variables from the environment, and marks the
// descriptors close-on-exec, so that the commands that this process starts inherit neither.
func inherit() (in inherited, err error) {
	if in.tun, err = inheritNamed(envTUN); err != nil {
		return in, err
	}
	if in.uapi, err = inheritNamed(envUAPI); err != nil {
		return in, err
	}
	return in, in.listenFDs()
}

func inheritNamed(env string) (*os.File, error) {
	v := os.Getenv(env)
	if v == "" {
		return nil, nil
	}
	os.Unsetenv(env)
	fd, err := strconv.Atoi(v)
	if err != nil || fd < 0 {
		return nil, fmt.Errorf("%s is %q: want the number of an open descriptor", env, v)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		return nil, fmt.Errorf("%s: descriptor %d is not open; pass it to wg0 from the program that starts wg0", env, fd)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), env), nil
}

// listenFDs takes the descriptors that a service manager passes. It uses a socket as the control socket, and anything else as the
// TUN.
func (in *inherited) listenFDs() error {
	files, err := systemd.Files()
	if err != nil {
		return err
	}
	for _, f := range files {
		info, err := f.Stat()
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
		to := &in.tun
		if info.Mode().Type()&os.ModeSocket != 0 {
			to = &in.uapi
		}
		if *to != nil {
			return fmt.Errorf("%s is one too many: pass at most one TUN and one control socket", f.Name())
		}
		*to = f
	}
	return nil
}
