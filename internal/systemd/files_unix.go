//go:build unix

package systemd

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	firstFile = 3 // SD_LISTEN_FDS_START
	maxFiles  = 64
)

// Files takes over the descriptors that the service manager passes (sd_listen_fds(3)), in their order. The caller owns the files,
// whose names say which descriptors they are. Files removes the variables that describe the descriptors from the environment, so
// that commands that this process starts do not use these variables.
func Files() (files []*os.File, err error) {
	pid, n := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	os.Unsetenv("LISTEN_PID")
	os.Unsetenv("LISTEN_FDS")
	os.Unsetenv("LISTEN_FDNAMES")
	if n == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	count, err := strconv.Atoi(n)
	if err != nil || count < 0 || count > maxFiles {
		return nil, fmt.Errorf("LISTEN_FDS is %q: want a number of descriptors from 0 to %d", n, maxFiles)
	}
	for fd := firstFile; fd < firstFile+count; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, fmt.Errorf("LISTEN_FDS: descriptor %d is not open; start this program from the service manager", fd)
		}
	}
	for fd := firstFile; fd < firstFile+count; fd++ {
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("LISTEN_FDS: descriptor %d", fd)))
	}
	return files, nil
}
