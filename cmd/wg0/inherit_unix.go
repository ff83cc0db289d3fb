//go:build unix

package main

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	envTUN        = "WG_TUN_FD"
	envUAPI       = "WG_UAPI_FD"
	envForeground = "WG_PROCESS_FOREGROUND"
	envReady      = "WG0_READY_FD" // from the process in front to the one in the background

	firstListenFD = 3 // SD_LISTEN_FDS_START
	maxListenFDs  = 64
)

// inherited are descriptors that another process opened for this one. nil: none.
type inherited struct {
	tun, uapi *os.File
}

// inherit takes over what the environment names, and takes it out of the environment: commands that this process starts
// get neither.
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
	return take(env, fd)
}

func take(what string, fd int) (*os.File, error) {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		return nil, fmt.Errorf("%s: descriptor %d is not open in this process; let whoever starts wg0 pass it", what, fd)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), what), nil
}

// listenFDs takes what a service manager passes (sd_listen_fds(3)): a socket is the control socket, anything else a TUN.
func (in *inherited) listenFDs() error {
	pid, n := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	os.Unsetenv("LISTEN_PID")
	os.Unsetenv("LISTEN_FDS")
	os.Unsetenv("LISTEN_FDNAMES")
	if n == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil
	}
	count, err := strconv.Atoi(n)
	if err != nil || count < 0 || count > maxListenFDs {
		return fmt.Errorf("LISTEN_FDS is %q: want the number of descriptors", n)
	}
	for fd := firstListenFD; fd < firstListenFD+count; fd++ {
		f, err := take("LISTEN_FDS", fd)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err != nil {
			return fmt.Errorf("LISTEN_FDS: descriptor %d: %w", fd, err)
		}
		to := &in.tun
		if info.Mode().Type()&os.ModeSocket != 0 {
			to = &in.uapi
		}
		if *to != nil {
			return fmt.Errorf("LISTEN_FDS: descriptor %d is one too many: want at most a TUN and a control socket", fd)
		}
		*to = f
	}
	return nil
}
