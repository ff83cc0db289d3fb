//go:build unix

package main

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// tryLock tries to lock f for this process and reports whether it succeeded.
func tryLock(f *os.File) (bool, error) {
	err := syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart})
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return false, nil
	}
	return err == nil, err
}
