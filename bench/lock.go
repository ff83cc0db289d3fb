package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// alone returns a function that calls start. Its first call waits for a lock, so that only one bench of this user measures on
// this machine at a time. The process keeps the lock until it ends. On a system without such a lock, the first call does not
// wait.
func alone(messages io.Writer, start func(context.Context, order) (*taking, error)) func(context.Context, order) (*taking, error) {
	var lock *os.File
	return func(ctx context.Context, o order) (_ *taking, err error) {
		if lock == nil {
			if lock, err = takeLock(ctx, filepath.Join(os.TempDir(), fmt.Sprintf("wireguard-bench.%d.lock", os.Getuid())), messages); err != nil {
				return nil, err
			}
		}
		return start(ctx, o)
	}
}

// takeLock waits for the lock on a file, and creates the file if it does not exist. Closing the file releases the lock.
func takeLock(ctx context.Context, path string, messages io.Writer) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for waited := false; ; waited = true {
		if free, err := tryLock(f); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		} else if free {
			return f, nil
		}
		if !waited {
			fmt.Fprintf(messages, "bench: waiting until the process that has locked %s ends\n", path)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
