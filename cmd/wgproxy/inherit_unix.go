//go:build unix

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

const (
	firstListenFD = 3 // SD_LISTEN_FDS_START
	maxListenFDs  = 64
)

// reloadSignals make wgproxy read its file again.
var reloadSignals = []os.Signal{syscall.SIGHUP}

// inherit takes the sockets that a service manager passes, and removes the variables that name them.
func inherit() (sockets, error) {
	pid, n := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	os.Unsetenv("LISTEN_PID")
	os.Unsetenv("LISTEN_FDS")
	os.Unsetenv("LISTEN_FDNAMES")
	s := make(sockets)
	if n == "" || pid != strconv.Itoa(os.Getpid()) {
		return s, nil
	}
	count, err := strconv.Atoi(n)
	if err != nil || count < 0 || count > maxListenFDs {
		return nil, fmt.Errorf("LISTEN_FDS is %q: want a number of sockets from 0 to %d", n, maxListenFDs)
	}
	for fd := firstListenFD; fd < firstListenFD+count; fd++ {
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "LISTEN_FDS")
		err := s.add(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("LISTEN_FDS: descriptor %d: %w", fd, err)
		}
	}
	return s, nil
}

// add adds a copy of a socket.
func (s sockets) add(f *os.File) error {
	if l, err := net.FileListener(f); err == nil {
		s[l.Addr().Network()+" "+l.Addr().String()] = l
		return nil
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		return errors.New("want a listening TCP socket or a UDP socket")
	}
	s[c.LocalAddr().Network()+" "+c.LocalAddr().String()] = c
	return nil
}

// detach makes cmd outlive the terminal.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
